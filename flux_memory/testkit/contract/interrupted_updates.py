"""Clauses on updates, and adds that create, whose caller gives up or whose network breaks: whole or not at all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from flux_memory import FluxMemoryError, Memory, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import cancelled_everywhere, turns_of_the_loop
from flux_memory.testkit.contract.created_by_adds import OWNED
from flux_memory.testkit.contract.cuts import Cutter, over_routes
from flux_memory.testkit.contract.ledger import LONG_SECONDS
from flux_memory.testkit.contract.leftovers import EVERYTHING, assert_as_new
from flux_memory.testkit.contract.outages import Outage, in_each
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.replies import Reply, reply_to
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents, gather_outcomes
from flux_memory.testkit.contract.updates import EVERY_PART, state_of

CALLERS: Final = 10
CALLS: Final = 6
MIXED_SECONDS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, LONG_SECONDS)
"""Deadlines around the duration of a change on a near store."""
AWAY_SECONDS: Final = (0.05, 0.1, 0.2)
"""Deadlines of calls during an outage."""
BACK_SECONDS: Final = 20.0
"""The deadline of calls that outlast an outage, or follow it."""
LATE_SECONDS: Final = 0.1
"""A while after an outage, in which calls that were refused during it could still take effect."""
SHARES: Final = 2
"""Handles that share the cuts of a call."""
KEPT: Final = ("0", "1")
"""The messages of a session before its update, which replaces the last one."""

UPDATED: Final = EVERY_PART | Capability.TRUNCATE | Capability.SEVERAL_HANDLES
CREATED: Final = OWNED | Capability.SEVERAL_HANDLES | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS


class InterruptedUpdatesContract(Binding):
    """The promises to callers that give up an update, or an add that creates, or lose its answer."""

    @clause(
        "FM-CAN-030",
        promise="A cancelled `update_session` takes effect as a whole or not at all, and holds no lock.",
        impact="A user stops an answer, and the conversation keeps its new title and loses its messages.",
        needs=UPDATED,
    )
    async def test_cancelled_updates(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await other.create_session("-1", {"n": -1})
        await other.add_messages(session, _counted(-1))
        last, uncertain = "-1", set[str]()

        def update(number: int) -> Any:
            given: Any = {"title": str(number), "merge_metadata": {"n": number}, "messages": _counted(number)}
            return memory.update_session(session, truncate_all=True, **given)

        async for attempt in cancelled_everywhere(update):
            if attempt.cancelled:
                # Until the handle is closed, it may still take effect, after a later update as well.
                uncertain.add(str(attempt.number))
            else:
                last = str(attempt.number)
            # Through another handle, which would wait for a lock that is still held.
            await other.update_session(session, merge_metadata={"marker": attempt.number})
            row = await other.get_session(session)
            assert row is not None
            number = row["metadata"]["n"]
            assert (row["title"], row["message_count"]) == (str(number), len(_counted(number)))
            assert row["title"] in {last, *uncertain}
            said = contents(await other.get_history(session))
            assert said == [one["content"] for one in _counted(int(said[0]))], f"after a cancelled update: {said}"
        await memory.close()
        row, history = await state_of(other, session)
        assert contents(history) == [one["content"] for one in _counted(int(row["title"]))]
        assert row["title"] in {last, *uncertain}

    @clause(
        "FM-CAN-031",
        promise="A cancelled add with `create` leaves the session with its messages and owner, or nothing.",
        impact="A user closes the page at once, and an empty conversation without an owner stays.",
        needs=CREATED,
    )
    async def test_cancelled_creations(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        sure: set[str] = set()
        number = 0
        async for attempt in cancelled_everywhere(
            lambda n: memory.add_messages(f"s{n}", numbered(0, 1), create=True, user_id="u")
        ):
            sure |= set() if attempt.cancelled else {f"s{attempt.number}"}
            await asyncio.gather(
                memory.add_message("markers", "user", "x", create=True),
                other.add_message("markers", "user", "x", create=True),
            )
            number = attempt.number
        await memory.close()
        rows = {row["id"]: row for row in await other.get_sessions(None) if row["id"] != "markers"}
        assert sure <= rows.keys()
        for name, row in rows.items():
            assert (row["user_id"], row["title"], row["message_count"]) == ("u", "", 2), row
            assert contents(await other.get_history(name)) == ["0", "1"]
        markers = await other.get_session("markers")
        assert markers is not None
        assert markers["message_count"] == 2 * (number + 1)

    @clause(
        "FM-CON-030",
        promise="Updates that are refused or cancelled leave nothing behind in the handle: no open transaction, no "
        "lock, no setting.",
        impact="After one outdated revision, acknowledged messages are invisible to other workers.",
        needs=UPDATED | EVERYTHING | Capability.CREATE_ON_ADD | Capability.USER_SCOPE,
    )
    async def test_refused_updates_leave_nothing_behind(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_messages(session, _version("0"))
        stored, other = [{"role": "user", "content": text, "message_id": "0 0"} for text in ("0 0", "other")]
        batch: Any = [stored, other]
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: memory.update_session(session, title="t", expected_revision="none"),
            lambda: memory.update_session(session, title="t", truncate_from="unknown"),
            lambda: memory.update_session(session, title="t", messages=batch),
            lambda: memory.update_session(session, truncate_from="0 1", messages=batch[1:]),
            lambda: memory.update_session("nowhere", title="t"),
            lambda: memory.update_session(session),
            lambda: memory.add_message(session, "user", "x", create=True, user_id="of another"),
            lambda: memory.add_messages("new", batch, create=True),
        ]
        before = await state_of(memory, session)
        outcomes = await gather_outcomes(*(call() for call in calls * 2))
        assert all(isinstance(outcome, FluxMemoryError) for outcome in outcomes), outcomes
        assert await state_of(memory, session) == before
        for turns in (0, 1, 2, 3, 5, 8, 13):
            doomed = [asyncio.ensure_future(memory.update_session(session, title=str(n))) for n in range(CALLERS)]
            await turns_of_the_loop(turns)
            for task in doomed:
                task.cancel()
            await gather_outcomes(*doomed)
        await assert_as_new(store, memory, session)

    @clause(
        "FM-DLN-030",
        promise="An update, or an add that creates, that fails at its deadline has no effect, then or later; one that "
        "succeeds has all of its effect, regardless of the deadlines of concurrent calls.",
        impact="Under load, a refused change is made all the same, and its repetition conflicts with it.",
        needs=UPDATED | CREATED,
    )
    async def test_deadlines_of_updates(self, store: StoreUnderTest) -> None:
        memory = store.open()
        changes = Changes(await memory.create_session())

        async def call(caller: int) -> None:
            chance = random.Random(caller)  # noqa: S311 - the same calls each time
            for number in range(CALLS):
                await turns_of_the_loop(chance.randrange(6))
                change = changes.create if number % 3 == 2 else changes.update
                await change(memory, f"{caller} {number}", chance.choice(MIXED_SECONDS))

        await asyncio.gather(*map(call, range(CALLERS)))
        await memory.close()
        await changes.judge(store.open())

    @clause(
        "FM-DLN-031",
        promise="An update, or an add that creates, that fails while the store is unreachable has no effect when the "
        "store returns, and a revision that was read before the outage is still the current one.",
        impact="After an outage, withdrawn edits appear, and every conditional change is refused.",
        needs=UPDATED | CREATED | Capability.OUTAGES,
        away=True,
    )
    async def test_updates_during_an_outage(self, store: StoreUnderTest) -> None:
        async def check(outage: Outage) -> None:
            memory = store.open_through(outage)
            changes, apart = [Changes(await memory.create_session()) for _ in range(2)]
            assert await apart.update(memory, "before", LONG_SECONDS)
            before = await memory.get_session(apart.session)
            assert before is not None
            async with outage.away():
                # A patient call shows that the calls which waited beside it have had their chance.
                patient = asyncio.ensure_future(changes.update(memory, "patient", BACK_SECONDS))
                calls = [
                    change(memory, f"{n} {outage.name} {at}", AWAY_SECONDS[n % len(AWAY_SECONDS)])
                    for n in range(6)
                    for at, change in enumerate((changes.update, changes.create, apart.update))
                ]
                outcomes = await asyncio.gather(*calls)
            await patient
            await asyncio.sleep(LATE_SECONDS)
            if outcomes[2::3] == [False] * 6:
                with deadline(BACK_SECONDS):
                    await memory.update_session(apart.session, expected_revision=before["revision"], title="after")
            await memory.close()
            reader = store.open()
            await changes.judge(reader)
            await apart.judge(reader)

        await in_each(store.outages(lossy=False), check)

    @clause(
        "FM-NET-030",
        promise="If the network breaks at any byte of an update, an acknowledged one has taken effect once and as a "
        "whole, a refused one not at all; an update never conflicts with itself.",
        impact="A lost reply doubles an answer, or the caller is told that another client has changed the session.",
        needs=UPDATED | Capability.NETWORKED,
        away=True,
    )
    async def test_updates_meet_cuts(self, store: StoreUnderTest) -> None:
        await over_routes(store, lambda memory, cutter: _updates_meet_cuts(store, memory, cutter), shares=SHARES)

    @clause(
        "FM-NET-031",
        promise="If the network breaks at any byte of an add that creates its session, an acknowledged one has made "
        "the session with its message, a refused one nothing, and one that is repeated with its ids is stored once.",
        impact="The first message of a conversation is lost or doubled, or refused because its session exists.",
        needs=CREATED | Capability.NETWORKED,
        away=True,
    )
    async def test_creations_meet_cuts(self, store: StoreUnderTest) -> None:
        async def check(memory: Memory, cutter: Cutter) -> None:
            await memory.create_session()

            def create(number: int) -> Awaitable[Any]:
                batch: Any = [{"role": "user", "content": str(at), "message_id": f"m{at}"} for at in range(2)]
                return memory.add_messages(f"{name} {number:03}", batch, create=True, user_id="u")

            name = str(id(cutter))
            await cutter.measure(create(-1))
            replies = [await reply_to(cutter.cut(cut, create(number))) for number, cut in enumerate(cutter.cuts)]
            for number, reply in enumerate(replies):
                record = await memory.get_session(f"{name} {number:03}")
                reply.check(record is not None, cutter.cuts[number])
                assert record is None or (record["message_count"], record["user_id"]) == (2, "u")
                assert await create(number) == ["m0", "m1"]
                record, history = await state_of(memory, f"{name} {number:03}")
                assert (record["message_count"], contents(history)) == (2, ["0", "1"]), cutter.cuts[number]

        await over_routes(store, check, shares=SHARES)


class Changes:
    """Updates of one session, and sessions that are created by adds, with what their callers were told.

    Args:
        session: The id of the session.
    """

    def __init__(self, session: str) -> None:
        self.session = session
        self._told: dict[tuple[str, str], Reply] = {}

    async def update(self, memory: Memory, name: str, seconds: float) -> bool | None:
        """Add a message and a key of this name in one update; return whether it was made, or `None`."""
        batch: Any = [{"role": "user", "content": name, "message_id": name}]
        call = memory.update_session(self.session, merge_metadata={name: True}, messages=batch)
        return await self._note("update", name, call, seconds)

    async def create(self, memory: Memory, name: str, seconds: float) -> bool | None:
        """Create a session of this name with its first message; return whether it was made, or `None`."""
        return await self._note("create", name, memory.add_message(name, "user", "x", create=True), seconds)

    async def judge(self, memory: Memory) -> None:
        """Compare with the store. The handle that made the calls must be closed."""
        row, history = await state_of(memory, self.session)
        said = contents(history)
        assert row["message_count"] == len(said) == len(set(said))
        for (kind, name), reply in self._told.items():
            if kind == "update":
                found = name in said
                assert (name in row["metadata"]) == found, f"half an update: {name}"
            else:
                record = await memory.get_session(name)
                found = record is not None
                assert record is None or record["message_count"] == 1
            reply.check(found, f"{kind} {name}")

    async def _note(self, kind: str, name: str, call: Awaitable[Any], seconds: float) -> bool | None:
        with deadline(seconds):
            reply = self._told[kind, name] = await reply_to(call)
        return reply.acknowledged


async def _updates_meet_cuts(store: StoreUnderTest, memory: Memory, cutter: Cutter) -> None:
    """Make an update that has every part, and expects a revision, in a session of its own for each cut."""

    async def prepare() -> tuple[str, str]:
        session = await memory.create_session("old", {"k": "old", "gone": 1})
        await memory.add_messages(session, _version("old"))
        record = await memory.get_session(session)
        assert record is not None
        return session, record["revision"]

    def update(session: str, revision: str) -> Awaitable[Any]:
        given: Any = {"title": "new", "merge_metadata": {"k": "new"}, "remove_metadata": ["gone"]}
        new: Any = [{"role": "user", "content": "new", "message_id": "old 1"}]
        return memory.update_session(session, expected_revision=revision, truncate_from="old 1", messages=new, **given)

    await cutter.measure(update(*await prepare()))
    prepared = [await prepare() for _ in cutter.cuts]
    replies = [await reply_to(cutter.cut(cut, update(*each))) for cut, each in zip(cutter.cuts, prepared, strict=True)]
    async with store.open() as reader:
        states = await together(state_of(reader, session) for session, _ in prepared)
    for cut, (_, revision), reply, (record, history) in zip(cutter.cuts, prepared, replies, states, strict=True):
        changed = record["title"] == "new"
        assert (record["title"], record["metadata"], contents(history)) == (
            ("new", {"k": "new"}, ["old 0", "new"]) if changed else ("old", {"k": "old", "gone": 1}, _texts("old"))
        ), cut
        assert record["message_count"] == len(history)
        assert (record["revision"] == revision) != changed
        reply.check(changed, cut)


def _counted(number: int) -> list[Any]:
    """Return messages whose texts and whose number show which update they are of."""
    return [{"role": "user", "content": str(number)} for _ in range(number % 3 + 1)]


def _texts(version: str) -> Sequence[str]:
    return [f"{version} {text}" for text in KEPT]


def _version(version: str) -> list[Any]:
    return [{"role": "user", "content": text, "message_id": text} for text in _texts(version)]
