"""Clause on what a failed call leaves behind in a handle; the checks are those of the clauses on a network, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final

from flux_memory import ConflictError, Memory, SessionNotFoundError, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import turns_of_the_loop
from flux_memory.testkit.contract.cuts import PATIENT_SECONDS
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents, gather_outcomes

MANY: Final = 12
"""Concurrent calls: more than a handle is likely to have connections."""
ZONE_SECONDS: Final = 600
"""By how much two clocks may differ; time zones differ by more."""
TURNS: Final = (1, 2, 3, 5, 8, 13)
"""Turns of the event loop before calls are cancelled."""

Call = Callable[[Memory, str], Awaitable[Any]]
"""A call on a session."""

EVERYTHING: Final = (
    Capability.BATCH
    | Capability.IDEMPOTENT_IDS
    | Capability.SESSIONS
    | Capability.SESSION_IDS
    | Capability.TITLES
    | Capability.SEVERAL_HANDLES
)
"""What a handle needs for these checks."""


class LeftoversContract(Binding):
    """The promises to calls after others that failed."""

    @clause(
        "FM-CON-020",
        promise="Calls that are refused, find nothing or are cancelled leave nothing behind in the handle: no setting, "
        "no open transaction, no lock. More calls than it has connections work, and others see their writes at once.",
        impact="After one conflict, acknowledged messages are invisible to other workers, or a conversation is locked.",
        needs=EVERYTHING,
    )
    async def test_failed_calls_leave_nothing_behind(self, store: StoreUnderTest) -> None:
        async def check(kinds: Sequence[Call], cancelled: Sequence[Call]) -> None:
            memory, other = store.open(), store.open()
            session = await memory.create_session()
            await memory.add_message(session, "user", "taken", message_id="taken")
            for call in kinds:
                # Once before reads and once before writes, as either may end what a call began.
                await _make_in_vain(call, memory, session)
                await assert_reads_are_current(memory, other, session)
                await _make_in_vain(call, memory, session)
                await _assert_writes_are_seen(memory, other)
            await cancel_at_turns(memory, session, cancelled)
            await assert_reads_are_current(memory, other, session)
            await cancel_at_turns(memory, session, cancelled)
            await assert_as_new(store, memory, session)

        # A few handles, because each may open as many connections as its pool has.
        await asyncio.gather(*(check(_vain_calls()[at::3], some_calls()[at::3]) for at in range(3)))


def _vain_calls() -> Sequence[Call]:
    """Return calls that are refused, or find nothing."""
    conflicting: Any = [{"role": "user", "content": "x"}, {"role": "user", "content": "other", "message_id": "taken"}]
    return (
        lambda memory, s: memory.create_session(session_id=s),
        lambda memory, s: memory.add_message(s, "user", "other", message_id="taken"),
        lambda memory, s: memory.add_messages(s, conflicting),
        lambda memory, _: memory.add_message("nowhere", "user", "x"),
        lambda memory, _: memory.update_session_title("nowhere", "x"),
        lambda memory, _: memory.delete_session("nowhere"),
        lambda memory, _: memory.get_session("nowhere"),
        lambda memory, _: memory.get_history("nowhere"),
        lambda memory, _: memory.get_sessions(5, 10**6),
    )


async def _make_in_vain(call: Call, memory: Memory, session: str) -> None:
    for outcome in await gather_outcomes(*(call(memory, session) for _ in range(MANY))):
        assert not outcome or isinstance(outcome, ConflictError | SessionNotFoundError), repr(outcome)


def some_calls() -> Sequence[Call]:
    """Return calls of each kind on a session: two adds, three changes, two reads."""
    return (
        lambda memory, s: memory.add_message(s, "user", "x"),
        lambda memory, s: memory.add_messages(s, [{"role": "user", "content": str(n)} for n in range(3)]),
        lambda memory, s: memory.update_session_title(s, "title"),
        lambda memory, _: memory.create_session("made"),
        lambda memory, _: memory.delete_session("no session"),
        lambda memory, s: memory.get_history(s),
        lambda memory, _: memory.get_sessions(5),
    )


async def cancel_at_turns(memory: Memory, session: str, calls: Sequence[Call]) -> None:
    """Start calls and cancel them, after more and more turns of the event loop."""
    for turns in TURNS:
        waiting = [asyncio.ensure_future(call(memory, session)) for call in calls for _ in range(2)]
        await turns_of_the_loop(turns)
        for each in waiting:
            each.cancel()
        await gather_outcomes(*waiting)


async def assert_reads_are_current(memory: Memory, other: Memory, session: str) -> None:
    """Assert that a handle holds no lock, and that all of its connections see what another one writes meanwhile."""
    with deadline(PATIENT_SECONDS):
        # A cancelled call may still take effect in the session, so what is read is in one that it does not know.
        apart = await other.create_session("old")
        await asyncio.gather(*(memory.get_session(apart) for _ in range(MANY)))
        await other.add_message(session, "user", "of another handle")
        await other.update_session_title(session, "of another handle")
        await other.update_session_title(apart, "new")
        records = await asyncio.gather(*(memory.get_session(apart) for _ in range(MANY)))
        assert {record and record["title"] for record in records} == {"new"}, "an old state is read"


async def _assert_writes_are_seen(memory: Memory, other: Memory) -> Sequence[str]:
    """Assert that another handle sees new sessions at once, whichever connections made them; return their ids."""
    with deadline(PATIENT_SECONDS):
        mine = await asyncio.gather(*(memory.create_session(str(number)) for number in range(MANY)))
        # Without a call of this handle in between, which could end a transaction.
        for number, found in enumerate(await asyncio.gather(*(other.get_session(made) for made in mine))):
            assert found is not None, "a new session is invisible to another handle"
            assert found["title"] == str(number)
    return mine


async def assert_as_new(store: StoreUnderTest, memory: Memory, session: str) -> None:
    """Assert that calls through a handle behave as through a new one, whichever of its connections they use."""
    other = store.open()
    with deadline(PATIENT_SECONDS):
        mine = await _assert_writes_are_seen(memory, other)
        await asyncio.gather(*(memory.add_message(made, "user", "text") for made in mine))
        histories = await asyncio.gather(*(other.get_history(made) for made in mine))
        assert [contents(history) for history in histories] == [["text"]] * MANY, "adds are invisible to another handle"
        await asyncio.gather(*(other.add_message(made, "user", "answer") for made in mine))
        seen = await asyncio.gather(*(memory.get_history(made) for made in mine))
        assert seen == await asyncio.gather(*(other.get_history(made) for made in mine)), "two handles read differently"
        if Capability.TIMESTAMPS in store.capabilities:
            for ours, theirs in seen:
                apart = datetime.fromisoformat(theirs["created_at"]) - datetime.fromisoformat(ours["created_at"])
                assert abs(apart.total_seconds()) < ZONE_SECONDS, f"{ours['created_at']} and {theirs['created_at']}"
        await asyncio.gather(*(memory.update_session_title(made, "new") for made in mine))
        assert {row and row["title"] for row in await asyncio.gather(*map(other.get_session, mine))} == {"new"}
        await asyncio.gather(*(memory.delete_session(made) for made in mine))
        assert {row and row["id"] for row in await asyncio.gather(*map(other.get_session, mine))} == {None}
        await memory.delete_session(session)
        assert await other.get_session(session) is None
