"""Clauses on deadlines: a failed call is not stored, and no call waits for another call's deadline."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final

from flux_memory import Memory, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import turns_of_the_loop
from flux_memory.testkit.contract.ledger import LONG_SECONDS, Ledger
from flux_memory.testkit.contract.outages import RETRY_PAUSE_SECONDS, Outage, in_each
from flux_memory.testkit.contract.pace import stretched
from flux_memory.testkit.contract.under_test import StoreUnderTest, gather_outcomes

CALLERS: Final = 20
CALLS: Final = 12
MIXED_SECONDS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.05, LONG_SECONDS)
"""Deadlines around the duration of an add on a near store; for others, it is measured."""
STALL_SECONDS: Final = 0.02
"""A deadline that passes while the event loop is blocked."""
STALLED_TURNS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17)
"""Turns of the event loop before it is blocked: enough for an add to be under way."""
SHORT_SECONDS: Final = 0.1
"""The deadline of an impatient call during an outage."""
PATIENT_SECONDS: Final = 10.0
"""The deadline of a concurrent patient call."""
FIRST_SECONDS: Final = 0.05
"""The deadline of the call before both."""
STAGGERED_SECONDS: Final = (FIRST_SECONDS, PATIENT_SECONDS, 0.1, 0.15, PATIENT_SECONDS, 0.2)
"""Deadlines of calls that begin together: they pass one by one, and each may make room for queued calls."""
GRACE_SECONDS: Final = 0.25
"""By how much a call may overrun its deadline, cancelled or not, on a near store."""
OWN_SECONDS: Final = 5.0
"""Much longer than an impatient call may take, and much shorter than a patient call waits."""
RETRY_SECONDS: Final = 0.25
"""The deadline of a call after an outage, on a near store; a handle may have several lost connections."""
SETTLING_SECONDS: Final = 1.0
"""How long a patient call may take once the store is back, before it is cancelled."""


class DeadlinesContract(Binding):
    """The promises to calls with deadlines, and to the calls that run beside them."""

    @clause(
        "FM-DLN-001",
        promise="A call that fails at its deadline is not stored, then or later, regardless of the deadlines of "
        "concurrent calls.",
        impact="Under load, an application is told that a message was not stored, sends it again, and the message is "
        "there twice.",
    )
    async def test_mixed_deadlines(self, store: StoreUnderTest) -> None:
        memory = store.open()
        ledger = Ledger(await memory.create_session())
        began = time.monotonic()
        assert await ledger.add(memory, "first")
        took = time.monotonic() - began

        async def call(caller: int) -> None:
            chance = random.Random(caller)  # noqa: S311 - the same calls each time
            for number in range(CALLS):
                await turns_of_the_loop(chance.randrange(6))
                texts = [f"{caller}-{number}"]
                if Capability.BATCH in store.capabilities and chance.random() < 0.2:
                    texts += [f"{caller}-{number}-{more}" for more in "ab"]
                await ledger.add(memory, *texts, within=chance.choice((*MIXED_SECONDS, took / 2, took, took * 2)))

        await asyncio.gather(*map(call, range(CALLERS)))
        await memory.close()
        await ledger.judge(store)

    @clause(
        "FM-DLN-002",
        promise="A call whose deadline passes while the event loop is blocked does not fail if it was stored.",
        impact="After one slow function blocks the event loop, stored messages are reported as not stored.",
    )
    async def test_stalled_loop(self, store: StoreUnderTest) -> None:
        memory = store.open()
        ledger = Ledger(await memory.create_session())
        for turns in STALLED_TURNS:
            adds = [
                ledger.adding(memory, f"{turns}-{number}", within=STALL_SECONDS if number % 2 else LONG_SECONDS)
                for number in range(8)
            ]
            await turns_of_the_loop(turns)
            # The answers arrive meanwhile, so the loop sees the answer and the deadline in the same turn.
            time.sleep(STALL_SECONDS * 1.5)  # noqa: ASYNC251 - that is the stall
            await asyncio.gather(*adds)
        await memory.close()
        await ledger.judge(store)

    @clause(
        "FM-DLN-003",
        promise="A call that fails while the store is unreachable is not stored when the store returns, even if "
        "concurrent calls still wait.",
        impact="After an outage, each message that was sent again is in the conversation twice.",
        needs=Capability.OUTAGES,
        away=True,
    )
    async def test_refused_during_an_outage(self, store: StoreUnderTest) -> None:
        async def check(outage: Outage) -> None:
            memory = store.open_through(outage)
            ledgers = [Ledger(await memory.create_session()) for _ in range(3)]
            for warm in (1, CALLS):
                # First with one connection in use, then with many.
                await asyncio.gather(*(ledgers[n % 3].add(memory, f"before {warm} {n}") for n in range(warm)))
                adds: dict[asyncio.Task[bool], float] = {}
                async with outage.away():
                    for wave in range(3):
                        for number, within in enumerate(STAGGERED_SECONDS):
                            name = f"{warm} {wave} {number}"
                            adds |= {ledger.adding(memory, name, within=within): within for ledger in ledgers}
                        await turns_of_the_loop(4)
                    impatient = [add for add, within in adds.items() if within < PATIENT_SECONDS]
                    await asyncio.wait(impatient, timeout=OWN_SECONDS)
                await _settle(list(adds))
            await memory.close()
            for ledger in ledgers:
                await ledger.judge(store)

        await in_each(store.outages(lossy=False), check)

    @clause(
        "FM-DLN-004",
        promise="A call ends by its own deadline, regardless of the deadlines of concurrent calls.",
        impact="A request with a deadline of a second takes a minute, because a background job has a longer deadline.",
        needs=Capability.OUTAGES,
        away=True,
    )
    async def test_own_deadline(self, store: StoreUnderTest) -> None:
        async def check(outage: Outage) -> None:
            memory = store.open_through(outage)
            session = await memory.create_session()
            async with outage.away():
                patient = _calls(memory, session, PATIENT_SECONDS)
                impatient = _calls(memory, session, SHORT_SECONDS)
                _, late = await asyncio.wait(impatient, timeout=OWN_SECONDS)
            await _settle([*patient, *impatient], seconds=0)
            outage.heal()
            await memory.close()
            assert not late, (
                f"{outage.name}: {len(late)} of {len(impatient)} calls with a deadline of {SHORT_SECONDS} s had not "
                f"ended after {OWN_SECONDS} s, beside calls with one of {PATIENT_SECONDS} s"
            )

        await in_each(store.outages(), check)

    @clause(
        "FM-DLN-005",
        promise="Once the store returns, new calls are answered, even while calls for other sessions still wait.",
        impact="After one lost connection, a conversation stays blocked until an unrelated call reaches its deadline.",
        needs=Capability.OUTAGES,
        away=True,
    )
    async def test_new_calls_after_an_outage(self, store: StoreUnderTest) -> None:
        async def check(outage: Outage) -> None:
            memory = store.open_through(outage)
            # Concurrently, so that a handle with several connections has opened some.
            sessions, stretch = await stretched(asyncio.gather(*(memory.create_session() for _ in range(4))))
            own, other, third, _ = map(Ledger, sessions)
            async with outage.away():
                # Adds behind the first one may wait for it and then be sent together.
                impatient = [third.adding(memory, "first", within=FIRST_SECONDS)]
                await turns_of_the_loop(4)
                patient = [other.adding(memory, f"patient {n}", within=PATIENT_SECONDS * stretch) for n in range(2)]
                impatient += [own.adding(memory, f"impatient {n}", within=SHORT_SECONDS) for n in range(2)]
                await asyncio.wait(impatient, timeout=OWN_SECONDS)
            tries, began = 0, time.monotonic()
            while not await own.add(memory, f"try {tries}", within=RETRY_SECONDS * stretch):
                seconds = time.monotonic() - began
                assert seconds < OWN_SECONDS * stretch, f"{outage.name}: {tries + 1} adds failed within {seconds:.0f} s"
                tries += 1
                await asyncio.sleep(RETRY_PAUSE_SECONDS)
            await _settle([*patient, *impatient], seconds=0)
            outage.heal()
            await memory.close()
            await own.judge(store)

        await in_each(store.outages(), check)

    @clause(
        "FM-DLN-006",
        promise="A cancelled call takes effect by its deadline or never, alone or beside other calls: if it was "
        "cancelled while the store was unreachable, it is not stored when the store returns.",
        impact="A withdrawn message appears in the conversation once the network is back.",
        needs=Capability.OUTAGES | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_cancelled_during_an_outage(self, store: StoreUnderTest) -> None:
        async def check(outage: Outage) -> None:
            handles = shared, alone, _ = [store.open_through(outage) for _ in range(3)]
            first_session, stretch = await stretched(shared.create_session())
            ledger, other, third = map(Ledger, (first_session, *[await shared.create_session() for _ in range(2)]))
            assert await ledger.add(alone, "before")
            async with outage.away():
                # Adds behind the first one may wait for it and then be sent together.
                first = third.adding(shared, "first", within=FIRST_SECONDS)
                await turns_of_the_loop(4)
                beside = [each.adding(shared, "kept", within=PATIENT_SECONDS) for each in (ledger, other)]
                doomed = {f"behind {n}": ledger.adding(shared, f"behind {n}", within=SHORT_SECONDS) for n in range(4)}
                for turns in (1, 3, 30):
                    made = {
                        text: ledger.adding(handle, text, within=SHORT_SECONDS)
                        # One call alone, and several on a handle that is not open yet.
                        for handle, count in zip(handles[1:], (1, 4), strict=True)
                        for text in (f"{count} at {turns}, {number}" for number in range(count))
                    }
                    await turns_of_the_loop(turns)
                    _cancel(made.values())
                    doomed |= made
                await asyncio.wait([first], timeout=OWN_SECONDS)
                await turns_of_the_loop(30)
                _cancel(doomed.values())
                await asyncio.wait(doomed.values(), timeout=OWN_SECONDS)
                # No call may take effect any more: the store was unreachable until all deadlines had passed.
                await asyncio.sleep(SHORT_SECONDS + GRACE_SECONDS * stretch)
            ledger.rule_out(doomed, f"CancelledError during the outage {outage.name!r}")
            await _settle([first, *doomed.values(), *beside])
            for handle in handles:
                await handle.close()
            for each in (ledger, other, third):
                await each.judge(store)

        await in_each(store.outages(lossy=False), check)

    @clause(
        "FM-DLN-007",
        promise="A close() ends by its own deadline while the store is unreachable, beside calls and an opening "
        "under way.",
        impact="A program that shuts down during an outage hangs until it is killed.",
        needs=Capability.OUTAGES | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_close_in_an_outage(self, store: StoreUnderTest) -> None:
        async def check(outage: Outage) -> None:
            used, unused = store.open_through(outage), store.open_through(outage)
            ledger = Ledger(await used.create_session())
            async with outage.away():
                calls = [ledger.adding(each, f"by {each!r}", within=PATIENT_SECONDS) for each in (used, unused)]
                await turns_of_the_loop(4)
                with deadline(SHORT_SECONDS):
                    closing = [asyncio.ensure_future(each.close()) for each in (used, unused)]
                _, late = await asyncio.wait(closing, timeout=OWN_SECONDS)
            outage.heal()
            await asyncio.wait(calls, timeout=SETTLING_SECONDS)
            await gather_outcomes(*closing)
            assert not late, (
                f"{outage.name}: close() with a deadline of {SHORT_SECONDS} s had not ended after {OWN_SECONDS} s"
            )
            await ledger.judge(store)

        await in_each(store.outages(), check)


def _cancel(tasks: Iterable[asyncio.Task[bool]]) -> None:
    for task in tasks:
        task.cancel()


def _calls(memory: Memory, session: str, seconds: float) -> Sequence[asyncio.Task[Any]]:
    """Start calls of several kinds with this deadline."""

    async def within(call: Coroutine[Any, Any, Any]) -> Any:
        with deadline(seconds):
            return await call

    calls: Iterable[Any] = (
        memory.add_message(session, "user", f"within {seconds} s"),
        memory.add_message(session, "user", f"within {seconds} s, too"),
        memory.create_session(),
        memory.get_history(session),
        memory.delete_session("no session"),
    )
    return [asyncio.ensure_future(within(call)) for call in calls]


async def _settle(calls: Sequence[asyncio.Task[Any]], seconds: float = SETTLING_SECONDS) -> None:
    """Wait for calls, and cancel those that do not end, because their deadlines may be far away."""
    await asyncio.wait(calls, timeout=seconds)
    for call in calls:
        call.cancel()
    await gather_outcomes(*calls)
