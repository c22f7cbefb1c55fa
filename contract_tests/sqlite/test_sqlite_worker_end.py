"""Tests the end of a SQLite memory's thread: closing, forgotten handles, event loops that end, and failed starts."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from original_application import read_rows
from raw_sqlite import run_on_worker
from waiting import wait_until

from flux_memory import ConversationMemory, deadline
from flux_memory.backends.shared_timer import SharedTimer
from flux_memory.backends.sqlite import forks
from flux_memory.backends.sqlite.file import OpenFile
from flux_memory.backends.sqlite.worker import SQLiteWorker
from flux_memory.errors import (
    BackendUnavailableError,
    SchemaError,
)


@pytest.mark.asyncio
async def test_a_forgotten_handle_warns_and_ends_its_thread(path: Path) -> None:
    """The warning names the file, and the thread ends."""
    memory = ConversationMemory(path)
    await memory.create_session()
    thread = (await memory._life.opened())._driver.thread
    forgotten = [memory]
    del memory
    with pytest.warns(ResourceWarning, match=r"ConversationMemory\('.*chat\.db'\) was never closed"):
        forgotten.clear()
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


@pytest.mark.asyncio
async def test_closing_while_calls_are_in_flight_loses_none(path: Path) -> None:
    """Calls that started before `close()` are answered and stored, and the thread is gone afterwards."""
    memory = ConversationMemory(path)
    session = await memory.create_session()
    threads = set(threading.enumerate())
    writes = [asyncio.create_task(memory.add_message(session, "user", str(number))) for number in range(50)]
    await asyncio.sleep(0)
    await asyncio.gather(*(memory.close() for _ in range(3)))
    assert len(await asyncio.gather(*writes)) == 50
    assert read_rows(path, "SELECT count(*) FROM messages") == [(50,)]
    assert len(set(threading.enumerate()) & threads) == len(threads) - 1


@pytest.mark.asyncio
async def test_closing_abandons_calls_that_wait_for_a_lock(path: Path) -> None:
    """A call with more time than `close()` fails, saying that nothing was stored, and the thread is gone."""
    memory = ConversationMemory(path, timeout=2)
    session = await memory.create_session()
    threads = set(threading.enumerate())

    async def patient() -> str:
        with deadline(600):
            return await memory.add_message(session, "user", "Hello")

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        call = asyncio.create_task(patient())
        await asyncio.sleep(0)
        await memory.close()
        with pytest.raises(BackendUnavailableError, match="nothing was stored"):
            await asyncio.wait_for(call, 30)
    assert len(set(threading.enumerate()) & threads) == len(threads) - 1


@pytest.mark.asyncio
async def test_a_failed_opening_leaves_no_thread(path: Path) -> None:
    """Repeated failures leave no thread either."""
    await asyncio.to_thread(path.write_bytes, b"These are notes, no database. " * 100)
    before = threading.active_count()
    async with ConversationMemory(path) as memory:
        for _ in range(3):
            with pytest.raises(SchemaError):
                await memory.count_sessions()

    async def gone() -> bool:
        return threading.active_count() <= before

    await wait_until(gone)


def test_an_event_loop_that_ends_before_its_calls_breaks_nothing(path: Path) -> None:
    """The answer finds its loop closed; the thread keeps running and the handle can be closed."""
    memory = ConversationMemory(path)
    release = threading.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def leave() -> None:
        session = await memory.create_session()
        tasks.append(asyncio.create_task(run_on_worker(memory, lambda _: release.wait(30))))
        tasks.append(asyncio.create_task(memory.add_message(session, "user", "x")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(leave())
    release.set()
    asyncio.run(memory.close())
    assert read_rows(path, "SELECT count(*) FROM sessions") == [(1,)]


LEFT_WHILE_OPENING = """
import asyncio, sys
from flux_memory import ConversationMemory, NewMessage

memory = ConversationMemory(sys.argv[1])

async def main():
    task = asyncio.create_task(memory.count_sessions())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

asyncio.run(main())
"""


def test_a_program_that_ends_while_opening_ends_quietly(path: Path) -> None:
    """No traceback appears of a thread that calls a closed loop."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT_WHILE_OPENING, str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


NO_THREAD = """
import asyncio, resource, sys, threading
from flux_memory import BackendUnavailableError, ConversationMemory

async def main():
    async with ConversationMemory(sys.argv[1]) as memory:
        limits = resource.getrlimit(resource.RLIMIT_AS)
        threading.stack_size(2**30)
        resource.setrlimit(resource.RLIMIT_AS, (2**30, limits[1]))
        try:
            await memory.create_session()
        except BackendUnavailableError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        print(await memory.count_sessions())

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no limit of a process's memory")
def test_a_process_without_threads_left_gets_an_error_and_can_retry(path: Path) -> None:
    """At a limit of threads or memory a call fails with an error of the library, and the next one can succeed."""
    done = subprocess.run(
        [sys.executable, "-c", NO_THREAD, str(path)], capture_output=True, text=True, timeout=30, check=True
    )
    told, count = done.stdout.splitlines()
    assert "SQLite's thread cannot be started" in told
    assert count == "0"


def open_in_memory(*_: object) -> tuple[sqlite3.Connection, OpenFile]:
    db = sqlite3.connect(":memory:", check_same_thread=False)
    return db, OpenFile(":memory:", db)


@pytest.mark.asyncio
async def test_a_call_of_the_moment_before_closing_is_answered() -> None:
    """A call made just before the end is carried out, and its caller does not wait until the deadline."""
    worker, timer = SQLiteWorker(open_in_memory), SharedTimer(asyncio.get_running_loop())
    await worker.open(5, timer)
    call = asyncio.create_task(worker.read(lambda _: "done", 5, timer))
    await asyncio.sleep(0)
    await worker.finish(5)
    assert await call == "done"


@pytest.mark.asyncio
async def test_the_process_can_fork_while_an_opening_waits_for_a_lock(path: Path) -> None:
    """A fork waits for an attempt to open the file, not for the lock that another process holds."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        before = set(forks._WORKERS)
        async with ConversationMemory(path) as memory:
            opening = asyncio.create_task(memory.count_sessions())

            async def begun() -> bool:
                return any(each.at_rest.locked() for each in set(forks._WORKERS) - before)

            await wait_until(begun)
            forks._pause_workers()
            paused = set(forks._PAUSED) - before
            forks._release_workers()
            assert paused
            other.execute("ROLLBACK")
            assert await opening == 0


@pytest.mark.asyncio
async def test_a_worker_with_a_hanging_thread_is_abandoned() -> None:
    """Closing takes a bounded time, even with a disk that does not answer."""
    worker, timer = SQLiteWorker(open_in_memory), SharedTimer(asyncio.get_running_loop())
    await worker.open(5, timer)
    release = threading.Event()
    hanging = asyncio.create_task(worker.read(lambda _: release.wait(30), 30, timer))
    await asyncio.sleep(0)
    await asyncio.wait_for(worker.finish(0.05), 5)
    release.set()
    await hanging
    await asyncio.to_thread(worker._driver.thread.join, 5)
    assert not worker._driver.thread.is_alive()
