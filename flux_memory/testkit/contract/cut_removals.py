"""Clauses on pops, forks and bulk deletions whose network breaks at any byte, and on the new reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from flux_memory import Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cuts import MOST_CUTS, Cutter, check_cut_reads, over_routes
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.replies import find_state, reply_to
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents

SHARES: Final = 2
"""Handles that share the cuts of a call."""
PAGE: Final = 30
"""Messages of a page whose reply is cut."""
DOOMED: Final = 3
"""Sessions of each bulk deletion."""


class CutRemovalsContract(Binding):
    """The promises to callers of pops, forks, deletions and look-ups over a network that breaks."""

    @clause(
        "FM-NET-040",
        promise="If the network breaks at any byte of a pop, the message is removed once: it is returned, or the "
        "outcome is unknown; a refused pop removes nothing.",
        impact="A lost reply is repeated, and an undo removes two messages.",
        needs=Capability.POP
        | Capability.BATCH
        | Capability.SESSIONS
        | Capability.NETWORKED
        | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_pops_meet_cuts(self, store: StoreUnderTest) -> None:
        async def check(memory: Memory, cutter: Cutter) -> None:
            session = await memory.create_session()
            await memory.add_messages(session, numbered(0, 1))
            await cutter.measure(memory.pop_message(session))
            for cut in cutter.cuts:
                session = await memory.create_session()
                await memory.add_messages(session, numbered(0, 1, 2, 3))
                reply = await reply_to(cutter.cut(cut, memory.pop_message(session)))
                record, history = await find_state(memory, session)
                removed = contents(history) == ["0", "1", "2"]
                assert contents(history) == ["0", "1", "2", "3"][: 3 if removed else 4], cut
                assert record is not None
                assert record["message_count"] == len(history), cut
                reply.check(removed, cut)
                assert not reply.acknowledged or reply.result["content"] == "3", cut

        await over_routes(store, check, shares=SHARES)

    @clause(
        "FM-NET-041",
        promise="If the network breaks at any byte of a fork, an acknowledged one has made the whole copy, a refused "
        "one nothing, and a fork never conflicts with itself.",
        impact="A copy that was just made is reported as taken by another, or only half of it is there.",
        needs=Capability.FORK
        | Capability.BATCH
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.NETWORKED
        | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_forks_meet_cuts(self, store: StoreUnderTest) -> None:
        async def check(memory: Memory, cutter: Cutter) -> None:
            session = await memory.create_session()
            await memory.add_messages(session, numbered(*range(5)))
            await memory.fork_session(session)
            await cutter.measure(memory.fork_session(session))
            before = await find_state(memory, session)
            for number, cut in enumerate(cutter.cuts):
                name = f"{session[-8:]} {number}"
                reply = await reply_to(cutter.cut(cut, memory.fork_session(session, new_session_id=name)))
                record, history = await find_state(memory, name)
                assert history == ([] if record is None else before[1]), f"half a copy: {cut}"
                assert record is None or record["message_count"] == len(history), cut
                reply.check(record is not None, cut)
            assert await find_state(memory, session) == before

        await over_routes(store, check, shares=SHARES)

    @clause(
        "FM-NET-042",
        promise="If the network breaks at any byte of `delete_sessions`, an acknowledged one has removed all of its "
        "sessions and returns their number, and others stay; a repeated one removes the rest.",
        impact="A deletion that a user has asked for is reported as done, and conversations are left.",
        needs=Capability.RETENTION
        | Capability.BATCH
        | Capability.SESSIONS
        | Capability.USER_SCOPE
        | Capability.NETWORKED
        | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_bulk_deletions_meet_cuts(self, store: StoreUnderTest) -> None:
        async def fill(memory: Memory, user: str) -> list[str]:
            made = await together(memory.create_session(user_id=user) for _ in range(DOOMED))
            await together(memory.add_messages(session, numbered(0, 1)) for session in made)
            return made

        async def check(memory: Memory, cutter: Cutter) -> None:
            (kept, *_) = await fill(memory, "kept")
            await fill(memory, kept)
            await cutter.measure(memory.delete_sessions(user_id=kept))
            for number, cut in enumerate(cutter.cuts):
                user = f"{kept} {number}"
                made = await fill(memory, user)
                reply = await reply_to(cutter.cut(cut, memory.delete_sessions(user_id=user)))
                states = await together(find_state(memory, session) for session in made)
                left = [record for record, _ in states if record is not None]
                for record, history in states:
                    assert contents(history) == ([] if record is None else ["0", "1"]), f"deleted in part: {cut}"
                reply.check(not left, cut)
                assert not reply.acknowledged or reply.result == DOOMED, cut
                assert await memory.delete_sessions(user_id=user) == len(left)
            assert contents(await memory.get_history(kept)) == ["0", "1"]

        await over_routes(store, check, shares=SHARES)

    @clause(
        "FM-NET-046",
        promise="If the network breaks at any byte of a conditional deletion, an acknowledged one has removed the "
        "session, a refused one has not, and a deletion never conflicts with itself.",
        impact="A conversation is deleted, and its user is told that it has changed and was kept.",
        needs=Capability.REVISIONS | Capability.SESSIONS | Capability.NETWORKED | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_conditional_deletions_meet_cuts(self, store: StoreUnderTest) -> None:
        async def delete(memory: Memory, cutter: Cutter) -> None:
            async def make() -> tuple[str, str]:
                session = await memory.create_session()
                record = await memory.get_session(session)
                assert record is not None
                return session, record["revision"]

            session, revision = await make()
            await cutter.measure(memory.delete_session(session, expected_revision=revision))
            for cut in cutter.cuts:
                session, revision = await make()
                reply = await reply_to(cutter.cut(cut, memory.delete_session(session, expected_revision=revision)))
                reply.check(await memory.get_session(session) is None, cut)

        await over_routes(store, delete, shares=SHARES)

    @clause(
        "FM-NET-043",
        promise="If the network breaks at any byte of a look-up, a page after a message or a count with filters, it "
        "returns its whole answer or raises `BackendUnavailableError`.",
        impact="A message that exists is not found, or a live view skips the end of a page forever.",
        needs=Capability.MESSAGE_LOOKUP
        | Capability.FORWARD_CURSOR
        | Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.NETWORKED
        | Capability.SEVERAL_HANDLES,
        away=True,
    )
    async def test_look_ups_meet_cuts(self, store: StoreUnderTest) -> None:
        async with store.open() as writer:
            session = await writer.create_session()
            ids = await writer.add_messages(session, [{"role": "r", "content": f"{n} " * 200} for n in range(PAGE)])
        reads: list[Callable[[Memory], Awaitable[Any]]] = [
            lambda memory: memory.get_message(session, ids[3]),
            lambda memory: memory.get_history(session, after=ids[0]),
        ]
        if Capability.COUNT_FILTER | Capability.SESSIONS | Capability.USER_SCOPE in store.capabilities:
            reads.append(lambda memory: memory.count_sessions(user_id=""))

        await check_cut_reads(store, reads, most=MOST_CUTS)
