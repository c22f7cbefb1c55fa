"""Tests that SQLite files are created, adopted and upgraded in place, atomically and without loss."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from adoption import check_adopted, race_to_add
from original_application import add_message, add_sessions, dump_file, make_file, make_file_with_data, read_rows
from raw_sqlite import execute_in_file

from flux_memory import ConversationMemory
from flux_memory.errors import BackendUnavailableError, FluxMemoryError, SchemaError
from flux_memory.schema import history
from flux_memory.schema import sqlite as schema

VERSIONS = [step.version for step in history("sqlite")]
LEGACY_FILE = "FLUX_MEMORY_LEGACY_DB"


async def read_order(path: Path, session_id: str) -> list[str]:
    async with ConversationMemory(path) as memory:
        return [message["id"] for message in await memory.get_history(session_id)]


async def assert_refused(path: Path, kind: type[FluxMemoryError], says: str) -> None:
    """Open a file, expect a refusal, and check that the file is unchanged."""
    before = dump_file(path)
    memory = ConversationMemory(path)
    with pytest.raises(kind, match=says):
        await memory.count_sessions()
    with pytest.raises(kind, match=says):
        await memory.create_session()
    await memory.close()
    assert dump_file(path) == before


def applied_versions(path: Path) -> list[int]:
    return [version for (version,) in read_rows(path, "SELECT version FROM flux_memory_schema ORDER BY version")]


@pytest.mark.asyncio
async def test_a_fresh_file_replays_the_whole_history(path: Path) -> None:
    """The schema has one description: a fresh file applies each version and records its checksum and time."""
    async with ConversationMemory(path) as memory:
        assert await memory.count_sessions() == 0
    recorded = read_rows(path, "SELECT version, name, checksum FROM flux_memory_schema ORDER BY version")
    assert recorded == [(step.version, step.name, step.checksum) for step in history("sqlite")]
    assert all(len(when) == 32 for (when,) in read_rows(path, "SELECT applied_at FROM flux_memory_schema"))


@pytest.mark.asyncio
@pytest.mark.parametrize("generation", [1, 2])
async def test_an_adopted_file_is_in_order_and_complete(path: Path, generation: int) -> None:
    """Messages are ordered by time, ties by writing order; every value is still there."""
    make_file_with_data(path, generation=generation)
    async with ConversationMemory(path) as memory:
        await check_adopted(memory)
    stored = read_rows(path, "SELECT seq FROM messages WHERE session_id = 'one' ORDER BY seq")
    assert stored == [(1,), (2,), (3,), (4,), (5,)]
    assert applied_versions(path) == VERSIONS


@pytest.mark.asyncio
async def test_the_order_of_an_adopted_file_is_proven_by_a_key(path: Path) -> None:
    """Writers beside the library cannot store a number twice, nor an id twice within a session."""
    make_file_with_data(path)
    await read_order(path, "one")
    with closing(sqlite3.connect(path)) as db:
        for id_, seq in (("new", 1), ("m3", 99)):
            with pytest.raises(sqlite3.IntegrityError, match="UNIQUE constraint failed"):
                db.execute(
                    "INSERT INTO messages (session_id, id, seq, role, content, created_at) "
                    "VALUES ('one', ?, ?, '', '', '')",
                    (id_, seq),
                )


@pytest.mark.asyncio
async def test_users_of_the_second_generation_are_kept(path: Path) -> None:
    """A session still belongs to its user; a NULL user becomes empty."""
    with closing(make_file(path, generation=2)) as db:
        add_sessions(db, "hers", "nobodys")
        db.execute("UPDATE sessions SET user_id = CASE id WHEN 'hers' THEN 'ann' END")
    async with ConversationMemory(path) as memory:
        assert [session["id"] for session in await memory.get_sessions(user_id="ann")] == ["hers"]
        assert [session["id"] for session in await memory.get_sessions(user_id="")] == ["nobodys"]


@pytest.mark.asyncio
async def test_times_of_every_form_are_ordered_by_value(path: Path) -> None:
    """Their text sorts differently: naive, `Z`, an offset, no fraction, seconds, milliseconds."""
    with closing(make_file(path)) as db:
        add_sessions(db, "s", when=1770292800)
        add_message(db, "fifth", "s", "2026-02-05T12:00:04+00:00")
        add_message(db, "second", "s", "2026-02-05T12:00:01Z")
        add_message(db, "fourth", "s", "1770292803000")
        add_message(db, "first", "s", 1770292800)
        add_message(db, "third", "s", "2026-02-05 21:00:02.5+09:00")
        add_message(db, "sixth", "s", "2026-02-05T12:00:05")
    async with ConversationMemory(path) as memory:
        messages = await memory.get_history("s")
        session = await memory.get_session("s")
    assert [message["id"] for message in messages] == ["first", "second", "third", "fourth", "fifth", "sixth"]
    assert [message["created_at"][17:] for message in messages] == [
        f"{second}+00:00" for second in ("00.000000", "01.000000", "02.500000", "03.000000", "04.000000", "05.000000")
    ]
    assert session is not None
    assert session["created_at"] == session["updated_at"] == "2026-02-05T12:00:00.000000+00:00"


@pytest.mark.asyncio
async def test_orphans_move_to_their_own_table(path: Path) -> None:
    """Foreign keys were off in the original: messages without a session move unchanged to a separate table."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        add_message(db, "lost1", "gone", "not even a time")
        add_message(db, "lost2", "", "2026-02-05T15:17:45")
        columns = "id, session_id, role, content, metadata, created_at"
        orphans = db.execute(f"SELECT {columns} FROM messages WHERE id LIKE 'lost%' ORDER BY id").fetchall()
    assert await read_order(path, "one") == ["m3", "m4", "m1", "m6"]
    assert read_rows(path, f"SELECT {columns} FROM orphaned_messages ORDER BY id") == orphans
    assert read_rows(path, "SELECT count(*) FROM messages") == [(6,)]
    assert read_rows(path, "PRAGMA foreign_key_check") == []


@pytest.mark.asyncio
async def test_without_orphans_no_table_is_made_for_them(path: Path) -> None:
    """A healthy file gets no table for orphans."""
    make_file_with_data(path)
    await read_order(path, "one")
    assert read_rows(path, "SELECT 1 FROM sqlite_master WHERE name = 'orphaned_messages'") == []


@pytest.mark.asyncio
async def test_null_titles_and_metadata_become_empty(path: Path) -> None:
    """The original's columns allow NULL; a record never does."""
    with closing(make_file(path, generation=2)) as db:
        add_sessions(db, "s")
        add_message(db, "m", "s", "2026-02-05T15:17:45")
        db.execute("UPDATE sessions SET title = NULL, metadata = NULL, user_id = NULL")
        db.execute("UPDATE messages SET metadata = NULL")
    async with ConversationMemory(path) as memory:
        (session,), (message,) = await memory.get_sessions(metadata={}), await memory.get_history("s")
    assert (session["title"], session["metadata"], session["user_id"], message["metadata"]) == ("", {}, "", {})


@pytest.mark.asyncio
async def test_added_columns_of_sessions_are_kept(path: Path) -> None:
    """Only messages are rebuilt, so an application's own column of sessions stays with its values."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE sessions ADD COLUMN starred INTEGER")
        db.execute("UPDATE sessions SET starred = 1 WHERE id = 'two'")
    await read_order(path, "one")
    assert read_rows(path, "SELECT id FROM sessions WHERE starred = 1") == [("two",)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("ALTER TABLE messages ADD COLUMN embedding BLOB", "columns that the original .* did not make: embedding"),
        ("ALTER TABLE messages RENAME COLUMN content TO body", "not conversation memory .*it lacks content"),
        ("DROP TABLE messages", "not conversation memory"),
        ("UPDATE messages SET id = NULL WHERE id = 'm1'", "rows whose id is NULL"),
        ("UPDATE sessions SET id = NULL WHERE id = 'two'", "rows whose id is NULL"),
        (
            "UPDATE messages SET created_at = 'then' WHERE id IN ('m1', 'm2')",
            "2 times .* first in message 'm1': 'then'",
        ),
        ("UPDATE sessions SET updated_at = x'00'", "2 times that cannot be read, the first in session 'one'"),
    ],
)
async def test_a_file_that_cannot_be_adopted_is_refused_and_left_alone(path: Path, spoil: str, says: str) -> None:
    """Nothing is guessed, dropped or half done: the message says what to fix, and the file is unchanged."""
    make_file_with_data(path)
    execute_in_file(path, spoil)
    await assert_refused(path, SchemaError, says)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("obstacle", "undo"),
    [
        ("CREATE INDEX sessions_of_user_by_activity ON sessions (id)", "DROP INDEX sessions_of_user_by_activity"),
        ("CREATE INDEX idx_sessions_user ON sessions (title)", "DROP INDEX idx_sessions_user"),
        ("CREATE TABLE messages_in_order (id TEXT)", "DROP TABLE messages_in_order"),
        ("CREATE TABLE orphaned_messages (id TEXT)", "DROP TABLE orphaned_messages"),
        ("CREATE VIEW newest AS SELECT max(created_at) FROM messages", "DROP VIEW newest"),
        (
            "CREATE TRIGGER never BEFORE UPDATE ON sessions BEGIN SELECT raise(ABORT, 'not now'); END",
            "DROP TRIGGER never",
        ),
    ],
)
async def test_an_adoption_that_fails_half_way_leaves_the_file_as_it_was(path: Path, obstacle: str, undo: str) -> None:
    """A failure in any step of any file undoes the steps before; without the obstacle the adoption succeeds."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        add_message(db, "orphan", "gone", "2026-02-05T15:17:45")
        db.execute(obstacle)
    await assert_refused(path, FluxMemoryError, "SQLite on")
    execute_in_file(path, undo)
    assert await read_order(path, "one") == ["m3", "m4", "m1", "m6"]
    assert read_rows(path, "SELECT id FROM orphaned_messages") == [("orphan",)]


KILLED_HALF_WAY = """
import os, signal, sqlite3, sys
from flux_memory.schema import sqlite as schema

step, db = int(sys.argv[2]), sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")

def count(statement):
    global step
    step -= 1
    if step < 0:
        os.kill(os.getpid(), signal.SIGKILL)

db.set_trace_callback(count)
schema.bring_up_to_date(db)
print("done")
"""


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_an_adoption_that_is_killed_half_way_leaves_the_file_as_it_was(path: Path, journal: str) -> None:
    """After `kill -9` at any statement of the adoption, the next opening finds the file as it was before."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
        # More than the cache holds, so that pages are written before the commit.
        for number in range(100):
            add_message(db, f"x{number}", "two", "2026-02-05T15:17:45")
    before = dump_file(path)
    outcomes = []
    for step in (4, 12, 24, 1000):
        done = subprocess.run(
            [sys.executable, "-c", KILLED_HALF_WAY, str(path), str(step)], capture_output=True, timeout=30, check=False
        )
        outcomes.append(done.returncode)
        if done.returncode:
            assert dump_file(path) == before, step
    assert outcomes == [-9, -9, -9, 0]
    assert asyncio.run(read_order(path, "one")) == ["m3", "m4", "m1", "m6"]


@pytest.mark.asyncio
async def test_a_file_of_an_older_release_is_upgraded(path: Path) -> None:
    """Recorded versions are not applied again; the missing ones are."""
    make_file_with_data(path, generation=2)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for table, column in (("sessions", "created_at"), ("sessions", "updated_at"), ("messages", "created_at")):
            db.execute(f"UPDATE {table} SET {column} = {column} || '+00:00'")
        db.execute(schema.CREATE_VERSION_TABLE)
        for step in history("sqlite")[:2]:
            db.execute(schema.INSERT_VERSION, (step.version, step.name, step.checksum, "then"))
    assert await read_order(path, "one") == ["m3", "m4", "m1", "m6"]
    assert applied_versions(path) == VERSIONS
    assert read_rows(path, "SELECT applied_at FROM flux_memory_schema LIMIT 2") == [("then",), ("then",)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            "INSERT INTO flux_memory_schema VALUES (99, 'later', 'x', '')",
            "has schema version 99 .* upgrade flux-memory",
        ),
        ("UPDATE flux_memory_schema SET checksum = 'x' WHERE version = 2", "from a file that differs"),
    ],
)
async def test_a_newer_or_a_changed_schema_is_refused(path: Path, spoil: str, says: str) -> None:
    """An old release does not write to a schema it does not know."""
    await read_order(path, "one")
    execute_in_file(path, spoil)
    await assert_refused(path, SchemaError, says)


@pytest.mark.asyncio
async def test_a_current_file_is_opened_without_a_write(path: Path) -> None:
    """Opening and reading do not wait for another process that holds the write lock."""
    make_file_with_data(path)
    await read_order(path, "one")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        version = other.execute("PRAGMA schema_version").fetchone()
        memory = ConversationMemory(path, timeout=0.3)
        assert len(await memory.get_history("one")) == 4
        with pytest.raises(BackendUnavailableError, match="another process holds the lock"):
            await memory.create_session()
        await memory.close()
        assert other.execute("PRAGMA schema_version").fetchone() == version


@pytest.mark.asyncio
async def test_handles_that_race_to_adopt_a_file_do_it_once(path: Path) -> None:
    """Concurrent first use: one handle adopts, the others wait and find it done."""
    make_file_with_data(path)
    memories = [ConversationMemory(path) for _ in range(6)]
    histories = await asyncio.gather(*(memory.get_history("one") for memory in memories))
    assert [[message["id"] for message in each] for each in histories] == [["m3", "m4", "m1", "m6"]] * 6
    await asyncio.gather(*(memory.close() for memory in memories))
    assert applied_versions(path) == VERSIONS


def test_processes_that_race_to_adopt_a_file_do_it_once(path: Path) -> None:
    """The same across processes: none fails, and none loses its message."""
    make_file_with_data(path)
    said = race_to_add("ConversationMemory", str(path))
    assert applied_versions(path) == VERSIONS
    stored = read_rows(path, "SELECT seq, content FROM messages WHERE session_id = 'one' ORDER BY seq")
    assert [seq for seq, _ in stored] == list(range(1, 9))
    assert {content for _, content in stored[4:]} == said


@pytest.mark.asyncio
@pytest.mark.skipif(LEGACY_FILE not in os.environ, reason=f"{LEGACY_FILE} names no file of the original application")
async def test_a_real_file_of_the_original_application_is_adopted(path: Path) -> None:
    """A user's file keeps every row, ordered by time."""
    shutil.copyfile(os.environ[LEGACY_FILE], path)
    sessions = read_rows(path, "SELECT id, title FROM sessions ORDER BY id")
    messages = read_rows(
        path, "SELECT session_id, id, role, content FROM messages ORDER BY session_id, created_at, rowid"
    )
    async with ConversationMemory(path) as memory:
        found = await memory.get_sessions(None)
        assert sorted((session["id"], session["title"]) for session in found) == sessions
        assert [
            (session_id, message["id"], message["role"], message["content"])
            for session_id, _ in sessions
            for message in await memory.get_history(session_id)
        ] == messages
