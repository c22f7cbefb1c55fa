"""Clauses on connections that a handle keeps: ended while idle, late replies, and what a failed call leaves in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from flux_memory import Memory, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import turns_of_the_loop
from flux_memory.testkit.contract.cuts import PATIENT_SECONDS, Cutter, choose_cuts, over_routes
from flux_memory.testkit.contract.ledger import Ledger
from flux_memory.testkit.contract.leftovers import (
    EVERYTHING,
    MANY,
    TURNS,
    Call,
    assert_as_new,
    assert_reads_are_current,
    cancel_at_turns,
    good_calls,
    make_page,
    some_calls,
)
from flux_memory.testkit.contract.replies import find_state
from flux_memory.testkit.contract.routes import Route
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents, gather_outcomes

IDLE_SECONDS: Final = 0.02
"""How long a handle is idle after its connections have ended, so that its event loop has seen their ends."""
SHORT_SECONDS: Final = 0.15
"""The deadline of a call that gets no answer."""
LOCKED_SECONDS: Final = 1.5
"""The deadline of a call that a stalled client's lock may keep waiting."""
SENT_SECONDS: Final = 2.0
"""Limit for a request to leave a handle."""
STALLED: Final = 5
"""Messages of the batch."""
STALLS: Final = 6
"""Limit for the exchanges of a batch at which a client stalls."""


class ConnectionsContract(Binding):
    """The promises to calls that use a connection after others did."""

    @clause(
        "FM-NET-007",
        promise="After the server has ended the idle connections of a handle, one or all, the next calls work.",
        impact="The first requests after a quiet night, or after a restart of the database, fail.",
        needs=Capability.NETWORKED | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_idle_connections_end(self, store: StoreUnderTest) -> None:
        async def check(name: str, route: Route, end: Callable[[], None]) -> None:
            memory = store.open_over(route)
            session = await memory.create_session()
            ledger = Ledger(session)
            for count in (1, MANY):
                await asyncio.gather(*(ledger.add(memory, f"{name} {count} {n}") for n in range(MANY)))
                end()
                await asyncio.sleep(IDLE_SECONDS)
                reads = await gather_outcomes(*(memory.get_history(session, 1) for _ in range(count)))
                assert all(isinstance(read, list) and len(read) == 1 for read in reads), f"idle connections {name}"
                end()
                await asyncio.sleep(IDLE_SECONDS)
                texts = [f"after {name} {count} {n}" for n in range(count)]
                done = await asyncio.gather(*(ledger.add(memory, text) for text in texts))
                assert all(done), f"{done.count(False)} of {count} adds failed after idle connections were {name}"
            await memory.close()
            await ledger.judge(store)

        closed, reset = store.add_route(), store.add_route()
        await asyncio.gather(check("closed", closed, closed.proxy.hang_up), check("reset", reset, reset.proxy.reset))

    @clause(
        "FM-NET-008",
        promise="After a restart of the server during calls, new calls work at once, and each call's outcome is true.",
        impact="A worker fails until it is restarted, because its pool is full of lost connections.",
        needs=Capability.NETWORKED | Capability.OUTAGES | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_the_server_restarts(self, store: StoreUnderTest) -> None:
        route = store.add_route()
        memory = store.open_over(route)
        ledger = Ledger(await memory.create_session())
        for round_number in range(2):
            await asyncio.gather(*(ledger.add(memory, f"{round_number} before {n}") for n in range(MANY)))
            adds = [ledger.adding(memory, f"{round_number} in flight {n}", within=SHORT_SECONDS) for n in range(MANY)]
            await turns_of_the_loop(3 + 5 * round_number)
            route.proxy.interrupt()
            adds.append(ledger.adding(memory, f"{round_number} refused", within=SHORT_SECONDS))
            await asyncio.gather(*adds)
            route.proxy.heal()
            assert await ledger.add(memory, f"{round_number} first"), "the first call after a restart failed"
            done = await asyncio.gather(*(ledger.add(memory, f"{round_number} after {n}") for n in range(MANY)))
            assert all(done), f"{done.count(False)} of {MANY} calls after a restart failed"
        await memory.close()
        await ledger.judge(store)

    @clause(
        "FM-NET-009",
        promise="A reply that arrives after its call was cancelled or had passed its deadline is never the answer to "
        "another call.",
        impact="A user is shown the conversation of another user.",
        needs=Capability.NETWORKED | Capability.SEVERAL_HANDLES | Capability.SESSIONS | Capability.TITLES,
        away=True,
    )
    async def test_late_replies(self, store: StoreUnderTest) -> None:
        async def check(late: bool, timed: bool, memory: Memory, route: Route) -> None:
            theirs, ours = [await memory.create_session(title) for title in ("theirs", "ours")]
            for session, text in ((theirs, "theirs"), (ours, "ours")):
                await memory.add_message(session, "user", text)
            # First one call alone, then as many as use every connection.
            for count in (1, MANY):
                await asyncio.gather(*(memory.get_history(ours) for _ in range(count)))
                route.proxy.hold()
                with route.proxy.watch() as turns, deadline(SHORT_SECONDS if timed else PATIENT_SECONDS):
                    calls = [asyncio.ensure_future(call) for call in _reads(memory, theirs, "theirs", count)]
                    await _has_sent(turns)
                if not timed:
                    for call in calls:
                        call.cancel()
                await gather_outcomes(*calls)
                if late:
                    # The replies arrive while other calls wait for theirs.
                    answers = [asyncio.ensure_future(read) for read in _reads(memory, ours, "ours", count)]
                    await turns_of_the_loop(TURNS[-1])
                    route.proxy.heal()
                else:
                    route.proxy.heal()
                    await asyncio.sleep(IDLE_SECONDS)
                    answers = [asyncio.ensure_future(read) for read in _reads(memory, ours, "ours", count)]
                wrong = [answer for answer in await gather_outcomes(*answers) if answer != "ours"]
                assert not wrong, f"another call's late reply, or an error: {wrong[:3]}"
            await memory.add_message(ours, "user", "more")
            assert contents(await memory.get_history(ours)) == ["ours", "more"]

        kinds = [(late, timed) for timed in (False, True) for late in (False, True)]
        routes = {kind: store.add_route() for kind in kinds if not kind[1] or Capability.OUTAGES in store.capabilities}
        await asyncio.gather(*(check(*kind, store.open_over(route), route) for kind, route in routes.items()))

    @clause(
        "FM-NET-010",
        promise="Calls that lost their reply, passed their deadline or were cancelled leave nothing behind in the "
        "handle's connections: no setting, no open transaction, no lock.",
        impact="After one timeout, acknowledged messages are invisible to other workers, or a conversation is locked.",
        needs=Capability.NETWORKED | EVERYTHING,
        away=True,
    )
    async def test_a_broken_network_leaves_nothing_behind(self, store: StoreUnderTest) -> None:
        async def check(calls: Sequence[Call], memory: Memory, cutter: Cutter) -> None:
            session = await memory.create_session()
            await memory.add_message(session, "user", "text")
            for call in calls:
                await cutter.measure(call(memory, session))
                for cut in choose_cuts(cutter.cuts, 4):
                    await gather_outcomes(cutter.cut(cut, call(memory, session)))
            # Once before reads and once before writes, as either may end what a call began.
            await _cancel_held(memory, cutter.route, session, calls)
            await assert_reads_are_current(memory, store.open(), session)
            await _cancel_held(memory, cutter.route, session, calls)
            await assert_as_new(store, memory, session)

        calls = some_calls()
        adding, changing, reading = calls[:2], calls[2:5], calls[5:]
        await over_routes(store, *(partial(check, kinds) for kinds in (adding, changing, reading)))

    @clause(
        "FM-NET-011",
        promise="While a client stalls in the middle of a batch, the calls of another end by their deadlines as their "
        "outcomes say, and work again once its connection is gone.",
        impact="A write that waited too long for a lock is reported as stored, or half of it is.",
        needs=Capability.NETWORKED | Capability.OUTAGES | Capability.BATCH | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_a_client_stalls_in_a_batch(self, store: StoreUnderTest) -> None:
        async def check(exchange: int, route: Route) -> None:
            stalled, other = store.open_over(route), store.open()
            ledger = Ledger(await stalled.create_session())
            await asyncio.gather(ledger.add(stalled, "first"), ledger.add(other, "first of the other"))
            with route.proxy.watch() as turns:
                route.proxy.lose_reply(exchange, "silence")
                stalling = ledger.adding(stalled, *(f"stalled {n}" for n in range(5)), within=2 * PATIENT_SECONDS)
                await _has_sent(turns, exchange)
            waiting = [
                ledger.add(other, *(f"batch {exchange} {n}" for n in range(5)), within=LOCKED_SECONDS),
                ledger.add(other, f"add {exchange}", within=LOCKED_SECONDS),
            ]
            await asyncio.wait_for(asyncio.gather(*waiting), PATIENT_SECONDS)
            route.proxy.heal()
            await stalling
            assert await ledger.add(other, *(f"after {exchange} {n}" for n in range(5)), within=PATIENT_SECONDS)
            await stalled.close()
            await other.close()
            await ledger.judge(store)

        first = store.add_route()
        memory = store.open_over(first)
        ledger = Ledger(await memory.create_session())
        await ledger.add(memory, "before")
        with first.proxy.watch() as turns:
            await ledger.add(memory, *(f"batch {n}" for n in range(5)))
        exchanges = min(len([turn for turn in turns if turn.direction == "request"]), STALLS)
        await asyncio.gather(*(check(exchange, store.add_route()) for exchange in range(1, exchanges + 1)))

    @clause(
        "FM-NET-012",
        promise="While a client stalls in the middle of a batch, reads of another show it whole or not at all, and "
        "agree with each other; also after that one has made other calls.",
        impact="A model answers from messages that are never stored, and the counter disagrees with the history.",
        needs=Capability.NETWORKED | Capability.OUTAGES | EVERYTHING,
        away=True,
    )
    async def test_a_stalled_batch_is_not_read(self, store: StoreUnderTest) -> None:
        first, reader = store.add_route(), store.open()
        memory = store.open_over(first)
        for call in good_calls(store.capabilities).values():
            await call(reader, await make_page(memory, 3))
        batch: Any = [{"role": "user", "content": str(number)} for number in range(STALLED)]
        session = await memory.create_session()
        with first.proxy.watch() as turns:
            await memory.add_messages(session, batch)
        # One after the other, so that the reads use the connection of the calls before.
        for exchange in range(1, min(len([turn for turn in turns if turn.direction == "request"]), STALLS) + 1):
            route = store.add_route()
            stalled = store.open_over(route)
            session = await stalled.create_session()
            await stalled.add_message(session, "user", "first")
            with route.proxy.watch() as turns, deadline(2 * PATIENT_SECONDS):
                route.proxy.lose_reply(exchange, "silence")
                stalling = asyncio.ensure_future(stalled.add_messages(session, batch))
                await _has_sent(turns, exchange)
            with deadline(PATIENT_SECONDS):
                record, history = await find_state(reader, session)
            assert len(history) in {1, 1 + STALLED}, f"{len(history) - 1} of {STALLED} messages, at exchange {exchange}"
            assert record is not None
            assert record["message_count"] == len(history), f"the counter disagrees at exchange {exchange}"
            route.proxy.heal()
            await gather_outcomes(stalling)
            await stalled.close()


async def _cancel_held(memory: Memory, route: Route, session: str, calls: Sequence[Call]) -> None:
    """Cancel calls whose replies are held back, and deliver the replies."""
    route.proxy.hold()
    await cancel_at_turns(memory, session, calls)
    route.proxy.heal()


def _reads(memory: Memory, session: str, title: str, count: int) -> list[Awaitable[str]]:
    """Return calls whose answer is the title that this session and its only message have."""

    async def history() -> str:
        return ", ".join(contents(await memory.get_history(session)))

    async def record() -> str:
        found = await memory.get_session(session)
        return found["title"] if found else f"no session {title}"

    return [(history, record)[number % 2]() for number in range(count)]


async def _has_sent(turns: Sequence[Any], exchanges: int = 1) -> None:
    """Wait until a handle has sent requests, and the server has had time to answer the last one."""
    ends = time.monotonic() + SENT_SECONDS
    while len(turns) < 2 * exchanges and time.monotonic() < ends:  # noqa: ASYNC110 - the proxy's threads fill it
        await asyncio.sleep(0.002)
