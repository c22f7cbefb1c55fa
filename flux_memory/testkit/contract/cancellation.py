"""Clauses on cancellation: at every await, a write is complete or absent and the handle keeps working."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from flux_memory import Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import cancelled_everywhere
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, contents, gather_outcomes


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
