"""Clauses on cancellation of many calls at once, of openings and of closes, as when an application shuts down."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Iterable
from typing import Any, Final

import pytest

from flux_memory import Memory, MemoryClosedError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import TURNS, cancelled_everywhere, turns_of_the_loop
from flux_memory.testkit.contract.ledger import Ledger
from flux_memory.testkit.contract.lifecycle import open_things, resource_warnings
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents, gather_outcomes

STORM: Final = 32
"""More calls than a pool has connections."""
ENDING_SECONDS: Final = 10.0
"""How long threads and connections may take to end after their handle is closed."""
EACH_TURN: Final = (*range(14), 17, 21, 34, 55, 89)
"""Turns of the event loop after which every task is cancelled."""
CLOSED_AT_ONCE: Final = 3
"""Handles whose `close()` is cancelled in the same turn."""


class ShutdownContract(Binding):
    """The promises to an application that shuts down, or cancels all of its calls."""

    @clause(
        "FM-CAN-008",
        promise="If the first call on a handle is cancelled, the next call opens the store.",
        impact="A worker whose first request timed out never serves another request.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.TITLES,
    )
    async def test_first_use(self, store: StoreUnderTest) -> None:
        handles: list[Memory] = []

        async def first_use(number: int) -> str:
            handles.append(store.open())
            return await handles[-1].create_session(session_id=str(number))

        async for attempt in cancelled_everywhere(first_use):
            while handles:
                handle = handles.pop()
                found = await handle.get_session(str(attempt.number))
                assert attempt.cancelled or found is not None
                assert await handle.create_session("works")
                await handle.close()

    @clause(
        "FM-CAN-011",
        promise="After many cancelled calls, the handle still serves as many concurrent calls as before.",
        impact="Each timeout leaks a connection, until none is left.",
        needs=Capability.SESSIONS,
    )
    async def test_storm(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        for turns in (1, 3, 10, 30):
            storm = [asyncio.ensure_future(memory.add_message(session, "user", "storm")) for _ in range(STORM // 2)]
            storm += [asyncio.ensure_future(memory.create_session("storm")) for _ in range(STORM // 2)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in storm:
                task.cancel()
            await gather_outcomes(*storm)
        outcomes = await gather_outcomes(*(memory.add_message(session, "user", str(n)) for n in range(STORM)))
        for _ in range(STORM):
            before, history, after = (
                await memory.get_session(session),
                await memory.get_history(session),
                await memory.get_session(session),
            )
            assert before is not None
            assert after is not None
            assert set(outcomes) <= {row["id"] for row in history}
            # A call that was cancelled after it was sent may be stored between two reads.
            if before["message_count"] == after["message_count"]:
                assert after["message_count"] == len(history)
                break
        else:
            pytest.fail("the number of messages never stopped changing")

    @clause(
        "FM-CAN-012",
        promise="A cancelled `close()` loses no acknowledged write and can be called again.",
        impact="An interrupted shutdown loses the last messages.",
        needs=Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.SEVERAL_HANDLES,
    )
    async def test_close(self, store: StoreUnderTest) -> None:
        reader = store.open()
        session = await reader.create_session()
        handles: list[Memory] = []

        async def write_and_close(number: int) -> None:
            handles.append(store.open())
            await handles[-1].add_message(session, "user", str(number), message_id=str(number))
            await handles[-1].close()

        async for attempt in cancelled_everywhere(write_and_close):
            while handles:
                await handles.pop().close()
            stored = [row["id"] for row in await reader.get_history(session)]
            assert attempt.cancelled or str(attempt.number) in stored

    @clause(
        "FM-CAN-013",
        promise="An add cancelled in the event loop turn that made it is not stored, alone or beside other adds.",
        impact="A message that was withdrawn before it was sent appears in the conversation.",
    )
    async def test_cancelled_at_once(self, store: StoreUnderTest) -> None:
        memory, plain = store.open_both()
        session, kept = await memory.create_session(), list[str]()
        for beside in (0, 3):
            for count in (1, 8):
                name = f"{count} beside {beside}"
                others = [asyncio.ensure_future(plain.add_message(session, "user", name)) for _ in range(beside)]
                doomed = [asyncio.ensure_future(plain.add_message(session, "user", "doomed")) for _ in range(count)]
                for task in doomed:
                    task.cancel()
                assert all(isinstance(outcome, str) for outcome in await gather_outcomes(*others))
                await gather_outcomes(*doomed)
                # Once this call is done, earlier ones in the session are done as well.
                await memory.add_message(session, "user", name)
                kept += [name] * (beside + 1)
        assert contents(await memory.get_history(session)) == kept

    @clause(
        "FM-CAN-014",
        promise="If every task of the event loop is cancelled, at any turn, the handle still adds, reads and closes, "
        "and loses nothing.",
        impact="An application that cancels all tasks and then saves its remaining messages cannot save them.",
    )
    async def test_every_task_cancelled(self, store: StoreUnderTest) -> None:
        ours = asyncio.all_tasks()
        memory = store.open()
        ledger = Ledger(await memory.create_session())
        for turns in TURNS:
            calls: list[asyncio.Task[Any]] = [ledger.adding(memory, f"{turns}-{number}") for number in range(6)]
            calls += [asyncio.ensure_future(memory.get_history(ledger.session)) for _ in range(2)]
            await _cancel_all(calls, turns, spared=ours)
            again = f"{turns} turns, and again"
            assert await ledger.add(memory, again), f"not added after a cancellation at {turns}"
            assert again in contents(await memory.get_history(ledger.session))
        await memory.close()
        await ledger.judge(store)

    @clause(
        "FM-CAN-015",
        promise="If every task is cancelled while a handle opens, at any turn, the next call opens it.",
        impact="A worker that is cancelled during startup reports a closed memory until it is restarted.",
        needs=Capability.SEVERAL_HANDLES,
    )
    async def test_every_task_cancelled_while_opening(self, store: StoreUnderTest) -> None:
        ours = asyncio.all_tasks()
        for turns in TURNS:
            memory = store.open()
            calls: list[asyncio.Task[Any]] = [asyncio.ensure_future(memory.create_session()) for _ in range(2)]
            calls.append(asyncio.ensure_future(memory.get_history("no session")))
            await _cancel_all(calls, turns, spared=ours)
            ledger = Ledger(await memory.create_session())
            assert await ledger.add(memory, "first")
            assert contents(await memory.get_history(ledger.session)) == ["first"]
            await memory.close()

    @clause(
        "FM-CAN-016",
        promise="If every task is cancelled while a handle closes, calling `close()` again closes it: no acknowledged "
        "write is lost, and no thread, file or connection stays open.",
        impact="An interrupted shutdown leaks connections, or keeps the interpreter from exiting.",
        needs=Capability.SEVERAL_HANDLES,
    )
    async def test_every_task_cancelled_while_closing(self, store: StoreUnderTest) -> None:
        reader = store.open()
        ledger = Ledger(await reader.create_session())
        await self._close_in_two_steps(store, ledger, "once", TURNS[:3])
        # Collect objects of earlier clauses now: collected later, they would hide new leaks.
        gc.collect()
        before = open_things()
        await self._close_in_two_steps(store, ledger, "and once more", TURNS)
        deadline = time.monotonic() + ENDING_SECONDS
        # Resources shared by all handles may stay open. Threads end a little later.
        while any(now - then >= CLOSED_AT_ONCE for now, then in zip(open_things(), before, strict=True)):
            assert time.monotonic() < deadline, f"handles closed by a second close() left threads or files: {before}"
            gc.collect()
            await asyncio.sleep(0.01)
        # Drop the handles: an unclosed one emits a warning when it is collected.
        await store.close()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gc.collect()
        assert not (left := resource_warnings(caught)), f"handles that were closed again: {left[0]}"
        await ledger.judge(store)

    @staticmethod
    async def _close_in_two_steps(store: StoreUnderTest, ledger: Ledger, name: str, turns: Iterable[int]) -> None:
        ours = asyncio.all_tasks()
        for each in turns:
            handles = [store.open() for _ in range(CLOSED_AT_ONCE)]
            adds = [ledger.adding(memory, f"{name} {each}-{at}") for at, memory in enumerate(handles)]
            assert all(await asyncio.gather(*adds))
            calls: list[asyncio.Task[Any]] = [
                ledger.adding(memory, f"{name} {each}-{at} beside") for at, memory in enumerate(handles)
            ]
            await turns_of_the_loop(2)
            calls += [asyncio.ensure_future(memory.close()) for memory in handles]
            await _cancel_all(calls, each, spared=ours)
            for memory in handles:
                (outcome,) = await gather_outcomes(memory.close())
                assert outcome is None, f"close() failed after a close() that was cancelled at turn {each}: {outcome!r}"
                with pytest.raises(MemoryClosedError):
                    await memory.get_history(ledger.session)


async def _cancel_all(calls: list[asyncio.Task[Any]], turns: int, *, spared: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel every task of the loop except the spared ones after some turns, and wait until the calls end."""
    await turns_of_the_loop(turns)
    for task in asyncio.all_tasks().difference(spared):
        task.cancel()
    await gather_outcomes(*calls)
