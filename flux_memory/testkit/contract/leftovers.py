"""Clauses on what a call leaves behind in a handle; the checks are those of the clauses on a network, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from flux_memory import ConflictError, FluxMemoryError, Memory, SessionNotFoundError, deadline
from flux_memory.testkit.capabilities import NOTHING, Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import turns_of_the_loop
from flux_memory.testkit.contract.cuts import PATIENT_SECONDS
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents, gather_outcomes

MANY: Final = 12
"""Concurrent calls: more than a handle is likely to have connections."""
ZONE_SECONDS: Final = 600
"""By how much two clocks may differ; time zones differ by more."""
PAGE: Final = 60
"""Messages of a history: more than a page has."""
SECOND: Final = "message 1"
"""The id of the second message of a page."""
ODD_TEXT: Final = "é 漢 🎉 \\ ' %s"
"""A text that other character sets and quoting rules change."""
TURNS: Final = (1, 2, 3, 5, 8, 13)
"""Turns of the event loop before calls are cancelled."""

LANES: Final = 4
"""Handles that make calls at the same time, each one call after the other."""

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

    @clause(
        "FM-CON-022",
        promise="Calls that succeed leave nothing behind in the handle, either: after each of them, texts, times, "
        "deletions and pages are what they are through a new handle, and reads see what others have written since.",
        impact="After a look at the list of chats, that worker shows every conversation cut to one page, or garbles "
        "names.",
        needs=EVERYTHING,
    )
    async def test_successful_calls_leave_nothing_behind(self, store: StoreUnderTest) -> None:
        async def check(calls: Sequence[tuple[str, Call]]) -> None:
            memory, other = store.open(), store.open()
            page = await make_page(other)
            # One call of a handle at a time, so that the calls after it use the same connection.
            for name, call in calls:
                await call(memory, await make_page(other, 3))
                await _assert_unchanged(store, memory, other, page, name)

        if Capability.CLEAR_ALL in store.capabilities:
            memory, other = store.open(), store.open()
            await memory.clear_all()
            await _assert_unchanged(store, memory, other, await make_page(other), "clear_all")
        calls = list(good_calls(store.capabilities).items())
        await asyncio.gather(*(check(calls[at::LANES]) for at in range(LANES)))

    @clause(
        "FM-LIF-013",
        promise="A read that meets a damaged row leaves nothing behind in the handle: it reads what others write "
        "afterwards, and others see its writes.",
        impact="After one damaged byte a worker shows every conversation as it was at that moment.",
        needs=EVERYTHING | Capability.MESSAGE_IDS | Capability.DURABLE,
    )
    async def test_damage_leaves_nothing_behind(self, store: StoreUnderTest) -> None:
        writer = store.open()
        damaged, apart = await make_page(writer, 3), await writer.create_session("old")
        await writer.close()
        await store.corrupt_message(damaged, SECOND)
        memory, other = store.open(), store.open()
        for title in ("new", "newer"):
            with pytest.raises(FluxMemoryError):
                await memory.get_history(damaged)
            await other.update_session_title(apart, title)
            record = await memory.get_session(apart)
            assert record is not None
            assert record["title"] == title, "after a damaged row, an old state is read"
            with pytest.raises(FluxMemoryError):
                await memory.get_history(damaged)
            await memory.add_message(apart, "user", title)
            assert contents(await other.get_history(apart, 1)) == [title], "a write after a damaged row is invisible"


def good_calls(claimed: Capability) -> dict[str, Call]:
    """Return calls that succeed on a session with three messages, by what they do."""

    async def page(memory: Memory, session: str) -> None:
        given: dict[str, Any] = {"user_id": ""} if Capability.USER_SCOPE in claimed else {}
        await memory.get_sessions(5, before=await memory.get_session(session), with_metadata=False, **given)

    async def count_feedback(memory: Memory, _: str) -> None:
        await memory.feedback.stats(since=datetime.now(UTC))

    async def delete_feedback(memory: Memory, session: str) -> None:
        await memory.feedback.delete(await memory.feedback.add(session, 1, comment="x"))

    found: list[tuple[Capability, str, Call]] = [
        (NOTHING, "create_session", lambda memory, _: memory.create_session("made")),
        (NOTHING, "add_message", lambda memory, s: memory.add_message(s, "user", "x")),
        (NOTHING, "add_messages", lambda memory, s: memory.add_messages(s, [{"role": "user", "content": "x"}])),
        (NOTHING, "get_history", lambda memory, s: memory.get_history(s, 2)),
        (NOTHING, "get_sessions", lambda memory, _: memory.get_sessions(5)),
        (NOTHING, "count_sessions", lambda memory, _: memory.count_sessions()),
        (NOTHING, "update_session_title", lambda memory, s: memory.update_session_title(s, "new")),
        (NOTHING, "delete_session", lambda memory, s: memory.delete_session(s)),
        (Capability.USER_SCOPE, "a user's list", lambda memory, _: memory.get_sessions(5, user_id="")),
        (Capability.METADATA_FILTER, "a filtered list", lambda memory, _: memory.get_sessions(5, metadata={"k": 1})),
        (Capability.LIST_CURSOR, "a page of the list", page),
        (Capability.MESSAGE_LOOKUP, "get_message", lambda memory, s: memory.get_message(s, SECOND)),
        (
            Capability.FORWARD_CURSOR,
            "a page of messages",
            lambda memory, s: memory.get_history(s, 1, after=SECOND),
        ),
        (Capability.POP, "pop_message", lambda memory, s: memory.pop_message(s)),
        (Capability.FORK, "fork_session", lambda memory, s: memory.fork_session(s)),
        (Capability.SESSION_UPDATES, "update_session", lambda memory, s: memory.update_session(s, title="new")),
        (Capability.TRUNCATE, "truncation", lambda memory, s: memory.update_session(s, truncate_all=True)),
        (
            Capability.CREATE_ON_ADD,
            "an add that creates",
            lambda memory, s: memory.add_message(s, "r", "x", create=True),
        ),
        (Capability.RETENTION, "delete_sessions", lambda memory, _: memory.delete_sessions(user_id="no user")),
        (Capability.FEEDBACK, "feedback.add", lambda memory, s: memory.feedback.add(s, 1)),
        (Capability.FEEDBACK, "feedback.get", lambda memory, s: memory.feedback.get(5, session_id=s)),
        (Capability.FEEDBACK, "feedback.stats", count_feedback),
        (Capability.FEEDBACK, "feedback.delete", delete_feedback),
    ]
    return {name: call for needed, name, call in found if needed in claimed}


async def make_page(memory: Memory, count: int = PAGE) -> str:
    """Create a session with a number of messages, and return its id."""
    session = await memory.create_session()
    await memory.add_messages(
        session, [{"role": "user", "content": f"{ODD_TEXT} {n}", "message_id": f"message {n}"} for n in range(count)]
    )
    return session


async def _assert_unchanged(store: StoreUnderTest, memory: Memory, other: Memory, page: str, after: str) -> None:
    """Assert that a handle reads, writes and deletes as another one does; a page is a session made by `make_page`."""
    await other.update_session_title(page, after)
    record = await memory.get_session(page)
    assert record is not None, f"after {after}, a session is not found"
    assert record["title"] == after, f"after {after}, an old state is read"
    assert contents(await memory.get_history(page)) == [f"{ODD_TEXT} {n}" for n in range(PAGE)], f"cut after {after}"
    made = await memory.create_session(ODD_TEXT)
    await memory.add_message(made, ODD_TEXT, ODD_TEXT)
    assert await memory.get_session(made) == await other.get_session(made), f"two records after {after}"
    await other.add_message(made, "user", "answer")
    seen = await other.get_history(made)
    assert [(row["role"], row["content"]) for row in seen] == [(ODD_TEXT, ODD_TEXT), ("user", "answer")], (
        f"after {after}, a text is changed"
    )
    assert await memory.get_history(made) == seen, f"two histories after {after}"
    if Capability.TIMESTAMPS in store.capabilities:
        ours, theirs = (datetime.fromisoformat(row["created_at"]) for row in seen)
        assert abs((theirs - ours).total_seconds()) < ZONE_SECONDS, f"after {after}, the clock differs"
    await memory.delete_session(made)
    await other.create_session(session_id=made)
    assert await other.get_history(made) == [], f"after {after}, a deletion leaves messages"


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
