"""Tests the thread of a SQLite memory: writes that share a transaction, locks, and cancellation."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from original_application import read_rows
from raw_sqlite import execute_in_file, run_on_worker

from flux_memory import ConversationMemory, deadline
from flux_memory.errors import (
    BackendUnavailableError,
    FluxMemoryError,
)


@asynccontextmanager
async def hold_thread(memory: ConversationMemory) -> AsyncIterator[threading.Event]:
    """Keep the library's thread busy until the yielded event is set, or else until the block ends."""
    held, release = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        held.set()
        release.wait(30)

    task = asyncio.create_task(run_on_worker(memory, work))
    await asyncio.to_thread(held.wait, 5)
    try:
        yield release
    finally:
        release.set()
        await task


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["ABORT", "FAIL", "ROLLBACK"])
async def test_a_failing_write_takes_no_neighbour_along(memory: ConversationMemory, path: Path, how: str) -> None:
    """Writes that share a transaction fail one by one: not even a ROLLBACK inside loses an acknowledged one."""
    execute_in_file(
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
    assert read_rows(path, "SELECT seq FROM messages ORDER BY seq") == [(seq,) for seq in range(1, 21)]


@pytest.mark.asyncio
async def test_more_writes_than_one_transaction_takes(memory: ConversationMemory, path: Path) -> None:
    """Any number of gathered writes are stored once each, in the order of their calls."""
    contents = [str(number) for number in range(700)]
    await asyncio.gather(*(memory.add_message("one", "user", content) for content in contents))
    assert [message["content"] for message in await memory.get_history("one")] == contents


@pytest.mark.asyncio
async def test_calls_of_one_moment_share_one_transaction(memory: ConversationMemory) -> None:
    """Writes that start together cost one flush of the disk, including the first."""
    statements: list[str] = []
    await run_on_worker(memory, lambda db: db.set_trace_callback(statements.append))
    # The thread is idle now and cannot take the first write before the others arrive.
    rests = threading.Event()
    (await memory._life.opened())._send(rests.set)
    await asyncio.to_thread(rests.wait, 5)
    await asyncio.gather(*(memory.add_message("one", "user", str(number)) for number in range(20)))
    await run_on_worker(memory, lambda db: db.set_trace_callback(None))
    assert statements.count("COMMIT") == 1


@pytest.mark.asyncio
async def test_reads_that_gather_have_an_outcome_each(memory: ConversationMemory, path: Path) -> None:
    """Concurrent readers and writers each get their own answer; a corrupt row fails only the reads that need it."""
    await memory.add_message("one", "user", "x")
    await memory.add_message("two", "user", "y")
    execute_in_file(path, "UPDATE messages SET metadata = '{' WHERE session_id = 'two'")
    async with hold_thread(memory):
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
async def test_a_lock_released_in_time_is_waited_for(memory: ConversationMemory, path: Path) -> None:
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
    """At the deadline the call fails and says that nothing was stored; the next call works."""
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
    """A hanging disk does not hang the caller; a write that had not started is not stored later."""
    async with ConversationMemory(path, timeout=20) as memory:
        session = await memory.create_session()
        async with hold_thread(memory):
            with deadline(0.1), pytest.raises(BackendUnavailableError, match="nothing was stored"):
                await memory.add_message(session, "user", "x")
        assert await memory.get_history(session) == []


@contextmanager
def exhaust_descriptors() -> Iterator[None]:
    """Exhaust this process's file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.asyncio
async def test_a_process_without_descriptors_refuses_nothing_that_it_has_stored(memory: ConversationMemory) -> None:
    """If the log cannot be inspected after a commit, the write is still acknowledged, and done once."""
    with exhaust_descriptors():
        alone = await memory.add_message("one", "user", "alone")
        together = await asyncio.gather(*(memory.add_message("one", "user", "together") for _ in range(3)))
    assert [message["id"] for message in await memory.get_history("one")] == [alone, *together]


@pytest.mark.asyncio
async def test_a_write_to_an_inaccessible_file_fails_at_once(tmp_path: Path) -> None:
    """An error of the file system ends the write at once, not at its deadline."""
    directory = tmp_path / "store"
    async with ConversationMemory(directory / "chat.db", timeout=60) as memory:
        await memory.create_session(session_id="one")
        directory.rename(tmp_path / "moved")
        directory.touch()
        async with asyncio.timeout(10):
            with pytest.raises(BackendUnavailableError, match="Not a directory"):
                await memory.add_message("one", "user", "x")


@pytest.mark.asyncio
async def test_a_cancelled_write_is_stored_completely_or_not_at_all(memory: ConversationMemory, path: Path) -> None:
    """A write that is cancelled before its turn leaves nothing; its neighbours are stored; the handle keeps working."""
    async with hold_thread(memory):
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
    assert read_rows(path, "SELECT seq FROM messages ORDER BY seq") == [(1,), (2,)]
