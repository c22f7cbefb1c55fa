"""Tests other processes that lock the file: calls wait within their deadline, and their errors are true."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest
from fault_report import Fault
from fault_work import Store, write_messages
from raw_sqlite import execute_in_file, run_on_worker
from sqlite_locks import EXCLUSIVE, WRITE_LOCK, hold_lock

from flux_memory import BackendUnavailableError, ConversationMemory, NewMessage, OutcomeUnknownError, deadline
from flux_memory.testkit.histories import History, Journal, Recorder

SESSION: Final = "s"
OVERRUN_SECONDS: Final = 5.0
"""Seconds by which a call may outlive its deadline on a busy machine; one second is the promise."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A SQLite store with one session."""

    async def make(store: Store) -> None:
        async with store.open() as memory:
            await memory.create_session(session_id=SESSION)

    journals = tmp_path / "journals"
    journals.mkdir()
    store = Store("sqlite", str(tmp_path / "chat.db"), journals)
    asyncio.run(make(store))
    return store


@pytest.mark.fault("write lock held by another process", backend="sqlite")
def test_a_held_write_lock_fails_writes_and_no_reads(store: Store, fault: Fault) -> None:
    """Writes fail at their deadline and say that nothing was stored; reads are answered meanwhile."""

    async def use() -> None:
        journal = Journal(store.journal(0) / "held.jsonl")
        async with store.open() as memory:
            recorder = Recorder(memory, journal, "held")
            await recorder.add_message(SESSION, "user", "before")
            with hold_lock(Path(store.where), *WRITE_LOCK):
                batch: list[NewMessage] = [{"role": "user", "content": "x"}] * 3
                with deadline(2):
                    writes = [asyncio.ensure_future(recorder.add_message(SESSION, "user", "x")) for _ in range(5)]
                    writes.append(asyncio.ensure_future(recorder.add_messages(SESSION, batch)))
                for _ in range(4):
                    assert len(await recorder.get_history(SESSION)) == 1
                    assert not all(one.done() for one in writes), "reads waited for the writes"
                outcomes = await asyncio.gather(*writes, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {BackendUnavailableError}
                assert all("nothing was stored" in str(outcome) for outcome in outcomes)
            await recorder.add_message(SESSION, "user", "afterwards")

    before = asyncio.run(store.read_settled())
    asyncio.run(use())
    stored = store.judge(fault, 0, before)
    assert [one["content"] for one in stored.sessions[SESSION].history] == ["before", "afterwards"]
    assert History.read(store.journal(0)).longest_call() < 2 + OVERRUN_SECONDS


@pytest.mark.fault("EXCLUSIVE lock held by another process", backend="sqlite")
@pytest.mark.parametrize("released", [False, True], ids=["for good", "for a while"])
def test_an_exclusive_lock_is_waited_for_within_the_deadline(store: Store, fault: Fault, released: bool) -> None:
    """Not even the opening outlives the deadline; if the holder dies in time, nothing fails."""
    timeout = 30.0 if released else 2.0

    async def use() -> None:
        journal = Journal(store.journal(0) / "held.jsonl")
        with hold_lock(Path(store.where), *EXCLUSIVE) as holder:
            async with store.open(timeout=timeout) as memory:
                recorder = Recorder(memory, journal, "held")
                calls = [
                    asyncio.ensure_future(recorder.get_history(SESSION)),
                    asyncio.ensure_future(recorder.add_message(SESSION, "user", "x")),
                ]
                await asyncio.wait(calls, timeout=0.2)
                assert not any(call.done() for call in calls)
                if released:
                    holder.kill()
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                if not released:
                    assert {type(outcome) for outcome in outcomes} == {BackendUnavailableError}
                    holder.kill()
                    holder.wait()
                await recorder.add_message(SESSION, "user", "afterwards")

    before = asyncio.run(store.read_settled())
    asyncio.run(use())
    stored = store.judge(fault, 0, before)
    assert len(stored.sessions[SESSION].history) == (2 if released else 1)
    assert History.read(store.journal(0)).longest_call() < timeout + OVERRUN_SECONDS


@pytest.mark.fault("write lock taken and released by another process", backend="sqlite")
def test_locks_that_come_and_go_fail_nothing(store: Store, fault: Fault) -> None:
    """A process that takes the lock repeatedly makes calls slower; all are stored, in order."""

    async def use() -> None:
        journal = Journal(store.journal(0) / "held.jsonl")
        async with store.open() as memory:
            await write_messages(memory, journal, "patient", tasks=4, calls=15, patient=True)

    ended = threading.Event()

    def neighbour() -> None:
        with closing(sqlite3.connect(store.where, isolation_level=None, timeout=20)) as db:
            while not ended.is_set():
                db.execute("BEGIN IMMEDIATE")
                time.sleep(0.02)
                db.execute("COMMIT")
                # SQLite's locks are not fair: a client that asks without a pause always gets them.
                time.sleep(0.005)

    before = asyncio.run(store.read_settled())
    thread = threading.Thread(target=neighbour)
    thread.start()
    try:
        asyncio.run(use())
    finally:
        ended.set()
        thread.join()
    store.judge(fault, 0, before)
    # An update of what another task has changed since conflicts; no call fails because of the lock.
    ends = {(one.outcome, one.error) for one in History.read(store.journal(0)).operations}
    assert ends - {("failed", "ConflictError")} == {("acknowledged", None)}


@pytest.mark.fault("cancellation while the file is locked", backend="sqlite")
def test_a_call_can_be_cancelled_while_it_waits_for_a_lock(store: Store, fault: Fault) -> None:
    """The call ends at once and is not made later; closing does not wait for the lock either."""

    async def use() -> None:
        journal = Journal(store.journal(0) / "held.jsonl")
        with ExitStack() as stack:
            async with store.open() as memory:
                recorder = Recorder(memory, journal, "held")
                await recorder.get_history(SESSION)
                stack.enter_context(hold_lock(Path(store.where), *WRITE_LOCK))
                waiting = asyncio.ensure_future(recorder.add_message(SESSION, "user", "x"))
                await asyncio.wait([waiting], timeout=0.2)
                waiting.cancel()
                await asyncio.wait([waiting], timeout=20)
                assert waiting.cancelled()
                async with asyncio.timeout(20):
                    await recorder.get_history(SESSION)
                    await memory.close()

    before = asyncio.run(store.read_settled())
    asyncio.run(use())
    stored = store.judge(fault, 0, before)
    assert stored.sessions[SESSION].history == []


@pytest.mark.fault("disk that hangs", backend="sqlite")
def test_a_write_that_hangs_is_an_error_that_does_not_know(store: Store, fault: Fault) -> None:
    """A write that is running at its deadline has an unknown outcome; those behind it say that they never started."""
    release = threading.Event()

    begun = threading.Event()

    def hang() -> int:
        begun.set()
        release.wait(30)
        return 1

    async def use() -> None:
        journal = Journal(store.journal(0) / "hanging.jsonl")
        async with store.open() as memory:
            assert isinstance(memory, ConversationMemory)
            recorder = Recorder(memory, journal, "hanging")
            # A file with such a trigger is not opened.
            await memory.count_sessions()
            execute_in_file(
                Path(store.where),
                "CREATE TRIGGER hanging BEFORE INSERT ON messages WHEN new.content = 'hang' BEGIN SELECT hang(); END",
            )
            await run_on_worker(memory, lambda db: db.create_function("hang", 0, hang))
            try:
                with deadline(2):
                    hanging = asyncio.ensure_future(recorder.add_message(SESSION, "user", "hang"))
                    assert await asyncio.to_thread(begun.wait, 20)
                    behind = [
                        asyncio.ensure_future(recorder.add_message(SESSION, "user", "behind")),
                        asyncio.ensure_future(recorder.get_history(SESSION)),
                    ]
                    outcomes = await asyncio.gather(hanging, *behind, return_exceptions=True)
            finally:
                release.set()
            assert [type(outcome) for outcome in outcomes] == [
                OutcomeUnknownError,
                BackendUnavailableError,
                BackendUnavailableError,
            ]
            await recorder.add_message(SESSION, "user", "afterwards")

    before = asyncio.run(store.read_settled())
    asyncio.run(use())
    execute_in_file(Path(store.where), "DROP TRIGGER hanging")
    stored = store.judge(fault, 0, before)
    assert "behind" not in {one["content"] for one in stored.sessions[SESSION].history}
    assert History.read(store.journal(0)).longest_call() < 2 + OVERRUN_SECONDS


@pytest.mark.fault("read that takes too long", backend="sqlite")
def test_a_read_that_takes_too_long_is_stopped(store: Store, fault: Fault) -> None:
    """The read also stops on the thread, so that later calls need not wait for it."""

    async def use() -> None:
        async with store.open() as memory:
            assert isinstance(memory, ConversationMemory)
            await memory.count_sessions()
            worker = await memory._life.opened()
            endless = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
            reading = asyncio.ensure_future(
                worker.read(lambda db: db.execute(endless).fetchone(), 0.2, memory._life.timer)
            )
            (outcome,) = await asyncio.gather(reading, return_exceptions=True)
            assert isinstance(outcome, sqlite3.OperationalError | BackendUnavailableError)
            with deadline(15):
                assert await memory.count_sessions() == 1

    asyncio.run(use())
    fault.add()
