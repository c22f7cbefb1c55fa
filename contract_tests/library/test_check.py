"""Tests the connection check: its findings are right, it changes nothing, and the full check cleans up."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from original_application import make_file_with_data
from raw_postgres import connect, execute, make_original
from raw_postgres import dump_database as postgres_contents
from raw_sqlite import execute_in_file

from flux_memory import ConversationMemory, PostgresConversationMemory
from flux_memory.errors import BackendUnavailableError, FluxMemoryError, SchemaError
from flux_memory.health import CheckReport, check_methods, check_postgres, check_sqlite
from flux_memory.schema import history

NEWEST = {dialect: history(dialect)[-1].version for dialect in ("sqlite", "postgres")}
METHODS = [
    "create_session",
    "add_message",
    "add_messages",
    "get_history",
    "get_message",
    "update_session_title",
    "get_session",
    "update_session",
    "pop_message",
    "fork_session",
    "get_sessions",
    "count_sessions",
    "delete_session",
    "feedback.add",
    "feedback.get",
    "feedback.stats",
    "feedback.delete",
    "delete_sessions",
]


def read_files(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in directory.iterdir()}


@pytest.mark.asyncio
async def test_a_missing_file_is_not_created(path: Path) -> None:
    """A check of a new installation announces the file and does not create it."""
    report = await check_sqlite(str(path), 10)
    assert report.backend == "sqlite"
    assert report.target == f"would be created at {path}"
    assert report.schema == "none yet: created at first use"
    assert (report.sessions, report.messages, report.round_trip_ms) == (0, 0, None)
    assert read_files(path.parent) == {}


@pytest.mark.asyncio
@pytest.mark.parametrize("generation", [1, 2])
async def test_a_file_of_the_original_application_is_only_looked_at(path: Path, generation: int) -> None:
    """The check describes and counts the data it would adopt, and leaves every byte unchanged."""
    make_file_with_data(path, generation=generation)
    before = read_files(path.parent)
    report = await check_sqlite(str(path), 10)
    assert report.schema == f"the original application's, generation {generation}: adopted in place at first use"
    assert (report.sessions, report.messages) == (2, 6)
    assert read_files(path.parent) == before


@pytest.mark.asyncio
async def test_a_current_file_is_counted(path: Path) -> None:
    """Contents, versions and a round trip are reported; no file is left beside the database."""
    async with ConversationMemory(path) as memory:
        session = await memory.create_session()
        await memory.add_message(session, "user", "x")
    before = read_files(path.parent)
    report = await check_sqlite(str(path), 10)
    assert (report.target, report.schema) == (str(path), f"version {NEWEST['sqlite']}, current")
    assert (report.sessions, report.messages) == (1, 1)
    assert report.server == f"SQLite {sqlite3.sqlite_version}"
    assert report.round_trip_ms is not None
    assert report.round_trip_ms > 0
    assert read_files(path.parent) == before


@pytest.mark.asyncio
async def test_a_file_in_use_is_counted(path: Path) -> None:
    """Messages that are still in the write-ahead log of a running application are counted."""
    async with ConversationMemory(path) as memory:
        await memory.create_session()
        assert (await check_sqlite(str(path), 10)).sessions == 1


@pytest.mark.asyncio
async def test_a_store_in_memory_has_no_description() -> None:
    """`:memory:` names no file, so there is nothing to describe."""
    report = await check_sqlite(":memory:", 10)
    assert (report.target, report.schema) == (":memory:", "none yet: created at first use")


@pytest.mark.asyncio
async def test_an_empty_file_has_no_schema_yet(path: Path) -> None:
    """An empty file, as `touch` creates it, is a new installation."""
    await asyncio.to_thread(path.touch)
    report = await check_sqlite(str(path), 10)
    assert report.schema == "none yet: created at first use"
    assert report.round_trip_ms is not None


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("INSERT INTO flux_memory_schema VALUES (99, 'later', 'x', '')", "upgrade flux-memory"),
        ("UPDATE flux_memory_schema SET checksum = 'x'", "from a file that differs"),
    ],
)
async def test_a_schema_that_would_be_refused_is_refused_here_too(path: Path, spoil: str, says: str) -> None:
    """The check finds every schema that the application would refuse."""
    async with ConversationMemory(path) as memory:
        await memory.count_sessions()
    execute_in_file(path, spoil)
    with pytest.raises(SchemaError, match=says):
        await check_sqlite(str(path), 10)


@pytest.mark.asyncio
async def test_a_database_is_only_looked_at(flux_empty_database: str) -> None:
    """A fresh, an original and a current database are described and counted, not changed."""
    report = await check_postgres(flux_empty_database, 10)
    assert report.schema == "none yet: created at first use"
    assert report.server.startswith("PostgreSQL 1")
    assert report.pool == "2 of 10 connections open"
    assert ":***@" in report.target
    assert await postgres_contents(flux_empty_database) == []
    await make_original(flux_empty_database)
    before = await postgres_contents(flux_empty_database)
    report = await check_postgres(flux_empty_database, 10)
    assert report.schema == "the original application's, generation 1: adopted in place at first use"
    assert (report.sessions, report.messages) == (2, 6)
    assert await postgres_contents(flux_empty_database) == before
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.count_sessions()
    report = await check_postgres(flux_empty_database, 10)
    assert (report.schema, report.sessions, report.messages) == (f"version {NEWEST['postgres']}, current", 2, 6)
    assert report.round_trip_ms is not None
    await execute(flux_empty_database, "UPDATE flux_memory_schema SET checksum = 'x'")
    with pytest.raises(SchemaError, match="from a file that differs"):
        await check_postgres(flux_empty_database, 10)


@pytest.mark.asyncio
async def test_a_server_that_does_not_answer_ends_the_check() -> None:
    """A port that accepts connections and never answers, as behind some firewalls, ends the check in time."""
    release = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BackendUnavailableError, match=r"no connection within 0\.1 s"):
            await check_postgres(f"postgresql://u:secret@127.0.0.1:{port}/db?sslmode=disable", 0.3)
        release.set()


@pytest.mark.asyncio
async def test_a_lock_that_blocks_the_check_is_reported_as_a_lock(flux_empty_database: str) -> None:
    """A statement that waits for a lock is not reported as a lack of connections: the message says where to look."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.count_sessions()
    async with connect(flux_empty_database) as other, other.transaction():
        await other.execute("LOCK TABLE sessions")
        with pytest.raises(BackendUnavailableError, match=r"did not answer within 0\.5 s; look for locks"):
            await check_postgres(flux_empty_database, 0.5)


@pytest.fixture(params=["sqlite", "postgres"])
def open_memory(request: pytest.FixtureRequest, path: Path) -> Iterator[Any]:
    """A function that opens a memory on either backend."""
    if request.param == "sqlite":
        yield lambda: ConversationMemory(path)
    else:
        dsn = request.getfixturevalue("flux_memory_postgres_dsn")
        yield lambda: PostgresConversationMemory(dsn)


@pytest.mark.asyncio
async def test_the_full_check_calls_every_method_and_leaves_nothing(open_memory: Any) -> None:
    """Each public method but `clear_all` runs on a scratch session; existing data stays, the scratch session goes."""
    async with open_memory() as memory:
        kept = await memory.create_session("kept", {"check": True})
        await memory.add_message(kept, "user", "kept")
        before = await memory.get_sessions()
        await memory.feedback.add(kept, 1)
        entries = await memory.feedback.get()
        report = CheckReport("either", "")
        await check_methods(memory, report)
        assert report.full == METHODS
        assert await memory.get_sessions() == before
        assert await memory.feedback.get() == entries


class Forgetful(ConversationMemory):
    """A backend with a bug: titles do not change."""

    async def update_session_title(self, session_id: str, title: str) -> None:
        """Do nothing."""


@pytest.mark.asyncio
async def test_the_full_check_reports_a_method_that_does_not_keep_its_promise(path: Path) -> None:
    """Stored values are read back and compared; the scratch session is deleted in any case."""
    async with Forgetful(path) as memory:
        report = CheckReport("sqlite", "")
        with pytest.raises(FluxMemoryError, match=r"get_session\(\) returned other data than was stored"):
            await check_methods(memory, report)
        assert report.full == METHODS[:6]
        assert await memory.count_sessions() == 0
