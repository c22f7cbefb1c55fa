"""The thread behind a SQLite memory: writes that share a transaction, locks, cancellation, and its end."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from original_application import rows
from raw_sqlite import change, on_the_thread
from waiting import until

from flux_memory import ConversationMemory, deadline
from flux_memory.backends.sqlite.file import OpenFile
from flux_memory.backends.sqlite.worker import SQLiteWorker
from flux_memory.errors import (
    BackendUnavailableError,
    FluxMemoryError,
    SchemaError,
)


@asynccontextmanager
async def thread_held(memory: ConversationMemory) -> AsyncIterator[threading.Event]:
    """Keep the library's thread busy until the event that this yields is set, at the latest to the block's end."""
    held, release = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        held.set()
        release.wait(30)

    task = asyncio.create_task(on_the_thread(memory, work))
    await asyncio.to_thread(held.wait, 5)
    try:
        yield release
    finally:
        release.set()
        await task


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["ABORT", "FAIL", "ROLLBACK"])
async def test_a_failing_write_takes_no_neighbour_along(memory: ConversationMemory, path: Path, how: str) -> None:
    """Writes that share a transaction fail one by one: not even a ROLLBACK inside it loses an acknowledged one."""
    change(
        path,
        f"CREATE TRIGGER bad BEFORE INSERT ON messages WHEN new.content = 'bad' "
        f"BEGIN SELECT raise({how}, 'this one is bad'); END",
    )
    contents = [f"good {number}" for number in range(20)]
    contents[7:7] = ["bad"]
    outcomes = await asyncio.gather(
        *(memory.add_message("one", "user", content) for content in contents), return_exceptions=True
    )
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [type(error) for error in failed] == [FluxMemoryError]
    assert "this one is bad" in str(failed[0])
    assert isinstance(failed[0].__cause__, sqlite3.IntegrityError)
    contents.remove("bad")
    assert [message["content"] for message in await memory.get_history("one")] == contents
    assert rows(path, "SELECT seq FROM messages ORDER BY seq") == [(seq,) for seq in range(1, 21)]


@pytest.mark.asyncio
async def test_more_writes_than_one_transaction_takes(memory: ConversationMemory, path: Path) -> None:
    """However many gather, all are stored, in the order in which they were made, each once."""
    contents = [str(number) for number in range(700)]
    await asyncio.gather(*(memory.add_message("one", "user", content) for content in contents))
    assert [message["content"] for message in await memory.get_history("one")] == contents


@pytest.mark.asyncio
async def test_calls_of_one_moment_share_one_transaction(memory: ConversationMemory) -> None:
    """Writes that begin together cost one flush of the disk, the first of them included."""
    statements: list[str] = []
    await on_the_thread(memory, lambda db: db.set_trace_callback(statements.append))
    # After this the thread rests, and does not take the first write before the others come.
    rests = threading.Event()
    (await memory._life.opened())._send(rests.set)
    await asyncio.to_thread(rests.wait, 5)
    await asyncio.gather(*(memory.add_message("one", "user", str(number)) for number in range(20)))
    await on_the_thread(memory, lambda db: db.set_trace_callback(None))
    assert statements.count("COMMIT") == 1


@pytest.mark.asyncio
async def test_reads_that_gather_have_an_outcome_each(memory: ConversationMemory, path: Path) -> None:
    """However many readers and writers come at once, each gets its own answer; one corrupt row fails its readers."""
    await memory.add_message("one", "user", "x")
    await memory.add_message("two", "user", "y")
    change(path, "UPDATE messages SET metadata = '{' WHERE session_id = 'two'")
    async with thread_held(memory):
        reads = [asyncio.create_task(memory.get_history(("one", "two")[n % 100 == 7])) for n in range(600)]
        writes = [asyncio.create_task(memory.create_session(session_id=f"new {n}")) for n in range(20)]
        for _ in range(5):
            await asyncio.sleep(0)
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    for n, outcome in enumerate(outcomes):
        if n % 100 == 7:
            assert isinstance(outcome, FluxMemoryError)
        else:
            assert not isinstance(outcome, BaseException)
            assert [message["content"] for message in outcome] == ["x"]
    assert await asyncio.gather(*writes) == [f"new {n}" for n in range(20)]
    one, other = (outcome for outcome in outcomes[:2] if not isinstance(outcome, BaseException))
    assert one is not other


@pytest.mark.asyncio
async def test_a_lock_that_is_let_go_in_time_is_waited_for(memory: ConversationMemory, path: Path) -> None:
    """Another process that writes for a moment makes a call slower, not fail."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(memory.add_message("one", "user", "patient"))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        other.execute("COMMIT")
        await waiting
    assert len(await memory.get_history("one")) == 1


@pytest.mark.asyncio
async def test_a_lock_that_stays_ends_the_call_and_poisons_nothing(path: Path) -> None:
    """At the deadline the call ends by an error that says that nothing was stored; the next call works."""
    async with ConversationMemory(path, timeout=20) as memory:
        session = await memory.create_session()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with deadline(0.2):
                outcomes = await asyncio.gather(
                    *(memory.add_message(session, "user", "x") for _ in range(3)), return_exceptions=True
                )
            assert [type(outcome) for outcome in outcomes] == [BackendUnavailableError] * 3
            assert "another process holds the lock, and nothing was stored; retry, or raise timeout=" in str(
                outcomes[0]
            )
        await memory.add_message(session, "user", "afterwards")
        assert [message["content"] for message in await memory.get_history(session)] == ["afterwards"]


@pytest.mark.asyncio
async def test_a_thread_that_does_not_answer_ends_the_call(path: Path) -> None:
    """A disk that hangs does not hang the caller; a write that had not begun is not made afterwards either."""
    async with ConversationMemory(path, timeout=20) as memory:
        session = await memory.create_session()
        async with thread_held(memory):
            with deadline(0.1), pytest.raises(BackendUnavailableError, match="nothing was stored"):
                await memory.add_message(session, "user", "x")
        assert await memory.get_history(session) == []


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.asyncio
async def test_a_process_without_descriptors_refuses_nothing_that_it_has_stored(memory: ConversationMemory) -> None:
    """Where the log cannot be looked at after a commit, the write is acknowledged all the same, and done once."""
    with no_descriptor_left():
        alone = await memory.add_message("one", "user", "alone")
        together = await asyncio.gather(*(memory.add_message("one", "user", "together") for _ in range(3)))
    assert [message["id"] for message in await memory.get_history("one")] == [alone, *together]


@pytest.mark.asyncio
async def test_a_write_to_a_file_that_cannot_be_looked_at_is_told_at_once(tmp_path: Path) -> None:
    """An error of the file system ends the write, not its deadline."""
    directory = tmp_path / "store"
    async with ConversationMemory(directory / "chat.db", timeout=60) as memory:
        await memory.create_session(session_id="one")
        directory.rename(tmp_path / "moved")
        directory.touch()
        async with asyncio.timeout(10):
            with pytest.raises(BackendUnavailableError, match="Not a directory"):
                await memory.add_message("one", "user", "x")


@pytest.mark.asyncio
async def test_a_cancelled_write_is_stored_whole_or_not_at_all(memory: ConversationMemory, path: Path) -> None:
    """A write that is cancelled before its turn leaves nothing; its neighbours are stored; the handle goes on."""
    async with thread_held(memory):
        writes = [asyncio.create_task(memory.add_message("one", "user", str(number))) for number in range(4)]
        reading = asyncio.create_task(memory.get_history("one"))
        for _ in range(5):
            await asyncio.sleep(0)
        cancelled = (writes[1], writes[3], reading)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
    await asyncio.gather(writes[0], writes[2])
    assert [task.cancelled() for task in (*writes, reading)] == [False, True, False, True, True]
    assert [message["content"] for message in await memory.get_history("one")] == ["0", "2"]
    assert rows(path, "SELECT seq FROM messages ORDER BY seq") == [(1,), (2,)]


@pytest.mark.asyncio
async def test_a_forgotten_handle_warns_and_ends_its_thread(path: Path) -> None:
    """The warning names the file; the thread does not stay."""
    memory = ConversationMemory(path)
    await memory.create_session()
    thread = (await memory._life.opened())._driver._thread
    forgotten = [memory]
    del memory
    with pytest.warns(ResourceWarning, match=r"ConversationMemory\('.*chat\.db'\) was never closed"):
        forgotten.clear()
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


@pytest.mark.asyncio
async def test_closing_while_calls_are_in_flight_loses_none(path: Path) -> None:
    """What was begun before `close()` is answered and stored, and the thread is gone afterwards."""
    memory = ConversationMemory(path)
    session = await memory.create_session()
    threads = set(threading.enumerate())
    writes = [asyncio.create_task(memory.add_message(session, "user", str(number))) for number in range(50)]
    await asyncio.sleep(0)
    await asyncio.gather(*(memory.close() for _ in range(3)))
    assert len(await asyncio.gather(*writes)) == 50
    assert rows(path, "SELECT count(*) FROM messages") == [(50,)]
    assert len(set(threading.enumerate()) & threads) == len(threads) - 1


@pytest.mark.asyncio
async def test_closing_gives_up_what_waits_for_a_lock(path: Path) -> None:
    """A call that has more time than `close()` is told that nothing was stored, and the thread is gone."""
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
    """However often it is tried."""
    await asyncio.to_thread(path.write_bytes, b"These are notes, no database. " * 100)
    before = threading.active_count()
    async with ConversationMemory(path) as memory:
        for _ in range(3):
            with pytest.raises(SchemaError):
                await memory.count_sessions()

    async def gone() -> bool:
        return threading.active_count() <= before

    await until(gone)


def test_a_second_event_loop_is_a_clear_error(path: Path) -> None:
    """It neither hangs nor writes; closing there lets go of the file."""
    memory = ConversationMemory(path)
    session = asyncio.run(memory.create_session())
    with pytest.raises(FluxMemoryError, match="another event loop"):
        asyncio.run(memory.add_message(session, "user", "x"))
    asyncio.run(memory.close())
    assert rows(path, "SELECT count(*) FROM messages") == [(0,)]


def test_an_event_loop_that_ends_before_its_calls_breaks_nothing(path: Path) -> None:
    """The answer has nobody left to hear it; the thread goes on and the handle can be closed."""
    memory = ConversationMemory(path)
    release = threading.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def leave() -> None:
        session = await memory.create_session()
        tasks.append(asyncio.create_task(on_the_thread(memory, lambda _: release.wait(30))))
        tasks.append(asyncio.create_task(memory.add_message(session, "user", "x")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(leave())
    release.set()
    asyncio.run(memory.close())
    assert rows(path, "SELECT count(*) FROM sessions") == [(1,)]


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
    """No traceback of a thread that talks to a loop that is gone."""
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
def test_a_process_that_gets_no_thread_is_told_and_tries_again(path: Path) -> None:
    """At a limit of threads or of memory a call fails as one of ours, and the next one may succeed."""
    done = subprocess.run(
        [sys.executable, "-c", NO_THREAD, str(path)], capture_output=True, text=True, timeout=30, check=True
    )
    told, count = done.stdout.splitlines()
    assert "SQLite's thread cannot be started" in told
    assert count == "0"


def in_memory() -> tuple[sqlite3.Connection, OpenFile]:
    db = sqlite3.connect(":memory:", check_same_thread=False)
    return db, OpenFile(":memory:", db)


@pytest.mark.asyncio
async def test_a_call_of_the_moment_before_closing_is_answered() -> None:
    """What was asked for before the end is done, and its caller does not wait for an answer until the deadline."""
    worker = SQLiteWorker(in_memory)
    await worker.open(5)
    call = asyncio.create_task(worker.read(lambda _: "done", 5))
    await asyncio.sleep(0)
    await worker.finish(5)
    assert await call == "done"


@pytest.mark.asyncio
async def test_a_worker_whose_thread_hangs_is_left_behind() -> None:
    """Closing waits a bounded time, also for a disk that does not answer."""
    worker = SQLiteWorker(in_memory)
    await worker.open(5)
    release = threading.Event()
    hanging = asyncio.create_task(worker.read(lambda _: release.wait(30), 30))
    await asyncio.sleep(0)
    await asyncio.wait_for(worker.finish(0.05), 5)
    release.set()
    await hanging
    await asyncio.to_thread(worker._driver._thread.join, 5)
    assert not worker._driver._thread.is_alive()
