"""Tests of feedback that need the file itself: upgrades, names that are taken, triggers, damaged rows, erasures."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flux_memory import BackendUnavailableError, ConversationMemory, FluxMemoryError, SchemaError, deadline
from flux_memory.health import check_sqlite
from flux_memory.schema import history
from flux_memory.schema import sqlite as schema


def make_version(path: Path, version: int) -> None:
    """Create a file as an earlier release left it, with one session."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for step in history("sqlite")[:version]:
            db.executescript(step.sql)
        details = "" if version >= 6 else ", title, metadata"
        values = "" if version >= 6 else ", 't', '{}'"
        moment = "2026-01-01T00:00:00.000000+00:00"
        db.execute(
            f"INSERT INTO sessions (id, created_at, updated_at{details}) VALUES ('s', ?, ?{values})", (moment,) * 2
        )
        if version > 2:
            db.execute(schema.CREATE_VERSION_TABLE)
            for step in history("sqlite")[:version]:
                db.execute(schema.INSERT_VERSION, (step.version, step.name, step.checksum, moment))


@pytest.mark.asyncio
@pytest.mark.parametrize("version", [1, 2, 5, 6])
async def test_each_version_is_upgraded(version: int, tmp_path: Path) -> None:
    """The table is there after the first use, and conversations are as before."""
    path = tmp_path / "chat.db"
    make_version(path, version)
    assert (await check_sqlite(str(path), 10)).feedback == 0
    async with ConversationMemory(path) as memory:
        assert await memory.count_sessions() == 1
        added = await memory.feedback.add("s", 1)
        assert [entry["feedback_id"] for entry in await memory.feedback.get()] == [added]
    found = await check_sqlite(str(path), 10)
    assert (found.schema, found.feedback) == ("version 7, current", 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("version", [2, 6])
async def test_a_taken_name_is_refused(version: int, tmp_path: Path) -> None:
    """An application's own table is neither used nor changed."""
    path = tmp_path / "chat.db"
    make_version(path, version)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE feedback (stars INTEGER)")
    async with ConversationMemory(path) as memory:
        with pytest.raises(SchemaError, match="the table 'feedback' has a name that flux-memory needs; rename it"):
            await memory.count_sessions()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("ALTER TABLE feedback RENAME TO reviews")
    async with ConversationMemory(path) as memory:
        await memory.feedback.add("s", 1)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("DROP TABLE feedback", "the table 'feedback' is missing"),
        ("DROP INDEX feedback_by_time", "the index 'feedback_by_time' is missing"),
        ("CREATE UNIQUE INDEX once ON feedback(session_id)", "would refuse what flux-memory stores"),
        ("CREATE TRIGGER own AFTER INSERT ON feedback BEGIN SELECT 1; END", "could change or drop what is stored"),
    ],
)
async def test_a_changed_table_is_refused(damage: str, says: str, tmp_path: Path) -> None:
    """Each opening compares the table with the one that the schema files create."""
    path = tmp_path / "chat.db"
    async with ConversationMemory(path) as memory:
        await memory.feedback.add("s", 1)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(damage)
    async with ConversationMemory(path) as memory:
        with pytest.raises(SchemaError, match=says):
            await memory.feedback.get()


@pytest.mark.asyncio
@pytest.mark.parametrize("event", ["INSERT", "DELETE"])
async def test_a_trigger_that_is_added_to_an_open_file_is_noticed(event: str, tmp_path: Path) -> None:
    """A write that a trigger drops is not acknowledged."""
    path = tmp_path / "chat.db"
    async with ConversationMemory(path) as memory:
        await memory.create_session(session_id="s", user_id="ann")
        await memory.feedback.add("s", 1, feedback_id="f")
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"CREATE TRIGGER own BEFORE {event} ON feedback BEGIN SELECT raise(IGNORE); END")
        calls = (
            [memory.feedback.add("s", 1)]
            if event == "INSERT"
            else [memory.feedback.delete("f"), memory.delete_sessions(user_id="ann"), memory.clear_all()]
        )
        for call in calls:
            with pytest.raises(FluxMemoryError, match="drop a trigger"):
                await call


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "damage",
    ["metadata = '['", "created_at = 'yesterday'", "comment = x'ff'", "metadata = '[]'", "session_id = x'00ff'"],
)
async def test_a_damaged_entry_is_named(damage: str, tmp_path: Path) -> None:
    """One damaged row raises an error that names it, and the others can be read."""
    path = tmp_path / "chat.db"
    async with ConversationMemory(path) as memory:
        for name in "fg":
            await memory.feedback.add(name, 1, feedback_id=name)
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"UPDATE feedback SET {damage} WHERE id = 'f'")
        with pytest.raises(FluxMemoryError, match="feedback 'f' cannot be read"):
            await memory.feedback.get()
        assert [entry["feedback_id"] for entry in await memory.feedback.get(session_id="g")] == ["g"]
        await memory.feedback.delete("f")
        assert len(await memory.feedback.get()) == 1


@pytest.mark.asyncio
async def test_a_large_erasure_is_completed_by_repeating_it(tmp_path: Path) -> None:
    """It works in batches within its deadline; what a call leaves, the next one erases."""
    path = tmp_path / "chat.db"
    async with ConversationMemory(path) as memory:
        await memory.create_session(session_id="s", user_id="ann")
        await memory.feedback.add("s", 1)
        await memory.delete_session("s")
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(
                "WITH RECURSIVE n (at) AS (SELECT 1 UNION ALL SELECT at + 1 FROM n WHERE at < 20000)"
                " INSERT INTO feedback SELECT id || at, session_id, NULL, user_id, 1, '', NULL, '{}', created_at"
                " FROM feedback, n"
            )
        calls = 0
        while True:
            calls += 1
            try:
                with deadline(0.03):
                    assert await memory.delete_sessions(user_id="ann") == 0
            except BackendUnavailableError:
                continue
            break
        assert calls > 1
        assert await memory.feedback.get() == []
