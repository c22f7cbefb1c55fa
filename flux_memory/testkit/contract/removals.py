"""Clauses on deletions: of one session on a condition, and of many by their user or their last activity."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import pytest

from flux_memory import ConflictError, InvalidInputError, Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK
from flux_memory.testkit.contract.corpus import NOT_TEXTS
from flux_memory.testkit.contract.limits import NOWHERE
from flux_memory.testkit.contract.pace import bumped, together
from flux_memory.testkit.contract.under_test import (
    StoreUnderTest,
    add_numbered,
    another_handle,
    contents,
    gather_outcomes,
)
from flux_memory.testkit.verdicts import unverified

RACES: Final = 12
MANY_SESSIONS: Final = 1_050
"""More than a batch of a deletion is likely to have."""
KEPT: Final = 5
BUSY: Final = 30
"""Sessions that are written to while old ones are deleted."""
MICROSECOND: Final = timedelta(microseconds=1)
NOT_TIMES: Final[tuple[Any, ...]] = (
    True,
    0,
    7.5,
    "2026-01-01T00:00:00+00:00",
    b"",
    [],
    {},
    timedelta(days=1),
    object(),
)


class RemovalsContract(Binding):
    """The promises of `delete_session` with a revision, and of `delete_sessions`."""

    @clause(
        "FM-DEL-001",
        promise="With `expected_revision`, a session is deleted only if it has this revision: else `ConflictError`, "
        "and nothing is removed. A session that does not exist is not an error.",
        impact="A clean-up job deletes a conversation that a user has just continued.",
        needs=Capability.REVISIONS | Capability.SESSIONS | Capability.SESSION_IDS | Capability.TITLES,
    )
    async def test_conditional_deletions(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, other = await memory.create_session("title", session_id="s"), await memory.create_session()
        stale = [await _revision(memory, session)]
        await add_numbered(memory, session, range(2))
        stale.append(await _revision(memory, session))
        await memory.update_session_title(session, "another title")
        before = await memory.get_session(session), await memory.get_history(session)
        current = await _revision(memory, session)
        wrong = (*stale, await _revision(memory, other), *NOWHERE, current.upper() + "x", current[:-1], current + " ")
        for revision in wrong:
            with pytest.raises(ConflictError):
                await memory.delete_session(session, expected_revision=revision)
            assert (await memory.get_session(session), await memory.get_history(session)) == before
        for value in NOT_TEXTS:
            with pytest.raises(InvalidInputError, match="expected_revision") as caught:
                await memory.delete_session(session, expected_revision=value)
            assert isinstance(caught.value, TypeError), f"{value!r} raised {caught.value!r}"
        await memory.delete_session(session, expected_revision=current)
        assert await memory.get_session(session) is None
        assert await memory.get_history(session) == []
        for key in (session, *NOWHERE):
            await memory.delete_session(key, expected_revision=current)
        # A new session with the same id is not the one that the caller knows.
        await memory.create_session("another title", session_id=session)
        for revision in (*stale, current):
            with pytest.raises(ConflictError):
                await memory.delete_session(session, expected_revision=revision)
        assert await memory.count_sessions() == 2
        await memory.delete_session(session, expected_revision=None)
        assert await memory.count_sessions() == 1

    @clause(
        "FM-DEL-002",
        promise="Of a conditional deletion and an add that race, one succeeds: an acknowledged message is not deleted "
        "by a caller who does not know of it.",
        impact="A user's message is acknowledged and gone, because a clean-up job looked at the session before it.",
        needs=Capability.REVISIONS | Capability.SESSIONS,
    )
    async def test_conditional_deletions_race(self, store: StoreUnderTest) -> None:
        memory = store.open()
        handles = (memory, another_handle(store, memory))

        async def race(number: int) -> None:
            session = await memory.create_session()
            revision = await _revision(memory, session)
            deletions = [handles[at % 2].delete_session(session, expected_revision=revision) for at in range(2)]
            adding = handles[number % 2].add_message(session, "user", "text")
            calls = [adding, *deletions] if number % 3 else [*deletions, adding]
            outcomes = await gather_outcomes(*calls)
            added = outcomes.pop(0 if number % 3 else 2)
            if isinstance(added, SessionNotFoundError):
                assert outcomes == [None, None], outcomes
                assert await memory.get_session(session) is None
            else:
                assert isinstance(added, str), f"the add raised {added!r}"
                assert [type(each) for each in outcomes] == [ConflictError, ConflictError], outcomes
                assert contents(await memory.get_history(session)) == ["text"]

        await together(map(race, range(RACES)))

    @clause(
        "FM-DEL-010",
        promise="`delete_sessions(user_id=)` removes each session of this user with its messages, no other session, "
        "and returns how many.",
        impact="A user who leaves takes other users' conversations along, or leaves some behind.",
        needs=Capability.RETENTION | Capability.IDEMPOTENT_IDS | Capability.SESSIONS | Capability.USER_SCOPE,
    )
    async def test_deletion_by_user(self, store: StoreUnderTest) -> None:
        memory = store.open()
        users = ("ann", "Ann", "an", "ann ", "an%", "a_n", "annie", "", "bob", "\u00e5nn", "ann'--")
        await together(_create(memory, user) for user in users for _ in range(3))
        strangers = ("carol", *(key for key in NOWHERE if key), "%", "_", "bob ", " bob", "Bob", "bo_", "bo%")
        deleted = await together(memory.delete_sessions(user_id=user) for user in strangers)
        assert not any(deleted), f"of {strangers!r:.200}: {deleted}"
        assert await memory.count_sessions() == len(users) * 3
        left = [*users]
        for user in ("ann", "an%", "", "a_n", "bob"):
            own, everything = await together((memory.get_sessions(None, user_id=user), memory.get_sessions(None)))
            doomed, others = [row["id"] for row in own], [row for row in everything if row["user_id"] != user]
            assert await memory.delete_sessions(user_id=user) == 3
            left.remove(user)
            assert await memory.get_sessions(None) == others
            histories = await together(memory.get_history(session) for session in doomed)
            assert not any(histories), "the messages of a deleted session are there"
            assert await memory.delete_sessions(user_id=user) == 0
        rows = await memory.get_sessions(None)
        histories = await together(memory.get_history(row["id"]) for row in rows)
        assert {2} == {*map(len, histories), *(row["message_count"] for row in rows)}

    @clause(
        "FM-DEL-011",
        promise="`delete_sessions(inactive_since=)` removes the sessions whose last change is before this time, in any "
        "time zone; a change at exactly this time keeps its session.",
        impact="A retention job deletes conversations that users still have, or keeps them for hours too long.",
        needs=Capability.RETENTION | Capability.SESSIONS | Capability.TIMESTAMPS | Capability.USER_SCOPE,
    )
    async def test_deletion_by_time(self, store: StoreUnderTest) -> None:
        memory = store.open()
        moment = datetime.now(UTC) + timedelta(hours=1)
        # Created long before, and active since: the last change counts.
        active = await memory.create_session(user_id="ann")
        steps = (-timedelta(seconds=1), -MICROSECOND, timedelta(0), timedelta(0), MICROSECOND, timedelta(hours=3))
        sessions = []
        for at, step in enumerate(steps):
            async with store.clock_at(moment + step):
                sessions.append(await memory.create_session(user_id="ann" if at % 2 else "bob"))
                await add_numbered(memory, sessions[-1], range(2))
        async with store.clock_at(moment + timedelta(hours=2)):
            await add_numbered(memory, active, range(1))
        rows: list[Any] = await memory.get_sessions(None)
        settable = rows[0]["updated_at"] >= (moment + timedelta(hours=3)).isoformat(timespec="seconds")
        assert await memory.delete_sessions(inactive_since=moment - timedelta(days=1)) == 0
        assert await memory.get_sessions(None) == rows
        zones = (UTC, timezone(timedelta(hours=9)), timezone(-timedelta(hours=11, minutes=30)))
        # By the user as well: a session has to meet both.
        for at, mark in enumerate(reversed([row["updated_at"] for row in rows])):
            since = datetime.fromisoformat(mark).astimezone(zones[at % 3])
            for given in ({"user_id": "carol"}, {"user_id": ""}, {"user_id": "bob"}, {}):
                user: Any = given.get("user_id")
                kept = [row for row in rows if row["updated_at"] >= mark or user not in {None, row["user_id"]}]
                deleted = await memory.delete_sessions(inactive_since=since, **given)
                assert deleted == len(rows) - len(kept), f"before {since} with {given}"
                assert await memory.get_sessions(None) == kept, f"before {since} with {given}"
                rows = kept
        histories = await together(map(memory.get_history, sessions))
        assert [len(history) for history in histories[:-1]] == [0] * (len(sessions) - 1) or not settable
        latest = datetime.fromisoformat(rows[0]["updated_at"])
        assert await memory.delete_sessions(inactive_since=latest + MICROSECOND) == len(rows)
        assert await memory.count_sessions() == 0
        if not settable:
            unverified(UNSET_CLOCK)

    @clause(
        "FM-DEL-012",
        promise="`delete_sessions` without a criterion, or with a time that is not an aware `datetime`, is rejected, "
        "and removes nothing.",
        impact="A retention job with an empty configuration deletes every conversation.",
        needs=Capability.RETENTION | Capability.SESSIONS | Capability.TIMESTAMPS | Capability.USER_SCOPE,
    )
    async def test_wrong_deletions(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await add_numbered(memory, session, range(1))
        future = datetime.now(UTC) + timedelta(days=1)
        for given in ({}, {"user_id": None}, {"inactive_since": None}, {"user_id": None, "inactive_since": None}):
            with pytest.raises(InvalidInputError, match="user_id"):
                await memory.delete_sessions(**given)
        for user in (None, ""):
            with pytest.raises(InvalidInputError, match="inactive_since"):
                await memory.delete_sessions(user_id=user, inactive_since=future.replace(tzinfo=None))
            for value in NOT_TIMES:
                with pytest.raises(InvalidInputError, match="inactive_since") as caught:
                    await memory.delete_sessions(user_id=user, inactive_since=value)
                assert isinstance(caught.value, TypeError), f"{value!r} raised {caught.value!r}"
        for value in NOT_TEXTS:
            with pytest.raises(InvalidInputError, match="user_id") as caught:
                await memory.delete_sessions(user_id=value, inactive_since=future)
            assert isinstance(caught.value, TypeError), f"{value!r} raised {caught.value!r}"
        assert await memory.count_sessions() == 1
        assert contents(await memory.get_history(session)) == ["0"]

    @clause(
        "FM-DEL-013",
        promise="`delete_sessions` removes any number of sessions: a thousand, with each of their messages, and "
        "returns their number.",
        impact="A retention job stops after its first batch, and the store grows without end.",
        needs=Capability.RETENTION | Capability.SESSIONS | Capability.TIMESTAMPS | Capability.USER_SCOPE,
    )
    async def test_deletion_of_many(self, store: StoreUnderTest) -> None:
        memory = store.open()
        users = ["ann"] * MANY_SESSIONS
        for at in range(KEPT):
            users.insert(at * 60, "bob")
        sessions = await together(memory.create_session(user_id=user) for user in users)
        marked = sessions[:: len(sessions) // 10]
        await together(add_numbered(memory, session, range(2)) for session in marked)
        assert await memory.delete_sessions(user_id="ann") == MANY_SESSIONS
        left = await memory.get_sessions(None)
        assert [row["user_id"] for row in left] == ["bob"] * KEPT
        kept = {row["id"] for row in left}
        for session, history in zip(marked, await together(map(memory.get_history, marked)), strict=True):
            assert len(history) == (2 if session in kept else 0)
        assert await memory.delete_sessions(user_id="bob", inactive_since=datetime.now(UTC) + timedelta(days=9)) == KEPT

    @clause(
        "FM-DEL-014",
        promise="A session that is changed while inactive ones are deleted survives whole, if the change was "
        "acknowledged; else the add raises `SessionNotFoundError`.",
        impact="A user continues an old conversation, and a retention job deletes it with the new message.",
        needs=Capability.RETENTION | Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_deletion_beside_writers(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        sessions = await together(memory.create_session() for _ in range(BUSY))
        await together(add_numbered(memory, session, range(1)) for session in sessions)
        oldest_allowed = (await memory.get_sessions(1))[0]["updated_at"]
        marker = await memory.create_session()

        async def is_later() -> bool:
            row = await memory.get_session(marker)
            return row is not None and row["updated_at"] > oldest_allowed

        assert await bumped(lambda: memory.add_message(marker, "user", "text"), is_later)
        moved: Any = await memory.get_session(marker)
        since = datetime.fromisoformat(moved["updated_at"])

        async def add(session: str) -> bool:
            try:
                await other.add_message(session, "user", "1")
            except SessionNotFoundError:
                return False
            return True

        half = BUSY // 2
        # One of the deletions begins among the adds.
        deletions = [memory.delete_sessions(inactive_since=since) for _ in range(2)]
        work = [*map(add, sessions[:half]), deletions[0], *map(add, sessions[half:]), deletions[1]]
        outcomes = await asyncio.gather(*work)
        deleted = outcomes.pop() + outcomes.pop(half)
        found = await together(map(memory.get_session, sessions))
        histories = await together(map(memory.get_history, sessions))
        for added, row, history in zip(outcomes, found, histories, strict=True):
            if added:
                assert row is not None, "a session was deleted with a message that was acknowledged after the time"
                assert (contents(history), row["message_count"]) == (["0", "1"], 2)
            else:
                assert (row, history) == (None, []), "a session is gone in part"
        assert deleted == outcomes.count(False)
        assert await memory.get_session(marker) is not None


async def _revision(memory: Memory, session: str) -> str:
    found = await memory.get_session(session)
    assert found is not None
    return found["revision"]


async def _create(memory: Memory, user: str) -> None:
    session = await memory.create_session(user_id=user)
    for name in ("1", "2"):
        await memory.add_message(session, "user", "text", message_id=name)
