"""Tests that a handle works after every task was cancelled at any turn of the loop, as at an application's end."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest
from fault_outcomes import CONTENTS
from fault_report import Fault
from fault_work import Store, on_both_backends
from raw_postgres import OPEN, fetch_rows, wait_until_none, with_application_name
from waiting import becomes_true

from flux_memory import FluxMemoryError, Memory, MemoryClosedError, PostgresConversationMemory, deadline
from flux_memory.testkit import Proxy
from flux_memory.testkit.histories import Journal, Recorder

SESSIONS: Final = [f"s{number}" for number in range(12)]
BURST: Final = 72
Moment = int | float
"""Turns of the event loop, or seconds, because work on a socket or a thread takes longer than a turn."""
OPENING_MOMENTS: Final[list[Moment]] = [*range(12), *(number / 500 for number in range(1, 20))]


async def wait_for_moment(moment: Moment, calls: Iterable[asyncio.Future[Any]]) -> None:
    """Let calls run until this moment."""
    if isinstance(moment, float):
        await asyncio.wait(calls, timeout=moment)
        return
    for _ in range(moment):
        await asyncio.sleep(0)


async def cancel_everything() -> None:
    """Cancel all tasks, including the library's own, as applications do at their end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=10)


def start_burst(memory: Memory, turn: object) -> list[asyncio.Future[Any]]:
    """Start adds to many sessions, some of them batches."""
    calls: list[Awaitable[Any]] = []
    for number in range(BURST):
        session, content = SESSIONS[number % len(SESSIONS)], f"{turn} {number}"
        if number % 5:
            calls.append(memory.add_message(session, "user", content))
        else:
            calls.append(memory.add_messages(session, [{"role": "user", "content": f"{content} {n}"} for n in "ab"]))
    return [asyncio.ensure_future(call) for call in calls]


async def assert_works(memory: Memory, turn: object) -> None:
    """Assert that an application can still save its work: a burst of adds, then reads."""
    with deadline(4):
        outcomes = await asyncio.gather(*start_burst(memory, f"{turn} saved"), return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert not failed, f"cancelled at {turn}: {len(failed)} of {BURST} adds fail afterwards, with {failed[0]!r}"
        for session in SESSIONS:
            await memory.get_history(session)
        assert await memory.count_sessions() == len(SESSIONS)


async def fill_sessions(store: Store, journal: Journal) -> None:
    """Create the sessions."""
    async with store.open() as memory:
        recorder = Recorder(memory, journal, "before")
        for session in SESSIONS:
            await recorder.create_session(session_id=session)


def run_work(store: Store, fault: Fault, work: Callable[[Journal], Awaitable[None]]) -> None:
    """Run the work on a separate event loop, and check its answers against the stored data."""

    async def main() -> None:
        await fill_sessions(store, journal)
        await work(journal)

    journal = Journal(store.journal(0) / "journal.jsonl")
    asyncio.run(main())
    journal.close()
    # The warning about a leaked handle belongs to this test, not to a later one.
    gc.collect()
    store.judge(fault, 0)


@on_both_backends("every task cancelled in a burst")
def test_a_handle_works_after_every_task_was_cancelled_in_a_burst(store: Store, fault: Fault) -> None:
    """At each turn of the loop: the queue, the connections and the order of each session recover."""

    async def work(journal: Journal) -> None:
        for turn in range(41):
            async with store.open() as inner:
                await inner.count_sessions()
                memory = Recorder(inner, journal, "burst")
                calls = start_burst(memory, turn)
                await wait_for_moment(turn, calls)
                await cancel_everything()
                assert all(call.done() for call in calls)
                await assert_works(memory, turn)

    run_work(store, fault, work)


@on_both_backends("tasks of the library cancelled in a burst")
def test_callers_are_answered_though_every_task_but_theirs_was_cancelled(store: Store, fault: Fault) -> None:
    """Callers that were not cancelled get a result or an error of the library in time."""

    async def work(journal: Journal) -> None:
        for turn in range(41):
            async with store.open() as inner:
                await inner.count_sessions()
                memory = Recorder(inner, journal, "burst")
                with deadline(4):
                    calls = start_burst(memory, turn)
                await wait_for_moment(turn, calls)
                for task in asyncio.all_tasks() - {asyncio.current_task(), *calls}:
                    task.cancel()
                done, late = await asyncio.wait(calls, timeout=6)
                assert not late, f"cancelled at {turn}: {len(late)} callers wait for ever"
                assert not [call for call in done if call.cancelled()], "a caller that was not cancelled is told so"
                errors = [call.exception() for call in done if call.exception() is not None]
                assert all(isinstance(error, FluxMemoryError) for error in errors), errors
                await assert_works(memory, turn)

    run_work(store, fault, work)


@on_both_backends("every task cancelled again and again")
def test_a_handle_works_after_every_task_was_cancelled_many_times(store: Store, fault: Fault) -> None:
    """With one handle for all rounds, damage does not accumulate."""

    async def work(journal: Journal) -> None:
        rng = random.Random(3)
        async with store.open() as inner:
            memory = Recorder(inner, journal, "burst")
            for number in range(40):
                calls = [
                    *start_burst(memory, number),
                    *(asyncio.ensure_future(memory.get_history(session)) for session in SESSIONS[:3]),
                    asyncio.ensure_future(memory.update_session_title("s0", f"{number}")),
                ]
                await wait_for_moment(rng.choice([rng.randrange(6), rng.randrange(120), rng.random() / 50]), calls)
                await cancel_everything()
            await assert_works(memory, "the end")

    run_work(store, fault, work)


@on_both_backends("last words at the end of asyncio.run")
def test_tasks_save_messages_while_asyncio_run_cancels_them(store: Store, fault: Fault) -> None:
    """A cancelled worker adds its last message, although every task of the library was cancelled with it."""
    saved: list[str] = []

    async def work(journal: Journal) -> None:
        inner = store.open()
        memory = Recorder(inner, journal, "worker")
        begun = asyncio.Event()

        async def worker(number: int) -> None:
            session = SESSIONS[number % len(SESSIONS)]
            try:
                for turn in range(10**9):
                    await memory.add_message(session, "user", f"{number} {turn}")
                    if turn == 3 and number == 0:
                        begun.set()
            finally:
                with deadline(5):
                    saved.append(await memory.add_message(session, "user", f"last words of {number}"))

        async def closer() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.wait(workers)
                await inner.close()

        workers = [asyncio.ensure_future(worker(number)) for number in range(BURST)]
        closing.append(asyncio.ensure_future(closer()))
        await begun.wait()

    closing: list[asyncio.Future[None]] = []
    run_work(store, fault, work)
    assert len(saved) == BURST


@on_both_backends("every task cancelled while a handle opens")
@pytest.mark.parametrize("callers", [1, 5])
@pytest.mark.parametrize("everything", [True, False], ids=["every task", "callers alone"])
def test_a_handle_whose_opening_was_cancelled_opens_at_its_next_use(
    store: Store, fault: Fault, callers: int, everything: bool
) -> None:
    """From the first step of the opening on: the handle is not closed, because no one called `close()`."""

    async def work(journal: Journal) -> None:
        for moment in OPENING_MOMENTS:
            async with store.open() as inner:
                memory = Recorder(inner, journal, "opener")
                calls = [
                    asyncio.ensure_future(memory.add_message(SESSIONS[number], "user", f"{moment}"))
                    for number in range(callers)
                ]
                await wait_for_moment(moment, calls)
                if everything:
                    await cancel_everything()
                else:
                    for call in calls:
                        call.cancel()
                    await asyncio.wait(calls, timeout=5)
                assert all(call.done() for call in calls)
                with deadline(5):
                    await memory.add_message("s0", "user", f"{moment} saved")
                    assert await memory.count_sessions() == len(SESSIONS)

    run_work(store, fault, work)


@pytest.mark.fault("every task cancelled while a handle waits for its server", backend="postgres")
def test_a_handle_cancelled_while_its_server_was_away_opens_later(flux_empty_database: str, fault: Fault) -> None:
    """Nothing of the first calls is stored, and the next ones succeed."""

    async def work() -> None:
        async with PostgresConversationMemory(flux_empty_database) as direct:
            await direct.create_session(session_id="s0")
        with Proxy(with_application_name(flux_empty_database)) as proxy:
            proxy.refuse()
            async with PostgresConversationMemory(proxy.dsn, timeout=20) as memory:
                calls = [asyncio.ensure_future(memory.add_message("s0", "user", f"{number}")) for number in range(8)]
                await asyncio.wait(calls, timeout=0.3)
                await cancel_everything()
                assert all(call.cancelled() for call in calls)
                proxy.heal()
                with deadline(5):
                    await asyncio.gather(*(memory.add_message("s0", "user", "saved") for _ in range(8)))
            await wait_until_none(flux_empty_database, OPEN)
        assert await fetch_rows(flux_empty_database, CONTENTS) == [("s0", "saved")] * 8
        fault.add(acknowledged=8)

    asyncio.run(work())


def list_open_files(store: Store) -> list[str]:
    """Return the files of a SQLite store that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if target.startswith(store.where):
            found.append(target)
    return found


@on_both_backends("close() cancelled")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("everything", [True, False], ids=["every task", "close() alone"])
def test_a_close_that_was_cancelled_can_be_called_again(
    store: Store, fault: Fault, busy: bool, everything: bool
) -> None:
    """The second call closes what the first one left open: connections, files, threads."""

    async def work(journal: Journal) -> None:
        for moment in [*range(12), 0.002, 0.005, 0.01]:
            threads = threading.active_count()
            inner = store.open()
            await inner.count_sessions()
            memory = Recorder(inner, journal, "closing")
            calls = start_burst(memory, moment) if busy else []
            if busy:
                await wait_for_moment(3, calls)
            closing = asyncio.ensure_future(inner.close())
            await wait_for_moment(moment, [closing])
            if everything:
                await cancel_everything()
            else:
                closing.cancel()
                await asyncio.wait([closing], timeout=5)
            assert closing.done()
            await asyncio.wait_for(inner.close(), 10)
            if calls:
                await asyncio.wait_for(asyncio.wait(calls), 10)
            with pytest.raises(MemoryClosedError):
                await inner.count_sessions()
            if store.backend == "postgres":
                await wait_until_none(store.where, OPEN)
            else:
                assert becomes_true(lambda: not list_open_files(store), seconds=3), (
                    f"at {moment}: {list_open_files(store)}"
                )
                assert becomes_true(lambda: threading.active_count() <= threads, seconds=3), moment  # noqa: B023 - now

    run_work(store, fault, work)


@on_both_backends("close() cancelled")
def test_a_second_closer_is_not_cancelled_with_the_first(store: Store, fault: Fault) -> None:
    """Two tasks close one handle and one is cancelled: the other returns when the handle is closed."""

    async def work(journal: Journal) -> None:
        for turn in range(10):
            inner = store.open()
            memory = Recorder(inner, journal, "closing")
            await memory.add_message("s0", "user", f"{turn}")
            adding = asyncio.ensure_future(memory.add_message("s0", "user", f"{turn} in flight"))
            await asyncio.sleep(0)
            first, second = (asyncio.ensure_future(inner.close()) for _ in range(2))
            await wait_for_moment(turn, [second])
            first.cancel()
            await asyncio.wait_for(second, 10)
            await asyncio.wait_for(asyncio.wait([first, adding]), 5)
            if store.backend == "postgres":
                await wait_until_none(store.where, OPEN)
            else:
                assert becomes_true(lambda: not list_open_files(store), seconds=3)

    run_work(store, fault, work)
