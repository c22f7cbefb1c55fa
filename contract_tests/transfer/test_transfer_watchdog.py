"""Tests the watchdog: a migration with a lost connection ends, one with a slow server continues."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from raw_postgres import connect, fetch_rows
from transfer_memories import Trigger, make_random_file, make_tables, move, read_target
from transfer_processes import start_migration, wait_for_lock
from waiting import wait_until

from flux_memory import BackendUnavailableError
from flux_memory.testkit import Proxy
from flux_memory.testkit.servers import Server, start_server
from flux_memory.transfer import Plan, Status, migrate
from flux_memory.transfer.target import watchdog

BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
CONNECTED = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lifeline") / "chat.db"
    make_random_file(path, sessions=10, messages=200)
    return path


def test_a_server_at_work_is_waited_for(path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long statement continues while the server accepts new connections."""
    monkeypatch.setattr(watchdog, "PROBE_INTERVAL_SECONDS", 0.05)
    dsn = flux_empty_database
    make_tables(dsn)

    async def run() -> Status:
        async with connect(dsn) as other, connect(dsn) as observer:
            await other.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            migrating = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=dsn)))
            await wait_for_lock(other)
            before = await observer.fetchval(CONNECTED)

            async def asked_often() -> bool:
                return migrating.done() or await observer.fetchval(CONNECTED) > before + 4 * watchdog.MAX_SILENT_PROBES

            await wait_until(asked_often)
            await other.execute("COMMIT")
            return (await migrating).status

    assert asyncio.run(run()) is Status.IDENTICAL


def test_a_refused_connection_is_an_answer(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that refuses new connections for a while is not silent, and the migration continues."""
    monkeypatch.setattr(watchdog, "PROBE_INTERVAL_SECONDS", 0.01)
    dsn = flux_empty_database
    make_tables(dsn)

    async def run(proxy: Proxy) -> Status:
        async with connect(dsn) as other:
            await other.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            migrating = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=proxy.dsn)))
            await wait_for_lock(other)
            proxy.refuse()
            # Many times the duration of a probe.
            await asyncio.wait([migrating], timeout=0.5)
            await other.execute("COMMIT")
            return (await migrating).status

    with Proxy(dsn) as proxy:
        assert asyncio.run(run(proxy)) is Status.IDENTICAL


def test_a_silent_network_ends_a_migration(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If neither its connection nor new ones get an answer, the migration fails; `faults/` covers each phase."""
    dsn = flux_empty_database
    make_tables(dsn)
    monkeypatch.setattr(watchdog, "PROBE_INTERVAL_SECONDS", 0.1)
    with Proxy(dsn) as proxy:

        def silence() -> None:
            proxy.silence()
            monkeypatch.setattr(watchdog, "PROBE_TIMEOUT_SECONDS", 0.2)

        with pytest.raises(BackendUnavailableError, match=r"nothing has come back.*not on new connections either"):
            asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=proxy.dsn), Trigger("Load", silence)))
    assert move(path, dsn).status is Status.IDENTICAL


def test_an_interrupt_ends_a_migration_through_a_silent_network(path: Path, flux_empty_database: str) -> None:
    """A cancellation ends, although the driver waits for its ROLLBACK, and the next run completes."""
    dsn = flux_empty_database
    make_tables(dsn)

    async def interrupt(proxy: Proxy) -> tuple[int, str, float]:
        async with connect(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            process = start_migration(path, proxy.dsn)
            await wait_for_lock(connection)
            proxy.silence()
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, errors = await asyncio.to_thread(process.communicate, timeout=60)
            return process.returncode, errors, time.monotonic() - began

    with Proxy(dsn) as proxy:
        code, errors, seconds = asyncio.run(interrupt(proxy))
    assert code == 1
    assert errors.startswith("Interrupted. Nothing is half done")
    assert seconds < watchdog.PROBE_TIMEOUT_SECONDS, "the interrupt was ignored until the probe timed out"
    assert move(path, dsn).status is Status.IDENTICAL


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file larger than the buffers between the migration and its server."""
    path = tmp_path_factory.mktemp("large") / "chat.db"
    make_random_file(path, sessions=10, messages=1500)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE messages SET content = hex(randomblob(20000))")
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server whose processes the test may stop."""
    with start_server("local") as server:
        yield server


def test_a_reset_while_the_server_reads_nothing_ends_the_load(large_file: Path, server: Server) -> None:
    """A connection lost while the server reads nothing ends the load, although the driver waits for room to send."""
    dsn = server.create_database()
    make_tables(dsn)
    stopped: list[int] = []

    async def run(proxy: Proxy) -> None:
        trigger = Trigger("Load", lambda: None)

        async def backend() -> bool:
            stopped[:] = [pid for (pid,) in await fetch_rows(dsn, f"{BACKENDS} AND query LIKE 'COPY %FROM STDIN%'")]
            return bool(stopped)

        async def stuck() -> bool:
            before = trigger.rows
            await asyncio.sleep(0.3)
            return trigger.acted and trigger.rows == before

        migrating = asyncio.create_task(migrate(Plan(sqlite_path=large_file, postgres_dsn=proxy.dsn), trigger))
        await wait_until(backend)
        os.kill(stopped[0], signal.SIGSTOP)
        await wait_until(stuck)
        assert not migrating.done()
        proxy.reset()
        with pytest.raises(BackendUnavailableError, match="the connection was lost"):
            await asyncio.wait_for(migrating, 20)

    with Proxy(dsn) as proxy:
        try:
            asyncio.run(run(proxy))
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
    assert move(large_file, dsn).status is Status.IDENTICAL
    assert len(read_target(dsn)[1]) == 1500
