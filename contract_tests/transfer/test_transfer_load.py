"""Tests loading into an empty target and merging into a filled one, also beside other writers."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from original_application import add_sessions, make_file, make_file_with_data
from raw_postgres import connect, execute, fetch_rows, make_original
from small_disk import limit_file_size
from transfer_memories import (
    Trigger,
    insert_message,
    insert_session,
    make_random_file,
    make_tables,
    move,
    read_target,
    run_concurrently,
)

from flux_memory import ConversationMemory, PostgresConversationMemory
from flux_memory.errors import MigrationError
from flux_memory.transfer import Mode, Plan, Status, migrate

DEFINITIONS = """
SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid), convalidated FROM pg_constraint
WHERE conrelid IN ('sessions'::regclass, 'session_details'::regclass, 'messages'::regclass)
UNION ALL
SELECT tablename::text, indexname::text, indexdef, TRUE FROM pg_indexes
WHERE tablename IN ('sessions', 'session_details', 'messages')
ORDER BY 1, 2, 3
"""

WHEN = "2026-02-05T15:17:45.407069"


def test_the_keys_come_back_as_they_were(path: Path, target: str) -> None:
    """After the load every key and index, also one made by hand, has the same definition as before."""
    make_tables(target)
    asyncio.run(execute(target, "CREATE INDEX mine ON messages (lower(role)) WHERE seq > 1"))
    asyncio.run(execute(target, "CREATE INDEX titles ON session_details (lower(title))"))
    before = asyncio.run(fetch_rows(target, DEFINITIONS))
    make_file_with_data(path)
    report = move(path, target)
    assert report.status is Status.IDENTICAL
    assert report.moved is not None
    assert report.moved.messages == 6
    assert asyncio.run(fetch_rows(target, DEFINITIONS)) == before


def test_the_library_continues_the_counters(path: Path, target: str) -> None:
    """The library continues the counters: the next message has the next number."""
    make_file_with_data(path)
    move(path, target)

    async def go_on() -> list[str]:
        async with PostgresConversationMemory(target, min_size=1) as memory:
            await memory.add_message("one", "user", "next", message_id="next")
            return [row["id"] for row in await memory.get_history("one")]

    assert asyncio.run(go_on()) == ["m3", "m4", "m1", "m6", "next"]
    report = move(path, target, mode=Mode.VERIFY)
    assert report.status is Status.CONTAINED
    assert report.verification is not None
    assert report.verification.added_since == 1


def test_a_second_run_moves_only_what_is_new(path: Path, target: str) -> None:
    """Stored rows are skipped; new messages of a stored session continue its counter."""
    make_file_with_data(path)
    move(path, target)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "m7", "one", when="2026-02-05T15:17:09.000000")
        db.execute("UPDATE sessions SET updated_at = '2026-02-05T16:00:00' WHERE id = 'one'")
        add_sessions(db, "three")
    report = move(path, target, batch_size=2)
    assert report.status is Status.IDENTICAL
    assert report.moved is not None
    moved = report.moved
    assert (moved.sessions, moved.messages, moved.skipped_sessions, moved.skipped_messages) == (1, 1, 2, 6)
    sessions, messages = read_target(target)
    assert [(row[0], row[6]) for row in sessions] == [("one", 5), ("three", 0), ("two", 2)]
    assert [row[1] for row in messages if row[0] == "one"] == ["m3", "m4", "m1", "m6", "m7"]


@pytest.mark.parametrize("column", ["role", "content", "metadata", "created_at"])
def test_a_message_with_another_content_is_a_conflict(path: Path, target: str, column: str) -> None:
    """A conflict is reported and never overwritten, and the exit code shows it."""
    make_file_with_data(path)
    move(path, target)
    value = {"metadata": '{"n": 2}', "created_at": "2026-01-01"}.get(column, "changed")
    asyncio.run(execute(target, f"UPDATE messages SET {column} = '{value}' WHERE id = 'm1'"))
    before = read_target(target)
    report = move(path, target)
    assert (report.status, report.exit_code) == (Status.DIFFERENT, 1)
    assert report.moved is not None
    assert report.moved.first_conflicts == ["message m1"]
    assert report.verification is not None
    assert report.verification.first_differences == ["message differs: m1 of session one"]
    assert read_target(target) == before


def test_no_space_for_differences_is_reported(path: Path, target: str) -> None:
    """A full temporary directory is reported as such, not as a fault of the server or the network."""
    make_random_file(path, sessions=200, messages=200)
    move(path, target)
    asyncio.run(execute(target, "UPDATE session_details SET title = 'changed'"))
    limited = ExitStack()
    verifying = Trigger("Verify", lambda: limited.enter_context(limit_file_size()))
    with limited, pytest.raises(MigrationError, match=r"cannot hold the rows on their way.*TMPDIR"):
        asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=target, mode=Mode.VERIFY), verifying))


@pytest.mark.parametrize("column", ["title", "metadata", "user_id", "created_at"])
def test_a_session_with_another_content_keeps_its_messages_back(path: Path, target: str, column: str) -> None:
    """Messages are not added to a session in conflict, which may belong to another user."""
    make_file_with_data(path)
    make_tables(target)
    value = {"metadata": '{"n": 2}', "created_at": "2026-01-01"}.get(column, "changed")
    table = "session_details" if column in {"title", "metadata"} else "sessions"
    asyncio.run(
        execute(
            target,
            f"INSERT INTO sessions (id, user_id, created_at, updated_at) VALUES ('one', '', '{WHEN}', '{WHEN}')",
            "INSERT INTO session_details (session_id, title, metadata) "
            "VALUES ('one', 'title of one', '{\"lang\": \"ko\"}')",
            f"UPDATE {table} SET {column} = '{value}'",
        )
    )
    report = move(path, target, batch_size=2)
    assert report.status is Status.DIFFERENT
    assert report.moved is not None
    moved = report.moved
    assert (moved.sessions, moved.messages, moved.conflicting_sessions, moved.held_back) == (1, 2, 1, 4)
    assert {row[0] for row in read_target(target)[1]} == {"two"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("DELETE FROM messages WHERE id = 'm3'", "message missing: m3 of session one"),
        ("DELETE FROM sessions WHERE id = 'two'", "session missing: two with 2 messages"),
        ("UPDATE session_details SET title = 'x' WHERE session_id = 'one'", "session's title differs: one"),
        ("UPDATE session_details SET metadata = '{}' WHERE session_id = 'one'", "session's metadata differs: one"),
        ("DELETE FROM session_details WHERE session_id = 'one'", "session's title differs: one"),
        ("UPDATE sessions SET updated_at = now() WHERE id = 'one'", "session's updated_at differs: one"),
        ("UPDATE messages SET seq = 9 WHERE id = 'm3'", "message out of order: m4 of session one"),
        ("UPDATE sessions SET message_count = 9 WHERE id = 'one'", "message_count differs"),
        (
            "UPDATE messages SET seq = seq + 100 WHERE session_id = 'one'",
            "seq does not count the messages from 1 on: one",
        ),
        ("UPDATE messages SET seq = 0 WHERE id = 'm3'", "seq does not count the messages from 1 on: one"),
        (
            "ALTER TABLE sessions DROP CONSTRAINT sessions_pkey CASCADE",
            "key missing: ALTER TABLE sessions ADD PRIMARY KEY (id)",
        ),
        (
            "ALTER TABLE messages DROP CONSTRAINT messages_pkey",
            "key missing: ALTER TABLE messages ADD PRIMARY KEY (session_id, seq)",
        ),
        (
            "ALTER TABLE messages DROP CONSTRAINT messages_session_id_id_key; CREATE UNIQUE INDEX ON messages (id)",
            "key missing: ALTER TABLE messages ADD UNIQUE (session_id, id)",
        ),
        (
            "ALTER TABLE messages DROP CONSTRAINT messages_session_id_fkey",
            "key missing: ALTER TABLE messages ADD FOREIGN KEY (session_id)",
        ),
        (
            "ALTER TABLE session_details DROP CONSTRAINT session_details_pkey",
            "key missing: ALTER TABLE session_details ADD PRIMARY KEY (session_id)",
        ),
        (
            "ALTER TABLE session_details DROP CONSTRAINT session_details_session_id_fkey",
            "key missing: ALTER TABLE session_details ADD FOREIGN KEY (session_id)",
        ),
        ("ALTER TABLE messages DISABLE TRIGGER ALL", "key missing: ALTER TABLE messages ADD FOREIGN KEY (session_id)"),
        (
            "SET session_replication_role = replica; UPDATE messages SET session_id = 'gone' WHERE id = 'm1'",
            "messages without their session: gone",
        ),
        ("UPDATE messages SET metadata = '{\"n\": 1}' WHERE id = 'm3'", "message differs: m3 of session one"),
        ("UPDATE messages SET created_at = created_at + interval '1 us' WHERE id = 'm3'", "message differs: m3"),
        ("UPDATE messages SET content = content || ' ' WHERE id = 'm3'", "message differs: m3 of session one"),
    ],
)
def test_verification_sees_every_kind_of_damage(path: Path, target: str, damage: str, says: str) -> None:
    """Verification compares content, not counts, and names each difference."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(execute(target, damage))
    report = move(path, target, mode=Mode.VERIFY)
    assert (report.status, report.exit_code) == (Status.DIFFERENT, 1)
    assert report.verification is not None
    assert any(found.startswith(says) for found in report.verification.first_differences)


@pytest.mark.parametrize("generation", [1, 2])
def test_the_original_applications_tables_are_added_to(path: Path, target: str, generation: int) -> None:
    """PostgreSQL tables of the original application are upgraded; their rows are kept and added to."""
    asyncio.run(make_original(target, generation=generation))
    kept = asyncio.run(fetch_rows(target, "SELECT count(*) FROM messages"))[0][0]
    assert kept
    make_random_file(path, sessions=3, messages=10)
    report = move(path, target)
    assert report.status is Status.CONTAINED
    assert report.verification is not None
    assert report.verification.target_messages == kept + 10


def test_several_migrations_at_once_are_one(path: Path, target: str) -> None:
    """Concurrent migrations wait for each other; each proves the same result."""
    make_random_file(path, sessions=20, messages=300)
    reports = run_concurrently(*(lambda: migrate(Plan(sqlite_path=path, postgres_dsn=target)) for _ in range(4)))
    assert {report.status for report in reports} == {Status.IDENTICAL}
    sessions, messages = read_target(target)
    assert (len(sessions), len(messages)) == (20, 300)


def test_migrations_into_a_populated_target_at_once_are_one(path: Path, target: str) -> None:
    """Two merges and an application that add to the same sessions lose nothing."""
    make_random_file(path, sessions=5, messages=200)
    with closing(make_file(path.with_name("some.db"), generation=2)) as db:
        insert_session(db, "other")
    move(path.with_name("some.db"), target)

    async def application() -> int:
        added = 0
        async with PostgresConversationMemory(target) as memory:
            while not stop.is_set():
                for session in await memory.get_sessions():
                    await memory.add_message(session["id"], "user", f"added {added}", message_id=f"added-{added}")
                    added += 1
        return added

    async def migrations() -> list[Any]:
        plans = [
            Plan(sqlite_path=path, postgres_dsn=target, batch_size=7),
            Plan(sqlite_path=path, postgres_dsn=target, batch_size=11),
        ]
        try:
            return await asyncio.gather(*(migrate(plan) for plan in plans))
        finally:
            stop.set()

    stop = asyncio.Event()
    reports, added = run_concurrently(migrations, application)
    assert {report.status for report in reports} == {Status.CONTAINED}
    sessions, messages = read_target(target)
    assert len(messages) == 200 + added
    assert sum(row[6] for row in sessions) == len(messages)


def test_an_application_writes_to_the_source_meanwhile(path: Path, target: str) -> None:
    """Writes before the snapshot are moved and proven; a second run moves the rest; nothing is lost."""
    stop = asyncio.Event()
    written: list[str] = []

    async def application(memory: ConversationMemory) -> None:
        while not stop.is_set():
            written.append(await memory.add_message("busy", "user", f"message {len(written)}"))

    async def migrations() -> list[Status]:
        async with ConversationMemory(path) as memory:
            await memory.create_session(session_id="busy")
            writing = asyncio.create_task(application(memory))
            statuses = [(await migrate(Plan(sqlite_path=path, postgres_dsn=target))).status for _ in range(3)]
            stop.set()
            await writing
            statuses.append((await migrate(Plan(sqlite_path=path, postgres_dsn=target))).status)
        return statuses

    assert set(asyncio.run(migrations())) == {Status.IDENTICAL}
    assert [row[1] for row in read_target(target)[1]] == written


def test_a_lock_that_is_never_released_is_named(path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names an application's open transaction as the reason."""
    monkeypatch.setattr("flux_memory.transfer.target.load._LOCK_TIMEOUT", "SET LOCAL lock_timeout = '100ms'")
    make_file_with_data(path)
    make_tables(target)

    async def work() -> None:
        async with connect(target) as connection, connection.transaction():
            await connection.fetch("SELECT * FROM messages")
            await migrate(Plan(sqlite_path=path, postgres_dsn=target))

    with pytest.raises(MigrationError, match="pg_stat_activity"):
        asyncio.run(work())
    assert read_target(target) == ([], [])
