"""A deadline holds for an opening that is under way, and for `close()`; nothing is lost and nothing stays open."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from original_application import make_file_with_data
from postgres_proxy import PostgresProxy
from raw_postgres import OPEN, connect, wait_until_none, with_application_name
from waiting import becomes_true, wait_until

from flux_memory import (
    BackendUnavailableError,
    ConversationMemory,
    FluxMemoryError,
    OutcomeUnknownError,
    PostgresConversationMemory,
    deadline,
)
from flux_memory.cli import main

SECONDS: Final = 0.2
PATIENT: Final = 60.0
"""The timeout of the handles, which no call and no close may wait for."""
BUSY_MACHINE: Final = 15.0
"""Seconds that tell a wait for the deadline from one for the handle's timeout, on a machine that is busy."""


@contextmanager
def quick() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < BUSY_MACHINE


async def close_while_opening(memory: Any, *, joined: bool) -> None:
    """Let an opening hang, fail a call at its deadline, and close within another."""
    first = asyncio.create_task(memory.count_sessions()) if joined else None
    await asyncio.sleep(0)
    with quick(), deadline(SECONDS):
        with pytest.raises(BackendUnavailableError):
            await memory.count_sessions()
        await memory.close()
    if first is not None:
        with quick(), suppress(Exception):
            await first


LOCKS: Final = ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE")


@pytest.mark.asyncio
@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("joined", [False, True])
async def test_sqlite_closes_while_another_process_keeps_it_from_opening(path: Path, lock: str, joined: bool) -> None:
    """The thread gives up its wait for the lock; the file is adopted later, whole."""
    make_file_with_data(path)
    threads = threading.active_count()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript(lock)
        await close_while_opening(ConversationMemory(path, timeout=PATIENT), joined=joined)
        assert becomes_true(lambda: threading.active_count() <= threads)
        other.execute("ROLLBACK")
    async with ConversationMemory(path) as memory:
        assert [message["id"] for message in await memory.get_history("one")] == ["m3", "m4", "m1", "m6"]


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("full", [False, True])
def test_a_check_keeps_its_timeout(path: Path, lock: str, full: bool) -> None:
    """The file is not in WAL mode yet, so that opening it needs a lock that another process holds."""
    make_file_with_data(path)
    arguments = ["check", "--sqlite-path", str(path), "--timeout", "0.3", *(["--full"] if full else [])]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript(lock)
        with quick():
            result = CliRunner().invoke(main, arguments)
        # A reader needs no lock that BEGIN IMMEDIATE excludes.
        assert result.exit_code == (1 if full or "EXCLUSIVE" in lock else 0), result.output


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", ["startup", "authentication", "query"])
@pytest.mark.parametrize("joined", [False, True])
async def test_postgres_closes_while_a_silent_network_keeps_it_from_opening(
    flux_empty_database: str, stage: Any, joined: bool
) -> None:
    """At each stage of the opening."""
    with PostgresProxy(with_application_name(flux_empty_database)) as proxy:
        proxy.silence_at(stage)
        await close_while_opening(PostgresConversationMemory(proxy.dsn, timeout=PATIENT), joined=joined)


@pytest.mark.asyncio
async def test_a_connection_that_opens_after_the_close_is_dropped(flux_empty_database: str) -> None:
    """A slow server finishes the login when the handle is closed already."""
    dsn = with_application_name(flux_empty_database)
    with PostgresProxy(dsn) as proxy:
        proxy.slow(200)
        memory = PostgresConversationMemory(proxy.dsn, timeout=PATIENT)
        await close_while_opening(memory, joined=False)
        proxy.heal()
        await wait_until_none(flux_empty_database, OPEN)
        assert memory._pool.size == 0


@pytest.mark.asyncio
async def test_postgres_closes_while_another_upgrades_the_tables(flux_empty_database: str) -> None:
    """The opening waits for an advisory lock, and leaves the server when it is given up."""
    async with connect(flux_empty_database) as other, other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock(hashtextextended('flux_memory_schema', 0))")
        await close_while_opening(
            PostgresConversationMemory(with_application_name(flux_empty_database), timeout=PATIENT), joined=True
        )


async def close_twice_beside_a_call_that_hangs(memory: Any, session: str) -> None:
    """Begin a close that would wait for the handle's whole timeout, and another one with a deadline."""
    call = asyncio.create_task(memory.add_message(session, "user", "x"))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(memory.close())
    await asyncio.sleep(0)
    with quick():
        with deadline(SECONDS):
            await memory.close()
        await waiting
        (outcome,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(outcome, FluxMemoryError)


@pytest.mark.asyncio
async def test_a_close_in_a_hurry_shortens_one_that_waits_on_sqlite(path: Path) -> None:
    """The refused message is not stored."""
    memory = ConversationMemory(path, timeout=PATIENT)
    session = await memory.create_session()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await close_twice_beside_a_call_that_hangs(memory, session)
        other.execute("ROLLBACK")
        assert other.execute("SELECT count(*) FROM messages").fetchone() == (0,)


@pytest.mark.asyncio
async def test_a_close_in_a_hurry_shortens_one_that_waits_on_postgres(flux_empty_database: str) -> None:
    """The connection that waited is gone afterwards."""
    memory = PostgresConversationMemory(with_application_name(flux_empty_database), timeout=PATIENT)
    session = await memory.create_session()
    async with connect(flux_empty_database) as other, other.transaction():
        await other.execute("LOCK TABLE messages")
        await close_twice_beside_a_call_that_hangs(memory, session)
    await wait_until_none(flux_empty_database, OPEN)


@pytest.mark.asyncio
async def test_a_write_cut_off_by_a_close_may_be_stored_on_postgres(flux_memory_postgres_dsn: str) -> None:
    """Its statement was sent and waits for a lock: that it is not stored would be a promise nothing can keep."""
    dsn = flux_memory_postgres_dsn
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with connect(dsn) as other, connect(dsn) as watcher:
        memory = PostgresConversationMemory(dsn, timeout=PATIENT)
        session = await memory.create_session()
        async with other.transaction():
            await other.execute("SELECT FROM sessions FOR UPDATE")
            add = asyncio.create_task(memory.add_message(session, "user", "text"))
            await wait_until(lambda: watcher.fetchval(waiting))
            with quick(), deadline(SECONDS):
                await memory.close()
            with pytest.raises(OutcomeUnknownError, match="closed by close"):
                await add
