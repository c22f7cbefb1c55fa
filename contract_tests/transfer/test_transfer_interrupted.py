"""Tests interrupts, lost servers and cancelled calls: each is reported with advice, and nothing stays open."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from raw_postgres import OTHER_CLIENTS, connect, execute, wait_until_none
from transfer_memories import EMPTY, make_tables, move
from transfer_processes import ROUNDS_PER_KILL, seeded_random, start_command, start_migration, wait_for_lock

from flux_memory.transfer import Plan, Status, migrate, migrate_back, to_sqlite

INTERRUPTED = (
    "Interrupted. Nothing is half done: run the same command again, and it goes on to exactly the same result.\n"
)


@pytest.fixture
def path(random_file: Path) -> Path:
    """A file in random order."""
    return random_file


@pytest.mark.parametrize("direction", ["there", "back"])
def test_an_interrupt_at_any_moment_is_reported(
    path: Path, flux_memory_postgres_dsn: str, tmp_path: Path, direction: str, kills: int
) -> None:
    """Ctrl-C, also while a thread runs a statement, prints one sentence and leaves nothing behind."""
    dsn, back = flux_memory_postgres_dsn, tmp_path / "back.db"
    make_tables(dsn)
    asyncio.run(execute(dsn, *EMPTY))
    if direction == "back":
        assert move(path, dsn).status is Status.IDENTICAL

    def begin() -> subprocess.Popen[str]:
        back.unlink(missing_ok=True)
        return (
            start_migration(path, dsn)
            if direction == "there"
            else start_command("--to-sqlite", back, "--postgres-dsn", dsn)
        )

    seconds, (code, _, _) = interrupt_after(begin(), 60)
    assert code == 0
    rng = seeded_random()
    interrupts = rounds = 0
    while interrupts < kills:
        rounds += 1
        assert rounds < ROUNDS_PER_KILL * kills
        if direction == "there":
            asyncio.run(execute(dsn, *EMPTY))
        _, (code, output, errors) = interrupt_after(begin(), rng.uniform(0, seconds))
        if "Proven identical" in output:
            # It finished before the signal, or had nothing left to do.
            seconds *= 0.95
            assert errors == ""
            continue
        interrupts += 1
        assert (code, errors) == (1, INTERRUPTED)
        assert list(tmp_path.iterdir()) == []


def interrupt_after(process: subprocess.Popen[str], seconds: float) -> tuple[float, tuple[int, str, str]]:
    """Interrupt a process after some time of work.

    Returns:
        The seconds it worked, and its exit code, stdout and stderr.
    """
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Wait until it has begun to work.
        output = process.stdout.readline()
        began = time.monotonic()
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
        taken = time.monotonic() - began
        return taken, (process.returncode, output + process.stdout.read(), process.stderr.read())


def test_an_interrupted_migration_to_sqlite_waits_for_its_thread(
    path: Path, flux_memory_postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is closed after the thread that uses it has ended; otherwise the process crashes."""
    dsn = flux_memory_postgres_dsn
    asyncio.run(execute(dsn, "DROP TABLE IF EXISTS messages, session_details, sessions, feedback, flux_memory_schema"))
    assert move(path, dsn).status is Status.IDENTICAL
    finish = to_sqlite._finish
    at_work = threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        at_work.set()
        try:
            db.execute("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
        finally:
            # The connection stays open until the thread has ended.
            db.execute("SELECT 1")
            ended.set()
        finish(db)

    async def run() -> None:
        working = asyncio.create_task(migrate_back(dsn, tmp_path / "back.db"))
        await asyncio.to_thread(at_work.wait)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert ended.is_set()

    ended = threading.Event()
    monkeypatch.setattr(to_sqlite, "_finish", slow)
    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_waiting_migration_with_advice(path: Path, flux_memory_postgres_dsn: str, how: int) -> None:
    """A migration that waits for the server can be cancelled, and the next run completes."""
    dsn = flux_memory_postgres_dsn
    make_tables(dsn)

    async def interrupt() -> tuple[int, str]:
        async with connect(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            process = start_migration(path, dsn)
            await wait_for_lock(connection)
            process.send_signal(how)
            _, errors = await asyncio.to_thread(process.communicate, timeout=20)
            # The lock is still held: a migration that waited for it would run into the timeout.
            return process.returncode, errors

    code, errors = asyncio.run(interrupt())
    assert (code, errors.strip()) == (
        1,
        "Interrupted. Nothing is half done: run the same command again, and it goes on to exactly the same result.",
    )
    assert move(path, dsn).status is Status.IDENTICAL


def test_a_lost_server_is_an_error_with_advice(path: Path, flux_memory_postgres_dsn: str) -> None:
    """A connection cut during the run gives exit code 1 and a sentence, no traceback; the next run completes."""
    dsn = flux_memory_postgres_dsn
    make_tables(dsn)

    async def cut() -> tuple[int, str]:
        async with connect(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            process = start_migration(path, dsn)
            pid = await wait_for_lock(connection)
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
            _, errors = await asyncio.to_thread(process.communicate, timeout=20)
            return process.returncode, errors

    code, errors = asyncio.run(cut())
    assert code == 1
    assert errors.startswith("FAILED")
    assert "Traceback" not in errors
    assert move(path, dsn).status is Status.IDENTICAL


def test_a_cancelled_call_leaves_nothing_open(path: Path, flux_empty_database: str) -> None:
    """A cancelled call of the API leaves no transaction, connection or thread behind."""
    dsn = flux_empty_database
    make_tables(dsn)

    class CancelIn:
        def __init__(self, name: str) -> None:
            self.name = name
            self.task: asyncio.Task[Any] | None = None

        def phase(self, name: str, rows: int | None) -> None:
            if name == self.name and self.task is not None:
                self.task.cancel()

        def advance(self, rows: int) -> None:
            pass

        def say(self, line: str) -> None:
            pass

    async def cancel_in(name: str) -> None:
        watcher = CancelIn(name)
        watcher.task = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=dsn), watcher))
        with pytest.raises(asyncio.CancelledError):
            await watcher.task

    for name in ("Preflight", "Load", "Verify"):
        asyncio.run(cancel_in(name))
        asyncio.run(wait_until_none(dsn, OTHER_CLIENTS))
    assert move(path, dsn).status is Status.IDENTICAL
