"""Clauses on pops, forks and bulk deletions that are cancelled, or that fail at their deadline or in an outage."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from flux_memory import Memory, Message, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import POINTS, TURNS, cancelled_everywhere, turns_of_the_loop
from flux_memory.testkit.contract.deadlines import MIXED_SECONDS, OWN_SECONDS, SHORT_SECONDS
from flux_memory.testkit.contract.outages import Outage, in_each
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.replies import Reply, find_state, reply_to
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, contents

ATTEMPTS: Final = 2 * len(POINTS) + len(TURNS)
"""At most as many calls are cancelled."""
CALLERS: Final = 8
CALLS: Final = 6
"""Calls of each caller with a deadline."""
AWAY_CALLS: Final = 6
"""Calls of each kind during an outage."""

POPPED: Final = Capability.POP | Capability.BATCH | Capability.SESSIONS | Capability.SEVERAL_HANDLES
FORKED: Final = (
    Capability.FORK | Capability.BATCH | Capability.SESSIONS | Capability.SESSION_IDS | Capability.SEVERAL_HANDLES
)
DELETED: Final = (
    Capability.RETENTION
    | Capability.BATCH
    | Capability.SESSIONS
    | Capability.SESSION_IDS
    | Capability.USER_SCOPE
    | Capability.TIMESTAMPS
    | Capability.SEVERAL_HANDLES
)


class InterruptedRemovalsContract(Binding):
    """The promises to callers that give up a pop, a fork or a bulk deletion."""

    @clause(
        "FM-CAN-040",
        promise="A cancelled `pop_message` removes the newest message or nothing; the count stays correct and no lock "
        "is held.",
        impact="A user who presses undo and leaves loses two messages, or all other users wait.",
        needs=POPPED,
    )
    async def test_cancelled_pops(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session, markers = [await other.create_session() for _ in range(2)]
        await other.add_messages(session, numbered(*range(ATTEMPTS)))
        pops = Pops(session, ATTEMPTS)
        async for attempt in cancelled_everywhere(lambda _: memory.pop_message(session)):
            if attempt.cancelled:
                pops.uncertain += 1
            else:
                pops.popped.append(attempt.result)
            await _both_work(memory, other, markers)
        await memory.close()
        await pops.judge(store.open())

    @clause(
        "FM-CAN-041",
        promise="A cancelled `fork_session` makes a whole copy or none, and holds no lock.",
        impact="A user closes the page at once, and half a conversation stays in the list.",
        needs=FORKED,
    )
    async def test_cancelled_forks(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await other.create_session()
        await other.add_messages(session, numbered(0, 1, 2))
        made, tried = set[str](), set[str]()
        async for attempt in cancelled_everywhere(lambda n: memory.fork_session(session, new_session_id=f"fork {n}")):
            tried.add(f"fork {attempt.number}")
            if not attempt.cancelled:
                made.add(f"fork {attempt.number}")
            # The original is what a fork may lock.
            await asyncio.gather(*(each.add_message(session, "user", "marker") for each in (memory, other)))
        await memory.close()
        found = await together(find_state(other, name) for name in sorted(tried))
        whole = {name for name, (record, _) in zip(sorted(tried), found, strict=True) if record is not None}
        assert made <= whole, "an acknowledged copy is not there"
        for record, history in found:
            # Later forks have the markers of earlier attempts.
            markers = ["marker"] * (len(history) - 3)
            assert contents(history) == ([] if record is None else ["0", "1", "2", *markers])
            assert record is None or record["message_count"] == len(history)
        assert await other.count_sessions() == len(whole) + 1

    @clause(
        "FM-CAN-042",
        promise="A cancelled `delete_sessions` removes whole sessions, only those that it should, and holds no lock; "
        "another call removes the rest.",
        impact="A retention job is stopped, and conversations lose some of their messages.",
        needs=DELETED,
    )
    async def test_cancelled_deletions(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        markers = await other.create_session(user_id="carol")

        async def fill(number: int) -> None:
            for part in "ab":
                session = f"{number} {part}"
                await other.create_session(session_id=session, user_id=str(number))
                await other.add_messages(session, numbered(0, 1))

        await fill(0)
        unfinished: list[int] = []
        last = 0
        async for attempt in cancelled_everywhere(lambda n: memory.delete_sessions(user_id=str(n))):
            last = attempt.number
            if attempt.cancelled:
                unfinished.append(last)
            else:
                assert attempt.result == 2, f"removed {attempt.result} of 2 sessions"
            await asyncio.gather(_both_work(memory, other, markers), fill(last + 1))
        await memory.close()
        sessions = [f"{number} {part}" for number in range(last + 2) for part in "ab"]
        left = 0
        for session, (record, history) in zip(
            sessions, await together(find_state(other, session) for session in sessions), strict=True
        ):
            number = int(session.split()[0])
            assert contents(history) == ([] if record is None else ["0", "1"]), "a session was deleted in part"
            assert record is None or number in {*unfinished, last + 1}
            assert record is not None or number <= last
            left += record is not None
        assert await other.count_sessions() == left + 1
        future = datetime.now(UTC) + timedelta(days=1)
        assert await other.delete_sessions(inactive_since=future) == left + 1

    @clause(
        "FM-CAN-043",
        promise="After a cancelled look-up, page or count, the handle still works, and later reads get their own "
        "answers.",
        impact="After a timeout, a user sees a message of another user's conversation.",
        needs=Capability.MESSAGE_LOOKUP | Capability.FORWARD_CURSOR | Capability.MESSAGE_IDS,
    )
    async def test_cancelled_look_ups(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = await add_numbered(memory, session, range(3))
        history = await memory.get_history(session)
        reads: list[Callable[[int], Any]] = [
            lambda _: memory.get_message(session, ids[0]),
            lambda _: memory.get_history(session, after=ids[0]),
        ]
        if Capability.COUNT_FILTER | Capability.SESSIONS | Capability.USER_SCOPE in store.capabilities:
            reads.append(lambda _: memory.count_sessions(user_id="carol"))

        async def cancel(read: Callable[[int], Any]) -> None:
            async for _ in cancelled_everywhere(read):
                assert await memory.get_message(session, ids[1]) == history[1]
            assert await memory.get_history(session, after=ids[1]) == history[2:]

        await together(map(cancel, reads))

    @clause(
        "FM-DLN-040",
        promise="A pop or a fork that fails at its deadline has no effect, then or later, regardless of the deadlines "
        "of concurrent calls.",
        impact="Under load, an undo is reported as failed, is repeated, and removes two messages.",
        needs=POPPED | FORKED,
    )
    async def test_deadlines_of_pops_and_forks(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, source = [await memory.create_session() for _ in range(2)]
        await memory.add_messages(session, numbered(*range(CALLERS * CALLS)))
        await memory.add_messages(source, numbered(0, 1, 2))
        pops, forks = Pops(session, CALLERS * CALLS), dict[str, Reply]()

        async def call(caller: int) -> None:
            chance = random.Random(caller)  # noqa: S311 - the same calls each time
            for number in range(CALLS):
                await turns_of_the_loop(chance.randrange(6))
                within, name = chance.choice(MIXED_SECONDS), f"fork {caller} {number}"
                if number % 2:
                    await pops.pop(memory, within)
                else:
                    forks[name] = await _reply(memory.fork_session(source, new_session_id=name), within)

        await asyncio.gather(*map(call, range(CALLERS)))
        await memory.close()
        reader = store.open()
        await pops.judge(reader)
        await _judge_forks(reader, forks)

    @clause(
        "FM-DLN-041",
        promise="A pop, a fork or a deletion that fails while the store is unreachable has no effect when the store "
        "returns.",
        impact="After an outage, withdrawn undos remove messages that users have read meanwhile.",
        needs=POPPED | FORKED | DELETED | Capability.OUTAGES,
        away=True,
    )
    async def test_removals_during_an_outage(self, store: StoreUnderTest) -> None:
        async def check(outage: Outage) -> None:
            memory = store.open_through(outage)
            session, source = [await memory.create_session() for _ in range(2)]
            doomed = [await memory.create_session(user_id=f"{outage.name} {number}") for number in range(AWAY_CALLS)]
            await memory.add_messages(session, numbered(*range(AWAY_CALLS * 2)))
            await memory.add_messages(source, numbered(0, 1, 2))
            pops, forks = Pops(session, AWAY_CALLS * 2), dict[str, Reply]()
            deleted: dict[str, Reply] = {}

            async def fork(name: str, within: float) -> None:
                forks[name] = await _reply(memory.fork_session(source, new_session_id=name), within)

            async def delete(number: int, within: float) -> None:
                user = f"{outage.name} {number}"
                deleted[doomed[number]] = await _reply(memory.delete_sessions(user_id=user), within)

            async with outage.away():
                calls = [
                    asyncio.ensure_future(call)
                    for number in range(AWAY_CALLS)
                    for within in [SHORT_SECONDS / (1 + number % 3)]
                    for call in (
                        pops.pop(memory, within),
                        fork(f"{outage.name} fork {number}", within),
                        delete(number, within),
                    )
                ]
                _, late = await asyncio.wait(calls, timeout=OWN_SECONDS)
            await asyncio.gather(*calls)
            await memory.close()
            assert not late, f"{outage.name}: {len(late)} calls had not ended after {OWN_SECONDS} s"
            async with store.open() as reader:
                await pops.judge(reader)
                await _judge_forks(reader, forks)
                for name, reply in deleted.items():
                    reply.check(await reader.get_session(name) is None, "a deletion")

        await in_each(store.outages(lossy=False), check)


class Pops:
    """Pops of a session with numbered messages, and what their callers were told.

    Args:
        session: The id of the session.
        count: How many messages it had.
    """

    def __init__(self, session: str, count: int) -> None:
        self.session = session
        self.count = count
        self.popped: list[Message | None] = []
        self.uncertain = 0

    async def pop(self, memory: Memory, within: float) -> None:
        """Pop a message, and note the outcome."""
        reply = await _reply(memory.pop_message(self.session), within)
        if reply.acknowledged:
            self.popped.append(reply.result)
        self.uncertain += reply.acknowledged is None

    async def judge(self, memory: Memory) -> None:
        """Compare with the store. The handles that popped must be closed."""
        record, history = await find_state(memory, self.session)
        left = contents(history)
        assert left == [str(number) for number in range(len(left))], "other messages than the newest were removed"
        assert record is not None
        assert record["message_count"] == len(left)
        numbers = [int(row["content"]) for row in self.popped if row is not None]
        assert len(numbers) == len(self.popped), "a pop found nothing, although there were messages"
        assert len({*numbers}) == len(numbers), "two pops returned the same message"
        assert all(number >= len(left) for number in numbers), "a popped message is in the history"
        removed = self.count - len(left)
        assert removed <= len(numbers) + self.uncertain, (
            f"{removed} messages were removed by {len(numbers)} pops and {self.uncertain} whose outcome is unknown"
        )


async def _judge_forks(memory: Memory, replies: dict[str, Reply]) -> None:
    for name, reply in replies.items():
        record, history = await find_state(memory, name)
        assert contents(history) == ([] if record is None else ["0", "1", "2"]), "half a copy"
        reply.check(record is not None, name)


async def _reply(call: Awaitable[Any], within: float) -> Reply:
    with deadline(within):
        return await reply_to(call)


async def _both_work(memory: Memory, other: Memory, session: str) -> None:
    """Write through the handle and through another one, which would wait for a lock that is still held."""
    await asyncio.gather(*(each.add_message(session, "user", "marker") for each in (memory, other)))
