"""A migration that is killed at any point is completed by a second run, to exactly the same result."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from raw_postgres import connected, execute, rows
from test_transfer_load import make_tables
from transfer_memories import everything, make_random, move

from flux_memory.transfer import Plan, Status, migrate

# The migration kills itself after so many rows of so many reports, or a clock does after so many seconds.
CHILD = """
import asyncio, os, signal, sys, threading
from pathlib import Path
from flux_memory.transfer import Plan, migrate
path, dsn, batch, rows, seconds = sys.argv[1:]
class Watcher:
    left = int(rows)
    def phase(self, name, rows): self.advance(1)
    def say(self, line): pass
    def advance(self, rows):
        self.left -= rows
        if self.left < 0: os.kill(os.getpid(), signal.SIGKILL)
async def main():
    print("begun", flush=True)
    if float(seconds): threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL)).start()
    await migrate(Plan(Path(path), dsn, batch_size=int(batch)), Watcher())
asyncio.run(main())
os._exit(0)
"""
COMMAND = "from flux_memory.migrate_command import migrate; migrate()"
OTHER = "INSERT INTO sessions (id, created_at, updated_at) VALUES ('kept', '2026-01-01', '2026-01-01')"
POINTS = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupted") / "chat.db"
    make_random(path, sessions=40, messages=3000)
    return path


def killed(path: Path, dsn: str, *, rows: int = 10**9, seconds: float = 0.0) -> bool:
    """Run a migration that is to be killed, and tell whether it was."""
    command = [sys.executable, "-c", CHILD, str(path), dsn, "50", str(rows), str(seconds)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL


def points(total_rows: int, total_seconds: float) -> list[dict[str, Any]]:
    rng = random.Random(os.environ.get("FLUX_MEMORY_TRANSFER_SEED", "7"))
    by_rows = [{"rows": rng.randrange(total_rows)} for _ in range(POINTS // 2)]
    return by_rows + [{"seconds": rng.uniform(0.0, total_seconds)} for _ in range(POINTS // 2)]


@pytest.mark.parametrize("populated", [False, True], ids=["empty", "populated"])
def test_killed_anywhere_and_run_again(path: Path, flux_postgres_clean_dsn: str, populated: bool) -> None:
    """`kill -9` at random points of the reading, the loading and the proving."""
    dsn = flux_postgres_clean_dsn
    make_tables(dsn)
    before = [OTHER] if populated else []
    asyncio.run(execute(dsn, "DELETE FROM sessions", *before))
    began = time.monotonic()
    assert move(path, dsn, batch_size=50).status is Status.IDENTICAL
    expected, seconds = everything(dsn), time.monotonic() - began
    kept = 1 if populated else 0
    kills = 0
    for point in points(2 * 3040, seconds):
        asyncio.run(execute(dsn, "DELETE FROM sessions", *before))
        kills += killed(path, dsn, **point)
        sessions, messages = everything(dsn)
        if not populated:
            assert (len(sessions), len(messages)) in {(0, 0), (40, 3000)}, "all or nothing"
        assert sum(row[6] for row in sessions) == len(messages), "no batch is half there"
        assert len(sessions) >= kept
        assert move(path, dsn, batch_size=50).status is Status.IDENTICAL
        assert everything(dsn) == expected
    assert kills >= POINTS // 2


def start(path: Path, dsn: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "--sqlite-path", str(path), "--postgres-dsn", dsn, "--yes"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def waiting_for_lock(connection: Any) -> int:
    """Wait until the migration waits for a lock, and return its server process."""
    async with asyncio.timeout(20):
        while True:
            pid = await connection.fetchval(
                "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'messages'::regclass LIMIT 1"
            ) or await connection.fetchval(
                "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'sessions'::regclass LIMIT 1"
            )
            if pid:
                return int(pid)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_within_a_second_with_advice(path: Path, flux_postgres_clean_dsn: str, how: int) -> None:
    """Even while it waits for the server; and the next run completes."""
    dsn = flux_postgres_clean_dsn
    make_tables(dsn)

    async def interrupt() -> tuple[int, str, float]:
        async with connected(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            process = start(path, dsn)
            await waiting_for_lock(connection)
            began = time.monotonic()
            process.send_signal(how)
            _, errors = await asyncio.to_thread(process.communicate, timeout=20)
            return process.returncode, errors, time.monotonic() - began

    code, errors, seconds = asyncio.run(interrupt())
    assert (code, errors.strip()) == (
        1,
        "Interrupted. Nothing is half done: run the same command again, and it goes on to exactly the same result.",
    )
    assert seconds < 1.5
    assert move(path, dsn).status is Status.IDENTICAL


def test_a_lost_server_is_an_error_with_advice(path: Path, flux_postgres_clean_dsn: str) -> None:
    """The connection is cut in the middle: exit 1, a sentence, no traceback; the next run completes."""
    dsn = flux_postgres_clean_dsn
    make_tables(dsn)

    async def cut() -> tuple[int, str]:
        async with connected(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            process = start(path, dsn)
            pid = await waiting_for_lock(connection)
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
            _, errors = await asyncio.to_thread(process.communicate, timeout=20)
            return process.returncode, errors

    code, errors = asyncio.run(cut())
    assert code == 1
    assert errors.startswith("FAILED")
    assert "Traceback" not in errors
    assert move(path, dsn).status is Status.IDENTICAL


def test_a_cancelled_call_leaves_nothing_open(path: Path, flux_empty_database: str) -> None:
    """The API cancels as any coroutine: no transaction, no connection, no thread stays behind."""
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
        watcher.task = asyncio.create_task(migrate(Plan(path, dsn), watcher))
        with pytest.raises(asyncio.CancelledError):
            await watcher.task

    for name in ("Preflight", "Load", "Verify"):
        asyncio.run(cancel_in(name))
        others = """
            SELECT count(*), array_agg(state || ': ' || query)
            FROM pg_stat_activity
            WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
        """
        deadline = time.monotonic() + 10
        while (left := asyncio.run(rows(dsn, others))[0])[0]:
            assert time.monotonic() < deadline, left
    assert move(path, dsn).status is Status.IDENTICAL
