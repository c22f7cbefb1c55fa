"""Clauses on calls whose network breaks: at any byte of a request or its reply, by each way to end a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from flux_memory import BackendUnavailableError, Memory, OutcomeUnknownError, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cuts import PATIENT_SECONDS, Cutter, check_cut_reads, choose_cuts, over_routes
from flux_memory.testkit.contract.ledger import Ledger
from flux_memory.testkit.contract.replies import reply_to
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents, gather_outcomes

BATCH: Final = 5
"""Messages of a batch, which a store may send one by one."""
LARGE: Final = 1_200
"""Messages of a batch that a store may send in parts."""
REFUSED_SECONDS: Final = 0.2
"""The deadline of a call while the server refuses connections."""
PAGE: Final = 40
"""Messages of a history whose reply is cut: several packets."""
LENGTH: Final = 400
"""Characters of each of them."""
CLEARINGS: Final = 8
"""The last cuts of `clear_all`, which no other trial may run beside, and half as many of those before."""
SHARES: Final = 4
"""Handles that share the cuts of a call."""
LISTED: Final = 6
"""Sessions of a listing whose reply is cut."""


class NetworkContract(Binding):
    """The promises to calls over a network that breaks."""

    @clause(
        "FM-NET-001",
        promise="If a network is claimed, and only then, a handle opened with another address of the server uses it, "
        "and a call raises `BackendUnavailableError` while it refuses connections.",
        impact="Tests of a broken network pass without one, or a call hangs where no server listens.",
        away=True,
    )
    async def test_networked_as_claimed(self, store: StoreUnderTest) -> None:
        found = "is not there"
        if Capability.NETWORKED in store.capabilities or store.has_routes:
            route = store.add_route()
            with route.proxy.watch() as turns:
                memory = store.open_over(route)
                await memory.create_session()
                await memory.close()
            if turns:
                route.proxy.refuse()
                found = await _found_without_server(store.open_over(route))
                route.proxy.heal()
        store.found(Capability.NETWORKED, found)
        store.check_claims()

    @clause(
        "FM-NET-002",
        promise="If the network breaks at any byte of an add, an acknowledged message is stored once, a refused one is "
        "not stored, and the next call works.",
        impact="A lost reply doubles a message, or a message that was reported as stored is gone.",
        needs=Capability.NETWORKED | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_adds_meet_cuts(self, store: StoreUnderTest) -> None:
        await _adds_meet_cuts(store, lambda name: [name])

    @clause(
        "FM-NET-003",
        promise="If the network breaks at any byte of a batch, all of it is stored, or nothing, as its outcome says.",
        impact="Half a turn of a conversation is stored: the question without its answer.",
        needs=Capability.NETWORKED | Capability.SEVERAL_HANDLES | Capability.BATCH,
        away=True,
    )
    async def test_batches_meet_cuts(self, store: StoreUnderTest) -> None:
        small = _adds_meet_cuts(store, lambda name: _ids(name, BATCH))
        large = _adds_meet_cuts(store, lambda name: _ids(name, LARGE), at_the_end=True)
        for outcome in await gather_outcomes(small, large):
            if outcome is not None:
                raise outcome

    @clause(
        "FM-NET-004",
        promise="An add or a batch that is repeated with the same ids after its connection was lost is stored once.",
        impact="The documented way to retry doubles messages, or fails with a conflict.",
        needs=Capability.NETWORKED | Capability.SEVERAL_HANDLES | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
        away=True,
    )
    async def test_repeated_after_a_cut(self, store: StoreUnderTest) -> None:
        async def add(memory: Memory, session: str, ids: Sequence[str]) -> list[str]:
            return [await memory.add_message(session, "user", ids[0], message_id=ids[0])]

        async def add_batch(memory: Memory, session: str, ids: Sequence[str]) -> list[str]:
            return await memory.add_messages(session, [{"role": "user", "content": i, "message_id": i} for i in ids])

        async def check(adding: Callable[..., Awaitable[list[str]]], size: int, memory: Memory, cutter: Cutter) -> None:
            session = await memory.create_session()
            await adding(memory, session, _ids("before", size))
            await cutter.measure(adding(memory, session, _ids("whole", size)))
            sent = _ids("before", size) + _ids("whole", size)
            for number, cut in enumerate(cutter.cuts):
                ids = _ids(f"cut {number}", size)
                sent += ids
                with suppress(BackendUnavailableError):
                    await cutter.cut(cut, adding(memory, session, ids))
                assert await adding(memory, session, ids) == ids
            async with store.open() as other:
                assert contents(await other.get_history(session)) == sent

        trials = [lambda memory, cutter: check(add, 1, memory, cutter)]
        if Capability.BATCH in store.capabilities:
            trials.append(lambda memory, cutter: check(add_batch, BATCH, memory, cutter))
        await over_routes(store, *trials, shares=SHARES)

    @clause(
        "FM-NET-005",
        promise="If the network breaks at any byte of a creation, a change of title or a deletion, an acknowledged one "
        "has taken effect, a refused one has not, and no other error is raised.",
        impact="A session that was just created is reported as taken by another, or a deleted one is still there.",
        needs=Capability.NETWORKED
        | Capability.SEVERAL_HANDLES
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.TITLES,
        away=True,
    )
    async def test_changes_of_sessions_meet_cuts(self, store: StoreUnderTest) -> None:
        async def created(memory: Memory, cutter: Cutter) -> None:
            await memory.create_session()
            await cutter.measure(memory.create_session("t"))
            for cut in cutter.cuts:
                # Routes that share the places may measure different ones, and cut at the same.
                name = f"{cutter.number} {cut.direction} {cut.after} {cut.how}"
                reply = await reply_to(cutter.cut(cut, memory.create_session("t", session_id=name)))
                reply.check(await memory.get_session(name) is not None, f"{name} after {cut}")

        async def renamed(memory: Memory, cutter: Cutter) -> None:
            session = await memory.create_session("0")
            await cutter.measure(memory.update_session_title(session, "whole"))
            for number, cut in enumerate(cutter.cuts):
                title = f"title {number}"
                reply = await reply_to(cutter.cut(cut, memory.update_session_title(session, title)))
                found = await memory.get_session(session)
                assert found is not None
                reply.check(found["title"] == title, f"{title} after {cut}")

        async def deleted(memory: Memory, cutter: Cutter) -> None:
            session = await memory.create_session()
            await cutter.measure(memory.delete_session(session))
            for cut in cutter.cuts:
                session = await memory.create_session()
                reply = await reply_to(cutter.cut(cut, memory.delete_session(session)))
                reply.check(await memory.get_session(session) is None, f"deleted after {cut}")

        async def cleared(memory: Memory, cutter: Cutter) -> None:
            # On a connection that is there already, as for the calls that meet the cuts.
            await memory.create_session()
            await cutter.measure(memory.clear_all())
            # A transaction commits in its last exchange.
            for cut in [*choose_cuts(cutter.cuts[:-CLEARINGS], CLEARINGS // 2), *cutter.cuts[-CLEARINGS:]]:
                await memory.create_session()
                reply = await reply_to(cutter.cut(cut, memory.clear_all()))
                reply.check(await memory.count_sessions() == 0, f"cleared after {cut}")

        await over_routes(store, created, renamed, deleted, shares=SHARES // 2)
        if Capability.CLEAR_ALL in store.capabilities:
            await over_routes(store, cleared)

    @clause(
        "FM-NET-006",
        promise="If the network breaks at any byte of a read, it returns everything or raises "
        "`BackendUnavailableError`: never a part, an empty history or `None`.",
        impact="A model answers from half a conversation, or a user sees an empty list of chats.",
        needs=Capability.NETWORKED | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_reads_meet_cuts(self, store: StoreUnderTest) -> None:
        async with store.open() as memory:
            session = await memory.create_session()
            texts = [f"{number:03} " + "x" * LENGTH for number in range(PAGE)]
            await asyncio.gather(*(memory.create_session() for _ in range(LISTED)))
            if Capability.BATCH in store.capabilities:
                await memory.add_messages(session, [{"role": "user", "content": text} for text in texts])
            else:
                await asyncio.gather(*(memory.add_message(session, "user", text) for text in texts))
        reads: list[Callable[[Memory], Awaitable[Any]]] = [
            lambda memory: memory.get_history(session),
            lambda memory: memory.get_history(session, PAGE // 2),
        ]
        if Capability.SESSIONS in store.capabilities:
            reads += [
                lambda memory: memory.get_sessions(),
                lambda memory: memory.get_session(session),
                lambda memory: memory.count_sessions(),
            ]

        await check_cut_reads(store, reads, shares=2)


async def _found_without_server(memory: Memory) -> str:
    try:
        with deadline(REFUSED_SECONDS):
            await asyncio.wait_for(memory.create_session(), PATIENT_SECONDS)
    except OutcomeUnknownError:
        return "raises OutcomeUnknownError for a call that no server can have received"
    except BackendUnavailableError:
        return "works"
    except TimeoutError:
        return "keeps waiting while the server refuses connections"
    except Exception as error:  # noqa: BLE001 - any other error is undocumented
        return f"raises {type(error).__name__} while the server refuses connections"
    return "is not there"


async def _adds_meet_cuts(
    store: StoreUnderTest, texts: Callable[[str], list[str]], *, at_the_end: bool = False
) -> None:
    """Check adds of such messages: at many places, or only where an add is about to end and gets no answer in time."""

    async def check(memory: Memory, cutter: Cutter) -> None:
        ledger = Ledger(await memory.create_session())
        assert await ledger.add(memory, *texts("before"))
        await cutter.measure(ledger.add(memory, *texts("whole")))
        # In the last requests: what came before is stored, if the store sends parts.
        cuts = cutter.stalls if at_the_end else cutter.cuts
        for number, cut in enumerate(cuts):
            # Its own deadline would replace the one of the cut.
            await cutter.cut(cut, ledger.add(memory, *texts(f"cut {number}"), within=cut.within))
            assert await ledger.add(memory, *texts(f"after {number}")), f"the call after {cut} failed"
        await ledger.judge(store)

    await over_routes(store, check, shares=1 if at_the_end else SHARES)


def _ids(name: str, size: int) -> list[str]:
    return [f"{name}, {number}" for number in range(size)]
