"""Tests migrations in an application that cancels every task at shutdown: each ends and leaves nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from raw_postgres import connect, execute, with_parameter
from transfer_memories import EMPTY, OTHER, Trigger, make_random_file, make_tables, move, read_target
from transfer_processes import wait_for_lock

from flux_memory import FluxMemoryError
from flux_memory.testkit import Proxy
from flux_memory.transfer import Plan, Status, migrate
from flux_memory.transfer.target import watchdog
from flux_memory.transfer.threads import run_in_thread

# Runs a migration repeatedly. Each time all tasks are cancelled at another moment, once or several times, and the loop
# ends. Prints leftovers to stderr.
CHILD = """
import asyncio, gc, itertools, os, random, sys, threading, time
from pathlib import Path
from flux_memory.transfer import Mode, Plan, migrate, migrate_back
from flux_memory.transfer.source import snapshot

how, path, dsn, work, seed, rounds = sys.argv[1:]
rng = random.Random(seed)
path, work = Path(path), Path(work)
os.cpu_count = lambda: 2

def transfer(number):
    snapshot._HELPER_MIN_BYTES = 0 if number % 2 else 10**12
    if how == "back":
        (work / "back.db").unlink(missing_ok=True)
        return migrate_back(dsn, work / "back.db")
    mode = Mode.VERIFY if how == "verify" else Mode.MOVE
    return migrate(Plan(sqlite_path=path, postgres_dsn=dsn, mode=mode, batch_size=50, replace=how == "replace"))

async def cancelled(number, turns, seconds, times):
    me, task = asyncio.current_task(), asyncio.create_task(transfer(number))
    for _ in range(turns):
        await asyncio.sleep(0)
    if seconds:
        await asyncio.wait([task], timeout=seconds)
    for _ in range(times):
        for one in asyncio.all_tasks() - {me}:
            one.cancel()
        await asyncio.sleep(rng.choice([0, 0, 0.001, 0.06]))
    if task.done() and not task.cancelled():
        # It finished before the cancellation.
        task.result()

def left():
    # Processes that read the file, and threads, must have been waited for.
    try:
        os.waitpid(-1, os.WNOHANG)
        yield "a process"
    except ChildProcessError:
        pass
    yield from (f"thread {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread())
    yield from (f"file {name}" for name in os.listdir(os.environ["TMPDIR"]))
    yield from (f"file {file.name}" for file in work.iterdir() if file.name != "back.db")
    if (open_now := len(os.listdir("/proc/self/fd"))) > opened:
        yield f"{open_now - opened} open files"

def unraisable(found):
    print("unraisable:", repr(found.exc_value), found.object, file=sys.stderr)

sys.unraisablehook = unraisable
began = time.monotonic()
asyncio.run(cancelled(1, 0, 60, 0))
took = time.monotonic() - began
gc.collect()
opened = len(os.listdir("/proc/self/fd"))
for number in range(int(rounds)):
    turns, seconds = (number // 2, 0) if number < 12 else (0, rng.uniform(0, took))
    asyncio.run(cancelled(number, turns, seconds, rng.choice([0, 1, 1, 2, 5])))
    gc.collect()
    for what in left():
        print(f"round {number}, after {turns} turns or {seconds:.3f} s: left {what}", file=sys.stderr)
print("done")
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cancelled") / "chat.db"
    make_random_file(path, sessions=40, messages=2000)
    return path


def run_child(*arguments: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run a script in its own process, where a crash does not end the test run; return exit code, stdout and stderr."""
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    command = [sys.executable, "-X", "faulthandler", "-W", "error::ResourceWarning", "-c", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("how", ["empty", "beside others", "replace", "verify", "back"])
def test_all_tasks_are_cancelled_at_any_moment(
    path: Path, flux_memory_postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, is_long: bool
) -> None:
    """There is no crash and no warning; no thread, process, connection or file is left; the next run completes."""
    dsn = flux_memory_postgres_dsn
    make_tables(dsn)
    asyncio.run(execute(dsn, *EMPTY, *([OTHER] if how == "beside others" else [])))
    if how in {"verify", "back"}:
        assert move(path, dsn).status is Status.IDENTICAL
    (work := tmp_path / "work").mkdir()
    rounds = 28 if is_long else 18
    # asyncpg leaves an unretrieved exception behind if its TLS request is cancelled.
    plain = with_parameter(dsn, "sslmode=disable")
    code, output, errors = run_child(
        CHILD, how, path, plain, work, 1, rounds, tmp_path=tmp_path, monkeypatch=monkeypatch
    )
    assert errors == ""
    assert (code, output) == (0, "done\n")
    assert move(path, dsn).status is (Status.CONTAINED if how == "beside others" else Status.IDENTICAL)
    assert len(read_target(dsn)[1]) == 2000


def test_only_the_migrations_own_tasks_are_cancelled(path: Path, flux_memory_postgres_dsn: str) -> None:
    """A task that migrates and cancels all others ends; the call does not hang."""
    dsn = flux_memory_postgres_dsn

    async def run() -> None:
        me = asyncio.current_task()

        def cancel_others() -> None:
            for task in asyncio.all_tasks() - {me}:
                task.cancel()

        for phase in ("Load", "Verify", "Flush"):
            for statements in ((), (OTHER,)):
                await execute(dsn, *EMPTY, *statements)
                trigger = Trigger(phase, lambda: asyncio.get_running_loop().call_later(0.01, cancel_others))
                try:
                    async with asyncio.timeout(20):
                        await migrate(Plan(sqlite_path=path, postgres_dsn=dsn, batch_size=50), trigger)
                except TimeoutError:
                    raise
                except (FluxMemoryError, asyncio.CancelledError):
                    # The watchdog's tasks were cancelled.
                    pass

    make_tables(dsn)
    asyncio.run(run())
    assert move(path, dsn).exit_code == 0


def test_all_tasks_are_cancelled_while_the_network_is_silent(path: Path, flux_empty_database: str) -> None:
    """A cancellation ends, although the driver waits for its ROLLBACK and the watchdog's task is cancelled, too."""
    dsn = flux_empty_database
    make_tables(dsn)

    async def run(proxy: Proxy) -> float:
        async with connect(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            migrating = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=proxy.dsn)))
            await wait_for_lock(connection)
            proxy.silence()
            began = time.monotonic()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.wait([migrating], timeout=30)
            assert migrating.cancelled()
            return time.monotonic() - began

    with Proxy(dsn) as proxy:
        assert asyncio.run(run(proxy)) < watchdog.PROBE_TIMEOUT_SECONDS


def test_a_thread_has_ended_when_its_call_does() -> None:
    """The call returns after its thread has ended, even if it is cancelled repeatedly; it repeats `stop` until then."""
    stops = threading.Semaphore(0)
    at_work = asyncio.Event()
    loop: asyncio.AbstractEventLoop
    ended = threading.Event()

    def work() -> None:
        loop.call_soon_threadsafe(at_work.set)
        for _ in range(3):
            assert stops.acquire(timeout=10)
        ended.set()

    async def run() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(run_in_thread(work, stops.release))
        await at_work.wait()
        while not task.done():
            for one in asyncio.all_tasks() - {asyncio.current_task()}:
                one.cancel()
            await asyncio.sleep(0)
        assert task.cancelled()
        assert ended.is_set()

    asyncio.run(run())


def test_a_thread_has_ended_when_its_call_is_abandoned() -> None:
    """The thread has ended even if the event loop is closed during the call."""
    stop, at_work, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        at_work.set()
        assert stop.wait(10)
        ended.set()

    async def run() -> None:
        call = run_in_thread(work, stop.set)
        call.send(None)
        assert at_work.wait(10)
        call.close()
        assert ended.is_set()

    asyncio.run(run())
