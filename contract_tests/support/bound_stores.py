"""Parts that the bindings of the contract share: clocks, functions that corrupt a row, and the verdict of a clause."""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from raw_postgres import connect, fetch_rows

from flux_memory import Memory
from flux_memory.testkit import ALL, CLAUSES, Capability, MemoryContract, Proxied, ReferenceStore
from flux_memory.testkit.contract.routes import Routes
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.reference.networked import ReferenceServer
from flux_memory.testkit.timeouts import BlockedError

REMEMBER_ROWS: Final = (
    "CREATE TEMP TABLE old_sessions AS SELECT id, updated_at, xmin AS version FROM sessions",
    "CREATE TEMP TABLE old_messages AS SELECT session_id, id FROM messages",
    "CREATE TEMP TABLE old_feedback AS SELECT id FROM feedback",
)
DATE_NEW_ROWS: Final = (
    """
    UPDATE messages SET created_at = greatest(
        $1, (SELECT updated_at FROM old_sessions AS old WHERE old.id = messages.session_id)
    )
    WHERE (session_id, id) NOT IN (SELECT session_id, id FROM old_messages)
    """,
    """
    UPDATE sessions SET updated_at = greatest($1, old.updated_at)
    FROM old_sessions AS old
    WHERE old.id = sessions.id AND old.version <> sessions.xmin
    """,
    "UPDATE sessions SET created_at = $1, updated_at = $1 WHERE id NOT IN (SELECT id FROM old_sessions)",
    "UPDATE feedback SET created_at = $1 WHERE id NOT IN (SELECT id FROM old_feedback)",
)
"""As the library: a time is never earlier than the session's last change."""

Corrupt = Callable[[str, str], Awaitable[None]]
ReadRaw = Callable[[str, str], Awaitable[dict[str, Any] | None]]

SELECT_RAW: Final = "SELECT role, content, metadata FROM messages"


def make_postgres_clock(dsn: str) -> Callable[[datetime], AbstractAsyncContextManager[None]]:
    """Return a clock for PostgreSQL. The server sets the times, so rows get the wanted time after they are written."""

    @asynccontextmanager
    async def clock_at(moment: datetime) -> AsyncIterator[None]:
        async with connect(dsn) as connection:
            for statement in REMEMBER_ROWS:
                await connection.execute(statement)
            yield
            for statement in DATE_NEW_ROWS:
                await connection.execute(statement, moment.astimezone(UTC).replace(tzinfo=None))

    return clock_at


def make_postgres_corrupter(dsn: str, sql: str) -> Corrupt:
    """Return a function that corrupts a message; the statement takes a session id and a message id."""

    async def corrupt(session_id: str, message_id: str) -> None:
        async with connect(dsn) as connection:
            assert await connection.execute(sql, session_id, message_id) == "UPDATE 1"

    return corrupt


def make_sqlite_corrupter(path: Path, sql: str) -> Corrupt:
    """Return a function that corrupts a message; the statement takes a session id and a message id."""

    async def corrupt(session_id: str, message_id: str) -> None:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute(sql, (session_id, message_id)).rowcount == 1
            connection.commit()

    return corrupt


def make_postgres_reader(dsn: str) -> ReadRaw:
    """Return a function that reads a message as the server holds it."""

    async def read(session_id: str, message_id: str) -> dict[str, Any] | None:
        rows = await fetch_rows(dsn, f"{SELECT_RAW} WHERE session_id = $1 AND id = $2", session_id, message_id)
        return _decoded(rows)

    return read


def make_sqlite_reader(path: Path, *, session: str = "session_id") -> ReadRaw:
    """Return a function that reads a message as the file holds it; `session` names the column of the session's id."""

    async def read(session_id: str, message_id: str) -> dict[str, Any] | None:
        with closing(sqlite3.connect(path)) as connection:
            values = (session_id, message_id)
            return _decoded(connection.execute(f"{SELECT_RAW} WHERE {session} = ? AND id = ?", values).fetchall())

    return read


def make_reference_reader(path: Path) -> ReadRaw:
    """Return a function that reads a message as the reference model's file holds it."""

    def find(session_id: str, message_id: str) -> dict[str, Any] | None:
        sessions = json.loads(path.read_bytes())
        return next((each for each in sessions[session_id]["messages"] if each["id"] == message_id), None)

    async def read(session_id: str, message_id: str) -> dict[str, Any] | None:
        return find(session_id, message_id)

    return read


def _decoded(rows: list[tuple[Any, ...]]) -> dict[str, Any] | None:
    for role, content, metadata in rows:
        return {"role": role, "content": content, "metadata": json.loads(metadata)}
    return None


def make_reference_corrupter(path: Path) -> Corrupt:
    """Return a function that corrupts a message in the reference model's file."""

    def write(session_id: str, message_id: str) -> None:
        sessions = json.loads(path.read_bytes())
        for message in sessions[session_id]["messages"]:
            if message["id"] == message_id:
                message["metadata"] = "not an object"
        path.write_text(json.dumps(sessions))

    async def corrupt(session_id: str, message_id: str) -> None:
        write(session_id, message_id)

    return corrupt


async def run_async_clause(clause_id: str, store: StoreUnderTest) -> None:
    """Run an asynchronous clause."""
    checked = CLAUSES[clause_id].test(MemoryContract(), store)
    assert checked is not None
    await checked


def run_clause(clause_id: str, store: StoreUnderTest) -> BaseException | None:
    """Run one clause as pytest would; return the exception if it fails. It must be checked: a skip is an error."""
    try:
        checked = CLAUSES[clause_id].test(MemoryContract(), store)
        if checked is not None:
            asyncio.run(_await(checked))
    except pytest.skip.Exception as skipped:
        raise AssertionError(f"{clause_id} was not checked: {skipped}") from skipped
    except (Exception, pytest.fail.Exception, BlockedError) as error:  # noqa: BLE001 - a broken memory may raise anything
        return error
    finally:
        gc.collect()
    return None


def run_over_network(
    clause_id: str, memory: Callable[[tuple[str, int]], Memory], claimed: Capability = ALL
) -> BaseException | None:
    """Run a clause on clients of a server of its own; return the exception if it fails."""
    with ReferenceServer(ReferenceStore()) as server, Routes(Proxied(server.address, memory)) as routes:
        store = StoreUnderTest(lambda: memory(server.address), routes=routes, capabilities=claimed)
        return run_clause(clause_id, store)


async def _await(checked: Awaitable[None]) -> None:
    await checked


def make_reference_factory(memory: type[Any]) -> Callable[[], Memory]:
    """Return a factory of handles on one store of the reference model, or of a variant of it."""
    store = ReferenceStore()
    return lambda: memory(store)
