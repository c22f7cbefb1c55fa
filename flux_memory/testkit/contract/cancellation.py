"""Clauses on cancellation: at every await, a write is complete or absent and the handle keeps working."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from flux_memory import Memory, Message
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import TURNS, cancelled_everywhere, turns_of_the_loop
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import (
    StoreUnderTest,
    add_numbered,
    contents,
    gather_outcomes,
)

LATE_SECONDS: Final = 0.3
"""A while after which a call that was still under way when its handle was closed has taken effect."""


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

        async def fill(session: str) -> None:
            await other.create_session(session_id=session)
            await other.add_messages(session, numbered(0, 1, 2))

        await fill("0")
        sessions, deleted = ["0"], set[str]()
        async for attempt in cancelled_everywhere(lambda n: memory.delete_session(str(n))):
            if not attempt.cancelled:
                deleted.add(sessions[-1])
            sessions.append(str(attempt.number + 1))
            await asyncio.gather(_both_work(memory, other, markers, attempt.number), fill(sessions[-1]))
        await memory.close()
        reader = store.open()
        rows = await together(map(reader.get_session, sessions))
        histories = await together(map(reader.get_history, sessions))
        for session, found, history in zip(sessions, rows, histories, strict=True):
            assert (found is None) or (found["message_count"] == 3)
            assert contents(history) == ([] if found is None else ["0", "1", "2"])
            assert found is None or session not in deleted

    @clause(
        "FM-CAN-005",
        promise="A cancelled `update_session_title` sets the title or changes nothing.",
        impact="A rename that timed out leaves the session locked.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.TITLES | Capability.SEVERAL_HANDLES,
    )
    async def test_update_session_title(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session, markers = await memory.create_session("before"), await memory.create_session()
        set_last, uncertain = "before", set[str]()
        async for attempt in cancelled_everywhere(lambda n: memory.update_session_title(session, f"title {n}")):
            title = f"title {attempt.number}"
            if attempt.cancelled:
                # Until the handle is closed, it may still take effect, after a later rename as well.
                uncertain.add(title)
            else:
                set_last = title
            work = _both_work(memory, other, markers, attempt.number)
            found, _ = await asyncio.gather(other.get_session(session), work)
            assert found is not None
            assert found["title"] in {set_last, *uncertain}

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
        reads: list[Callable[[int], Any]] = [
            lambda _: memory.get_history(session),
            lambda _: memory.get_sessions(metadata={}),
            lambda _: memory.get_session(session),
            lambda _: memory.count_sessions(),
        ]

        async def cancel(read: Callable[[int], Any]) -> None:
            async for _ in cancelled_everywhere(read):
                assert await memory.get_session(session) == expected[2]
            assert await memory.count_sessions() == 1
            assert (await memory.get_history(session), await memory.get_sessions()) == expected[:2]

        await together(map(cancel, reads))

    @clause(
        "FM-CAN-007",
        promise="A cancelled `clear_all` removes everything or nothing, by the time its handle is closed.",
        impact="A clear that timed out leaves half the data behind.",
        needs=Capability.BATCH
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.CLEAR_ALL
        | Capability.SEVERAL_HANDLES,
    )
    async def test_clear_all(self, store: StoreUnderTest) -> None:
        handles, other = [store.open()], store.open()

        async def fill(session: str) -> None:
            await other.create_session(session_id=session)
            assert await other.get_history(session) == []
            await other.add_messages(session, numbered(0, 1))

        await together(map(fill, "ab"))
        async for attempt in cancelled_everywhere(lambda _: handles[-1].clear_all()):
            await handles[-1].close()
            histories = await asyncio.gather(*map(other.get_history, "ab"))
            left = (await other.count_sessions(), *map(contents, histories))
            whole = (2, ["0", "1"], ["0", "1"])
            assert left == (0, [], []) or (attempt.cancelled and left == whole), f"after a clear_all: {left}"
            handles.append(store.open())
            if left == whole:
                await handles[-1].clear_all()
            await together(map(fill, "ab"))

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
            await turns_of_the_loop(turns)
            for task in doomed:
                task.cancel()
            assert all(isinstance(outcome, str) for outcome in await gather_outcomes(*others))
            await gather_outcomes(*doomed)
            kept = contents(await memory.get_history(session)).count(f"kept {turns}")
            assert kept == 4, f"4 adds were acknowledged, {kept} are stored"

    @clause(
        "FM-CAN-020",
        promise="A cancelled call takes effect before its handle is closed, or never.",
        impact="A message that was withdrawn appears minutes later, in a conversation that has gone on without it.",
        needs=Capability.SEVERAL_HANDLES,
    )
    async def test_nothing_after_the_close(self, store: StoreUnderTest) -> None:
        reader = store.open()
        sessions = await together(reader.create_session() for _ in TURNS)

        async def cancel(turns: int, session: str) -> list[Message]:
            memory = store.open()
            await memory.get_history(session)
            calls = [asyncio.ensure_future(memory.add_message(session, "user", str(number))) for number in range(3)]
            await turns_of_the_loop(turns)
            for call in calls:
                call.cancel()
            await gather_outcomes(*calls)
            await memory.close()
            return await reader.get_history(session)

        histories = await together(map(cancel, TURNS, sessions))
        await asyncio.sleep(LATE_SECONDS)
        for before, after in zip(histories, await together(map(reader.get_history, sessions)), strict=True):
            assert after == before, f"after the close, {contents(before)} became {contents(after)}"

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


async def _both_work(memory: Memory, other: Memory, session: str, number: int) -> str:
    """Write through the handle and through another one, which would wait for a lock that is still held."""
    content = f"marker {number}"

    async def other_works() -> None:
        await other.create_session(session_id=f"other {number}")
        await other.delete_session(f"other {number}")

    await asyncio.gather(other_works(), memory.add_message(session, "user", content))
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
