"""Clauses on cancellation: at every await, a write is complete or absent and the handle keeps working."""

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
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import TURNS, cancelled_everywhere, turns_of_the_loop
from flux_memory.testkit.contract.ledger import Ledger
from flux_memory.testkit.contract.lifecycle import open_things, resource_warnings
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, contents, gather_outcomes

STORM: Final = 32
"""More calls than a pool has connections."""
AFTER_SECONDS: Final = 10.0
"""The deadline of a call after a cancellation: longer than it takes, short enough to fail soon."""
EACH_TURN: Final = (*range(14), 17, 21, 34, 55, 89)
"""Turns of the event loop after which every task is cancelled."""
CLOSED_AT_ONCE: Final = 3
"""Handles whose `close()` is cancelled in the same turn."""


class CancellationContract(Binding):
    """The promises of cancelled calls, after a client disconnects or a timeout expires."""

    @clause(
        "FM-CAN-001",
        promise="A cancelled `add_message` is stored completely or not at all; counts stay correct and no lock is "
        "held.",
        impact="One user closes a tab; then all other users wait for a lock, or message counts stay wrong.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.SEVERAL_HANDLES,
    )
    async def test_add_message(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session, expected, uncertain = await memory.create_session(), list[str](), set[str]()
        async for attempt in cancelled_everywhere(lambda n: memory.add_message(session, "user", f"try {n}")):
            content = f"try {attempt.number}"
            uncertain.update([content] if attempt.cancelled else [])
            expected += [content, await _both_work(memory, other, session, attempt.number)]
        await _holds(store, memory, session, expected, uncertain)

    @clause(
        "FM-CAN-002",
        promise="A cancelled `add_messages` is stored completely or not at all; counts stay correct and no lock is "
        "held.",
        impact="A question is stored without its answer.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.SESSION_IDS | Capability.SEVERAL_HANDLES,
    )
    async def test_add_messages(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session, expected, uncertain = await memory.create_session(), list[str](), set[str]()
        async for attempt in cancelled_everywhere(
            lambda n: memory.add_messages(session, numbered(n * 1_000, n * 1_000 + 1, n * 1_000 + 2))
        ):
            batch = [str(attempt.number * 1_000 + at) for at in range(3)]
            uncertain.update(batch if attempt.cancelled else [])
            expected += [*batch, await _both_work(memory, other, session, attempt.number)]
        stored = await _holds(store, memory, session, expected, uncertain)
        for number in {text[:-3] for text in uncertain}:
            parts = [text for text in stored if text.isdecimal() and text[:-3] == number]
            assert len(parts) in {0, 3}, f"only part of a batch was stored: {parts}"

    @clause(
        "FM-CAN-003",
        promise="A cancelled `create_session` leaves a complete session or none.",
        impact="Sessions appear without an owner or metadata.",
        needs=Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.SESSION_METADATA
        | Capability.USER_SCOPE
        | Capability.TITLES
        | Capability.SEVERAL_HANDLES,
    )
    async def test_create_session(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        markers, created, uncertain = await memory.create_session(session_id="markers"), set[str](), set[str]()
        async for attempt in cancelled_everywhere(
            lambda n: memory.create_session("t", {"k": n}, session_id=str(n), user_id="u")
        ):
            (uncertain if attempt.cancelled else created).add(str(attempt.number))
            await _both_work(memory, other, markers, attempt.number)
        await memory.close()
        reader = store.open()
        rows = {row["id"]: row for row in await reader.get_sessions(None)}
        assert created <= rows.keys() - {"markers"} <= created | uncertain
        assert await reader.count_sessions() == len(rows)
        for name, row in rows.items():
            if name != "markers":
                assert (row["title"], row["user_id"], row["metadata"]) == ("t", "u", {"k": int(name)})

    @clause(
        "FM-CAN-004",
        promise="A cancelled `delete_session` removes a session with all its messages, or nothing.",
        impact="A conversation loses some of its messages.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.SESSION_IDS | Capability.SEVERAL_HANDLES,
    )
    async def test_delete_session(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        markers = await memory.create_session()
        for number in range(_ATTEMPTS):
            await memory.create_session(session_id=str(number))
            await memory.add_messages(str(number), numbered(0, 1, 2))
        deleted = set()
        async for attempt in cancelled_everywhere(lambda n: memory.delete_session(str(n))):
            if not attempt.cancelled:
                deleted.add(str(attempt.number))
            await _both_work(memory, other, markers, attempt.number)
        await memory.close()
        reader = store.open()
        for number in range(_ATTEMPTS):
            found = await reader.get_session(str(number))
            history = await reader.get_history(str(number))
            assert (found is None) or (found["message_count"] == 3)
            assert contents(history) == ([] if found is None else ["0", "1", "2"])
            assert found is None or str(number) not in deleted

    @clause(
        "FM-CAN-005",
        promise="A cancelled `update_session_title` sets the title or changes nothing.",
        impact="A rename that timed out leaves the session locked.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.TITLES | Capability.SEVERAL_HANDLES,
    )
    async def test_update_session_title(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session, markers = await memory.create_session("before"), await memory.create_session()
        possible = {"before"}
        async for attempt in cancelled_everywhere(lambda n: memory.update_session_title(session, f"title {n}")):
            title = f"title {attempt.number}"
            possible = possible | {title} if attempt.cancelled else {title}
            await _both_work(memory, other, markers, attempt.number)
            found = await other.get_session(session)
            assert found is not None
            assert found["title"] in possible

    @clause(
        "FM-CAN-006",
        promise="After a cancelled read, the handle still works, and later reads get their own answers.",
        impact="After a timeout, a user sees the answer to another user's request.",
        needs=Capability.SESSIONS | Capability.TITLES,
    )
    async def test_reads(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session("t")
        await add_numbered(memory, session, range(3))
        expected: Any = (
            await memory.get_history(session),
            await memory.get_sessions(),
            await memory.get_session(session),
        )
        reads: list[Any] = [
            lambda _: memory.get_history(session),
            lambda _: memory.get_sessions(metadata={}),
            lambda _: memory.get_session(session),
            lambda _: memory.count_sessions(),
        ]
        for read in reads:
            async for _ in cancelled_everywhere(read):
                assert await memory.get_session(session) == expected[2]
            assert await memory.count_sessions() == 1
            assert (await memory.get_history(session), await memory.get_sessions()) == expected[:2]

    @clause(
        "FM-CAN-007",
        promise="A cancelled `clear_all` removes everything or nothing.",
        impact="A clear that timed out leaves half the data behind.",
        needs=Capability.BATCH
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.CLEAR_ALL
        | Capability.SEVERAL_HANDLES,
    )
    async def test_clear_all(self, store: StoreUnderTest) -> None:
        handles, other = [store.open()], store.open()

        for session in "ab":
            await other.create_session(session_id=session)
            await other.add_messages(session, numbered(0, 1))
        async for attempt in cancelled_everywhere(lambda _: handles[-1].clear_all()):
            nothing: Any = [0, [], []]
            whole = [2, ["0", "1"], ["0", "1"]]
            left = await self._left(other)
            deadline = time.monotonic() + 5
            while left not in (nothing, whole) and time.monotonic() < deadline:
                # The store may still complete a cancelled call between two of these reads.
                left = await self._left(other)
            assert left in ([nothing, whole] if attempt.cancelled else [nothing])
            # What the cancelled call has sent may arrive late, but not after its handle is closed.
            await handles[-1].close()
            handles.append(store.open())
            await handles[-1].clear_all()
            for session in "ab":
                await other.create_session(session_id=session)
                assert await other.get_history(session) == []
                await other.add_messages(session, numbered(0, 1))

    @staticmethod
    async def _left(memory: Memory) -> list[Any]:
        """Return the number of sessions, and the contents of sessions `a` and `b`."""
        return [await memory.count_sessions(), *[contents(await memory.get_history(session)) for session in "ab"]]

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
        "FM-CAN-009",
        promise="Cancelling one call does not affect concurrent calls: acknowledged writes are stored.",
        impact="One user's timeout discards other users' messages.",
    )
    async def test_neighbours(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        for turns in (0, 1, 2, 4, 8, 16, 32):
            doomed = [asyncio.ensure_future(memory.add_message(session, "user", f"doomed {n}")) for n in range(4)]
            others = [asyncio.ensure_future(memory.add_message(session, "user", f"kept {turns}")) for _ in range(4)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in doomed:
                task.cancel()
            assert all(isinstance(outcome, str) for outcome in await gather_outcomes(*others))
            await gather_outcomes(*doomed)
            kept = contents(await memory.get_history(session)).count(f"kept {turns}")
            assert kept == 4, f"4 adds were acknowledged, {kept} are stored"

    @clause(
        "FM-CAN-010",
        promise="A cancelled add can be retried with its `message_id`, and the message is then stored exactly once.",
        impact="After a timeout, a message is duplicated or lost.",
        needs=Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.SEVERAL_HANDLES,
    )
    async def test_retry_after_cancellation(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()
        attempts = 0
        async for attempt in cancelled_everywhere(
            lambda n: memory.add_message(session, "user", f"text {n}", message_id=f"m{n}")
        ):
            content, message_id = f"text {attempt.number}", f"m{attempt.number}"
            assert await (other, memory)[attempts % 2].add_message(session, "user", content, message_id=message_id)
            attempts += 1
        await memory.close()
        history = await other.get_history(session)
        assert [row["id"] for row in history] == [f"m{number}" for number in range(attempts)]

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
        memory = store.open_plain()
        session, kept = await memory.create_session(), list[str]()
        for beside in (0, 3):
            for count in (1, 8):
                name = f"{count} beside {beside}"
                others = [asyncio.ensure_future(memory.add_message(session, "user", name)) for _ in range(beside)]
                doomed = [asyncio.ensure_future(memory.add_message(session, "user", "doomed")) for _ in range(count)]
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
            assert await ledger.add(memory, again, within=AFTER_SECONDS), f"not added after a cancellation at {turns}"
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
            assert await ledger.add(memory, "first", within=AFTER_SECONDS)
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
        deadline = time.monotonic() + AFTER_SECONDS
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


_ATTEMPTS = 60
"""Sessions to delete: one for each attempt that a call with two dozen awaits needs."""


async def _both_work(memory: Memory, other: Memory, session: str, number: int) -> str:
    """Write through the handle and through another one, which would wait for a lock that is still held."""
    await other.create_session(session_id=f"other {number}")
    await other.delete_session(f"other {number}")
    content = f"marker {number}"
    await memory.add_message(session, "user", content)
    return content


async def _holds(
    store: StoreUnderTest, memory: Memory, session: str, expected: list[str], uncertain: set[str]
) -> list[str]:
    """Assert that a settled history has the expected messages, and of the cancelled ones each at most once."""
    await memory.close()
    reader = store.open()
    stored = contents(await reader.get_history(session))
    found = await reader.get_session(session)
    assert found is not None
    assert found["message_count"] == len(stored)
    assert len(set(stored)) == len(stored), "a cancelled write was stored twice"
    certain = [content for content in expected if content not in uncertain]
    assert [content for content in stored if content not in uncertain] == certain
    return stored
