"""What the bindings of the contract share: clocks and damage behind a backend's back, and the verdict of a clause."""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from raw_postgres import connected

from flux_memory.testkit import CLAUSES, MemoryContract
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.timeouts import BlockedError

Corrupt = Callable[[str, str], Awaitable[None]]


def written_at(dsn: str) -> Callable[[datetime], AbstractAsyncContextManager[None]]:
    """Return a clock for PostgreSQL. The server has the true one, so what was written gets its moment afterwards."""

    @asynccontextmanager
    async def clock_at(moment: datetime) -> AsyncIterator[None]:
        yield
        naive = moment.astimezone(UTC).replace(tzinfo=None)
        async with connected(dsn) as connection:
            await connection.execute("UPDATE messages SET created_at = $1", naive)
            await connection.execute("UPDATE sessions SET updated_at = $1", naive)

    return clock_at


def damage_postgres(dsn: str, sql: str) -> Corrupt:
    """Return a function that spoils a message; the statement takes a session's and a message's id."""

    async def corrupt(session_id: str, message_id: str) -> None:
        async with connected(dsn) as connection:
            assert await connection.execute(sql, session_id, message_id) == "UPDATE 1"

    return corrupt


def damage_sqlite(path: Path, sql: str) -> Corrupt:
    """Return a function that spoils a message; the statement takes a session's and a message's id."""

    async def corrupt(session_id: str, message_id: str) -> None:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute(sql, (session_id, message_id)).rowcount == 1
            connection.commit()

    return corrupt


def damage_reference(path: Path) -> Corrupt:
    """Return a function that spoils a message in the reference model's file."""

    def write(session_id: str, message_id: str) -> None:
        sessions = json.loads(path.read_bytes())
        for message in sessions[session_id]["messages"]:
            if message["id"] == message_id:
                message["metadata"] = "not an object"
        path.write_text(json.dumps(sessions))

    async def corrupt(session_id: str, message_id: str) -> None:
        write(session_id, message_id)

    return corrupt


async def check(clause_id: str, store: StoreUnderTest) -> None:
    """Run a clause that is a coroutine."""
    checked = CLAUSES[clause_id].test(MemoryContract(), store)
    assert checked is not None
    await checked


def verdict(clause_id: str, store: StoreUnderTest) -> BaseException | None:
    """Run one clause as pytest would, and return why it fails."""
    try:
        checked = CLAUSES[clause_id].test(MemoryContract(), store)
        if checked is not None:
            asyncio.run(_awaited(checked))
    except (Exception, pytest.fail.Exception, BlockedError) as error:  # noqa: BLE001 - a broken memory may raise anything
        return error
    finally:
        gc.collect()
    return None


async def _awaited(checked: Awaitable[None]) -> None:
    await checked
