"""Clauses on calls of feedback whose network breaks, whose deadline passes, or whose store is unreachable."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from flux_memory import BackendUnavailableError, Memory, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import turns_of_the_loop
from flux_memory.testkit.contract.cuts import MOST_CUTS, Cutter, check_cut_reads, over_routes
from flux_memory.testkit.contract.deadlines import MIXED_SECONDS, OWN_SECONDS, SHORT_SECONDS
from flux_memory.testkit.contract.outages import Outage, in_each
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.replies import Reply, reply_to
from flux_memory.testkit.contract.under_test import StoreUnderTest

SHARES: Final = 2
"""Handles that share the cuts of a call."""
PAGE: Final = 12
"""Entries of a page whose reply is cut."""
LENGTH: Final = 400
"""Characters of the comment of each of them."""
CALLERS: Final = 6
CALLS: Final = 5
"""Calls of each caller with a deadline."""
AWAY_CALLS: Final = 6
"""Adds during an outage."""


class InterruptedRatingsContract(Binding):
    """The promises of `memory.feedback` to callers whose calls are interrupted."""

    @clause(
        "FM-NET-044",
        promise="If the network breaks at any byte of a call that adds or deletes feedback, an acknowledged one has "
        "taken effect once, a refused one has not; an add that is repeated with its id is stored once.",
        impact="A lost reply counts one bad rating twice, or a rating that was reported as stored is gone.",
        needs=Capability.FEEDBACK | Capability.NETWORKED | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_changes_of_feedback_meet_cuts(self, store: StoreUnderTest) -> None:
        async def added(memory: Memory, cutter: Cutter) -> None:
            await memory.feedback.add("before", 1)
            await cutter.measure(memory.feedback.add("whole", 1, comment="c"))
            for number, cut in enumerate(cutter.cuts):
                name = f"{cutter.number} {number}"
                reply = await reply_to(cutter.cut(cut, memory.feedback.add(name, 1, comment="c")))
                found = await memory.feedback.get(session_id=name)
                assert len(found) <= 1, f"one entry is stored {len(found)} times: {cut}"
                reply.check(bool(found), cut)
                assert not reply.acknowledged or found[0]["feedback_id"] == reply.result, cut

        async def repeated(memory: Memory, cutter: Cutter) -> None:
            await memory.feedback.add("s", 1, feedback_id="before")
            await cutter.measure(memory.feedback.add("s", 1, feedback_id="whole"))
            for cut in cutter.cuts:
                name = f"{cutter.number} {cut.direction} {cut.after} {cut.how}"
                with suppress(BackendUnavailableError):
                    await cutter.cut(cut, memory.feedback.add(name, -1, feedback_id=name))
                assert await memory.feedback.add(name, -1, feedback_id=name) == name
                assert len(await memory.feedback.get(session_id=name)) == 1, cut

        async def deleted(memory: Memory, cutter: Cutter) -> None:
            await cutter.measure(memory.feedback.delete(await memory.feedback.add("deleted", 1)))
            for cut in cutter.cuts:
                name = await memory.feedback.add("deleted", 1)
                reply = await reply_to(cutter.cut(cut, memory.feedback.delete(name)))
                left = [entry["feedback_id"] for entry in await memory.feedback.get(None, session_id="deleted")]
                reply.check(name not in left, cut)

        await over_routes(store, added, repeated, deleted, shares=SHARES)

    @clause(
        "FM-NET-045",
        promise="If the network breaks at any byte of a call that reads or counts feedback, it returns its whole "
        "answer or raises `BackendUnavailableError`.",
        impact="The report of a bad day shows no complaints.",
        needs=Capability.FEEDBACK | Capability.NETWORKED | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_reads_of_feedback_meet_cuts(self, store: StoreUnderTest) -> None:
        async with store.open() as writer:
            await together(writer.feedback.add("s", at % 3 - 1, comment="x" * LENGTH) for at in range(PAGE))
        reads: list[Callable[[Memory], Awaitable[Any]]] = [
            lambda memory: memory.feedback.get(session_id="s"),
            lambda memory: memory.feedback.stats(),
        ]

        await check_cut_reads(store, reads, most=MOST_CUTS, shares=SHARES)

    @clause(
        "FM-DLN-042",
        promise="Feedback whose add fails at its deadline is not stored, then or later, regardless of the deadlines of "
        "concurrent calls.",
        impact="Under load a rating is reported as failed, is given again, and counts twice.",
        needs=Capability.FEEDBACK | Capability.SEVERAL_HANDLES,
    )
    async def test_deadlines_of_feedback(self, store: StoreUnderTest) -> None:
        memory, replies = store.open(), dict[str, Reply]()
        await memory.feedback.add("before", 1)

        async def call(caller: int) -> None:
            chance = random.Random(caller)  # noqa: S311 - the same calls each time
            for number in range(CALLS):
                await turns_of_the_loop(chance.randrange(6))
                await _add(memory, replies, f"{caller} {number}", chance.choice(MIXED_SECONDS))

        await asyncio.gather(*map(call, range(CALLERS)))
        await memory.close()
        await _judge(store, replies)

    @clause(
        "FM-DLN-043",
        promise="While the store is unreachable, each add of feedback ends by its own deadline, and one that fails "
        "then is not stored when the store returns.",
        impact="A page of ratings hangs while the database is down, and each click counts once it is back.",
        needs=Capability.FEEDBACK | Capability.OUTAGES | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_feedback_during_an_outage(self, store: StoreUnderTest) -> None:
        async def check(outage: Outage) -> None:
            memory, replies = store.open_through(outage), dict[str, Reply]()
            # The owner of feedback is that of its session, which an outage may lock.
            session = await memory.create_session()
            await memory.feedback.add(session, 1)
            async with outage.away():
                calls = [
                    asyncio.ensure_future(
                        _add(memory, replies, f"{outage.name} {number}", SHORT_SECONDS / (1 + number % 3))
                    )
                    for number in range(AWAY_CALLS)
                ]
                _, late = await asyncio.wait(calls, timeout=OWN_SECONDS)
            await asyncio.gather(*calls)
            await memory.close()
            assert not late, f"{outage.name}: {len(late)} calls had not ended after {OWN_SECONDS} s"
            await _judge(store, replies)

        await in_each(store.outages(lossy=False), check)


async def _add(memory: Memory, replies: dict[str, Reply], name: str, within: float) -> None:
    with deadline(within):
        replies[name] = await reply_to(memory.feedback.add("s", 1, feedback_id=name))


async def _judge(store: StoreUnderTest, replies: dict[str, Reply]) -> None:
    """Compare with the store what the callers were told; the handle that added must be closed."""
    async with store.open() as reader:
        found = {entry["feedback_id"] for entry in await reader.feedback.get(None)}
        for name, reply in replies.items():
            reply.check(name in found, f"feedback {name}")
