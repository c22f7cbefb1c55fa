"""After a kill at any point, a second run completes a migration with exactly the same result."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from raw_postgres import connected, execute
from transfer_memories import OTHER, everything, make_random, make_tables, move
from transfer_processes import start, start_there, waiting_for_lock
from waiting import until

from flux_memory.transfer import Plan, Status, migrate, migrate_back, to_sqlite

# The migration kills itself after a given number of rows and reports.
CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from flux_memory.transfer import Plan, migrate
from flux_memory.transfer.source import snapshot
path, dsn, large, rows = sys.argv[1:]
snapshot._HELPER_MIN_BYTES = int(large)
class Watcher:
    left = int(rows)
    def phase(self, name, rows): self.advance(1)
    def say(self, line): pass
    def advance(self, rows):
        self.left -= rows
        if self.left < 0: os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(migrate(Plan(sqlite_path=Path(path), postgres_dsn=dsn, batch_size=50), Watcher()))
"""
OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
WORKING = f"{OTHERS} AND state <> 'idle'"
INTERRUPTED = (
    "Interrupted. Nothing is half done: run the same command again, and it goes on to exactly the same result.\n"
)
POINTS = 20
MOST_ROUNDS = 4 * POINTS
"""Half of the kills after random numbers of rows, half after random times."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupted") / "chat.db"
    make_random(path, sessions=40, messages=3000)
    return path


def random_numbers() -> random.Random:
    return random.Random(os.environ.get("FLUX_MEMORY_TRANSFER_SEED", "7"))


def killed_at_row(path: Path, dsn: str, rows: int, *, helped: bool) -> bool:
    """Run a migration that kills itself, and return whether it did."""
    command = [sys.executable, "-c", CHILD, str(path), dsn, "0" if helped else str(10**12), str(rows)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL


def killed_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kill a process after some time, and return whether it was still running."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode == -signal.SIGKILL


def duration(process: subprocess.Popen[str]) -> float:
    """Return the duration of a process that succeeds."""
    began = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return time.monotonic() - began


@pytest.mark.parametrize("populated", [False, True], ids=["empty", "populated"])
def test_killed_anywhere_and_run_again(path: Path, flux_postgres_clean_dsn: str, populated: bool) -> None:
    """A second run completes after `kill -9` at a random point of preflight, load or verification."""
    dsn = flux_postgres_clean_dsn
    make_tables(dsn)
    before = [OTHER] if populated else []
    asyncio.run(execute(dsn, "DELETE FROM sessions", *before))
    seconds = duration(start_there(path, dsn))
    expected = everything(dsn)
    rng = random_numbers()
    kills = rounds = 0
    while kills < POINTS:
        rounds += 1
        assert rounds < MOST_ROUNDS
        asyncio.run(execute(dsn, "DELETE FROM sessions", *before))
        if rounds % 2:
            killed = killed_after(start_there(path, dsn), rng.uniform(seconds / 4, seconds))
            # It finished first: its duration is a better bound.
            seconds *= 1 if killed else 0.9
        else:
            killed = killed_at_row(path, dsn, rng.randrange(2 * 3040), helped=rounds % 4 == 0)
        kills += killed
        asyncio.run(gone(dsn, WORKING))
        sessions, messages = everything(dsn)
        if not populated:
            assert (len(sessions), len(messages)) in {(0, 0), (40, 3000)}, "all or nothing"
        assert sum(row[6] for row in sessions) == len(messages), "no batch is half there"
        assert len(sessions) >= populated
        assert move(path, dsn, batch_size=50).status is Status.IDENTICAL
        assert everything(dsn) == expected


async def gone(dsn: str, query: str) -> None:
    """Wait until the server has dropped the connections."""
    async with connected(dsn) as connection:

        async def alone() -> bool:
            return not await connection.fetchval(query)

        await until(alone)


def test_the_way_back_is_killed_anywhere_and_run_again(
    path: Path, flux_postgres_clean_dsn: str, tmp_path: Path
) -> None:
    """After a kill there is no file, or the proven one; the run that completes leaves nothing else behind."""
    dsn = flux_postgres_clean_dsn
    make_tables(dsn)
    asyncio.run(execute(dsn, "DELETE FROM sessions"))
    assert move(path, dsn).status is Status.IDENTICAL
    back = tmp_path / "back.db"
    seconds = duration(start("--to-sqlite", back, "--postgres-dsn", dsn))
    expected = contents(back)
    rng = random_numbers()
    kills = rounds = 0
    while kills < POINTS:
        rounds += 1
        assert rounds < MOST_ROUNDS
        back.unlink()
        process = start("--to-sqlite", back, "--postgres-dsn", dsn)
        killed = killed_after(process, rng.uniform(seconds / 4, seconds))
        # It finished first: its duration is a better bound.
        seconds *= 1 if killed else 0.9
        kills += killed
        for file in tmp_path.iterdir():
            assert file.stat().st_mode & 0o077 == 0, "what was read is for its owner alone"
        if not back.exists():
            assert asyncio.run(migrate_back(dsn, back)).status is Status.IDENTICAL
            assert [file.name for file in tmp_path.iterdir()] == ["back.db"]
        assert contents(back) == expected


@pytest.mark.parametrize("direction", ["there", "back"])
def test_interrupted_anywhere_it_says_so(
    path: Path, flux_postgres_clean_dsn: str, tmp_path: Path, direction: str
) -> None:
    """Ctrl-C, also while a thread runs a statement, prints one sentence and leaves nothing behind."""
    dsn, back = flux_postgres_clean_dsn, tmp_path / "back.db"
    make_tables(dsn)
    asyncio.run(execute(dsn, "DELETE FROM sessions"))
    if direction == "back":
        assert move(path, dsn).status is Status.IDENTICAL

    def begin() -> subprocess.Popen[str]:
        back.unlink(missing_ok=True)
        return start_there(path, dsn) if direction == "there" else start("--to-sqlite", back, "--postgres-dsn", dsn)

    seconds, (code, _, _) = on_its_way(begin(), 60)
    assert code == 0
    rng = random_numbers()
    interrupts = rounds = 0
    while interrupts < POINTS:
        rounds += 1
        assert rounds < MOST_ROUNDS
        if direction == "there":
            asyncio.run(execute(dsn, "DELETE FROM sessions"))
        _, (code, output, errors) = on_its_way(begin(), rng.uniform(0, seconds))
        if "Proven identical" in output:
            # It finished before the signal, or had nothing left to do.
            seconds *= 0.95
            assert errors == ""
            continue
        interrupts += 1
        assert (code, errors) == (1, INTERRUPTED)
        assert list(tmp_path.iterdir()) == []


def on_its_way(process: subprocess.Popen[str], seconds: float) -> tuple[float, tuple[int, str, str]]:
    """Interrupt a process after some time of work.

    Returns:
        How long it worked, and its exit code with what it said on stdout and on stderr.
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


def test_an_interrupted_way_back_waits_for_its_thread(
    path: Path, flux_postgres_clean_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is closed after the thread that uses it has ended; otherwise the process crashes."""
    dsn = flux_postgres_clean_dsn
    asyncio.run(execute(dsn, "DROP TABLE IF EXISTS messages, sessions, flux_memory_schema"))
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


def contents(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return [db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in ("sessions", "messages")]


def test_what_a_killed_run_left_is_removed_by_the_next(
    path: Path, flux_postgres_clean_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private copy is readable by its owner only, and is removed unless its process is alive."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = """
import os, signal, sys
from flux_memory.transfer.tempfiles import private_directory
with private_directory() as directory:
    (directory / "snapshot.db").write_text("people's words")
    print(directory, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    directory = Path(process.stdout.readline().strip())
    assert directory.stat().st_mode & 0o777 == 0o700
    asyncio.run(execute(flux_postgres_clean_dsn, "DROP TABLE IF EXISTS messages, sessions, flux_memory_schema"))
    assert move(path, flux_postgres_clean_dsn).status is Status.IDENTICAL
    assert (directory / "snapshot.db").exists(), "its process lives"
    process.communicate()
    assert (directory / "snapshot.db").exists(), "it was killed"
    assert move(path, flux_postgres_clean_dsn).status is Status.IDENTICAL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_within_a_second_with_advice(path: Path, flux_postgres_clean_dsn: str, how: int) -> None:
    """A migration that waits for the server can be cancelled, and the next run completes."""
    dsn = flux_postgres_clean_dsn
    make_tables(dsn)

    async def interrupt() -> tuple[int, str, float]:
        async with connected(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            process = start_there(path, dsn)
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
    """A connection cut during the run gives exit code 1 and a sentence, no traceback; the next run completes."""
    dsn = flux_postgres_clean_dsn
    make_tables(dsn)

    async def cut() -> tuple[int, str]:
        async with connected(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            process = start_there(path, dsn)
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
        asyncio.run(gone(dsn, OTHERS))
    assert move(path, dsn).status is Status.IDENTICAL
