"""Clauses on times far from today: old conversations, later decades, and the hours that a time zone has twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import pytest

from flux_memory import InvalidInputError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK, process_time_zone
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle, contents
from flux_memory.testkit.verdicts import unverified

RESOLUTION: Final = timedelta(seconds=1)
"""How coarse the times of a store may be."""
NOW_SECONDS: Final = 600
"""Times this near to the present come from a clock that was not set."""

CONNECTIONS: Final = 12
"""Concurrent calls: more than a handle is likely to have connections."""

AGES_DAYS: Final = (4_000, 400, 40)
"""Ages at which stores commonly expire data."""

DECADES: Final = (
    datetime(2038, 1, 19, 3, 14, 6, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 9, tzinfo=UTC),
    datetime(2040, 2, 29, 23, 59, 58, 250_000, tzinfo=UTC),
    datetime(2040, 3, 1, 0, 0, 2, 750_000, tzinfo=UTC),
    datetime(2106, 2, 7, 6, 28, 18, tzinfo=UTC),
)
"""Around the overflow of signed and of unsigned seconds in 32 bits, and around a leap day."""

CENTRAL_EUROPE: Final = "CET-1CEST,M3.5.0,M10.5.0/3"
"""A zone with daylight saving time, in POSIX's form, which needs no time zone database."""
WEST: Final = "XXX+11:30"
CLOCK_CHANGES: Final = (
    datetime(2025, 3, 30, 0, 59, 58, tzinfo=UTC),
    datetime(2025, 3, 30, 1, 0, 2, tzinfo=UTC),
    datetime(2025, 10, 26, 0, 30, tzinfo=UTC),
    datetime(2025, 10, 26, 1, 30, tzinfo=UTC),
    datetime(2025, 12, 31, 23, 30, tzinfo=UTC),
)
"""Around the hour that Central Europe skips in spring, twice in the hour that it repeats in autumn, and in another year
there than in UTC."""

SCATTERED: Final = (
    datetime(2025, 12, 31, 23, 59, 58, tzinfo=UTC),
    datetime(2001, 9, 9, 1, 46, 42, tzinfo=UTC),
    datetime(2040, 2, 29, 12, tzinfo=UTC),
    datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC),
    datetime(2001, 9, 9, 1, 46, 38, tzinfo=UTC),
    datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC),
    datetime(2024, 3, 1, 0, 0, 2, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 9, tzinfo=UTC),
)
"""In no order, and around the billionth second since 1970, which has one digit more."""

FIRST: Final = datetime.min.replace(tzinfo=UTC)
LAST: Final = datetime.max.replace(tzinfo=UTC)
OUTSIDE: Final = (
    datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))),
)
"""Times that are in another year than 1 to 9999 in UTC."""


class MomentsContract(Binding):
    """The promises on times far from today."""

    @clause(
        "FM-TIM-030",
        promise="Nothing expires: conversations of 40, 400 and 4,000 days ago are found, listed, counted, paged and "
        "continued, also by a handle that is opened now.",
        impact="Conversations vanish a month after their last message.",
        needs=Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_nothing_expires(self, store: StoreUnderTest) -> None:
        now = datetime.now(UTC)
        memory = store.open()
        named = Capability.IDEMPOTENT_IDS in store.capabilities
        sessions: list[str] = []
        for days in AGES_DAYS:
            async with store.clock_at(now - timedelta(days=days)):
                session = await memory.create_session()
                for number in range(3):
                    await _add(memory, session, number, named=named)
                sessions.append(session)
        # A store that expires data does so when it is opened or written to.
        sessions.append(await memory.create_session())
        await memory.add_message(sessions[-1], "user", "now")
        reader = another_handle(store, memory)
        rows = {row["id"]: row for row in await reader.get_sessions(None)}
        assert rows.keys() == set(sessions)
        assert await reader.count_sessions() == len(sessions)
        for session in sessions[:-1]:
            assert await reader.get_session(session) == rows[session]
            history = await reader.get_history(session)
            assert contents(history) == ["0", "1", "2"]
            assert rows[session]["message_count"] == 3
            if Capability.CURSOR | Capability.MESSAGE_IDS in store.capabilities:
                assert await reader.get_history(session, 5, before=history[2]["id"]) == history[:2]
            await _add(reader, session, 2 if named else 3, named=named)
            await _add(reader, session, 4, named=named)
            assert contents(await reader.get_history(session)) == ["0", "1", "2", *([] if named else ["3"]), "4"]
        require_clock([rows[session]["created_at"] for session in sessions[:-1]], now)

    @clause(
        "FM-TIM-031",
        promise="Times are right to the second after 2038 and 2106 and on a leap day, and in order.",
        impact="On one day in 2038 new messages are dated 1901, and new conversations sink to the end of the list.",
        needs=Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_later_decades(self, store: StoreUnderTest) -> None:
        memory = store.open()
        long = await memory.create_session()
        before = await memory.get_session(long)
        assert before is not None
        sessions: list[str] = []
        for moment in DECADES:
            async with store.clock_at(moment):
                sessions.append(await memory.create_session())
                await memory.add_message(long, "user", str(moment))
        reader = another_handle(store, memory)
        history = await reader.get_history(long)
        created = [message["created_at"] for message in history]
        rows = await reader.get_sessions()
        require_clock(created, datetime.now(UTC))
        _check_times(created, DECADES)
        assert contents(history) == [str(moment) for moment in DECADES]
        # The long conversation and the newest session have the same time.
        assert {row["id"] for row in rows[:2]} == {long, sessions[-1]}
        assert [row["id"] for row in rows[2:]] == sessions[-2::-1]
        _check_times([row["created_at"] for row in rows[:1:-1]], DECADES[:-1])
        found = await reader.get_session(long)
        assert found is not None
        assert (found["created_at"], found["updated_at"]) == (before["created_at"], created[-1])

    @clause(
        "FM-TIM-032",
        promise="Times are right and in order where the time zone of a process changes its clocks, for readers in "
        "another zone, too.",
        impact="Once a year the messages of an hour are dated an hour off, or answers precede their questions.",
        needs=Capability.SESSIONS | Capability.TIMESTAMPS | Capability.SEVERAL_HANDLES,
    )
    async def test_clock_changes(self, store: StoreUnderTest) -> None:
        with process_time_zone(CENTRAL_EUROPE):
            memory = store.open()
            sessions: list[str] = []
            for moment in CLOCK_CHANGES:
                async with store.clock_at(moment):
                    sessions.append(await memory.create_session())
                    await memory.add_message(sessions[-1], "user", "text")
        for zone in (WEST, CENTRAL_EUROPE):
            with process_time_zone(zone):
                reader = store.open()
                rows = await reader.get_sessions()
                histories = [await reader.get_history(session) for session in sessions]
            require_clock([row["created_at"] for row in rows], datetime.now(UTC))
            assert [row["id"] for row in rows] == sessions[::-1]
            _check_times([row["created_at"] for row in rows[::-1]], CLOCK_CHANGES)
            _check_times([row["updated_at"] for row in rows[::-1]], CLOCK_CHANGES)
            _check_times([message["created_at"] for history in histories for message in history], CLOCK_CHANGES)

    @clause(
        "FM-TIM-033",
        promise="Sessions of different decades are listed by their last activity, in the order of time and not of "
        "their creation, also across pages.",
        impact="After a restored backup or a wrong clock, old conversations hide the new ones.",
        needs=Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_decades_are_listed_in_order(self, store: StoreUnderTest) -> None:
        memory = store.open()
        sessions: dict[datetime, str] = {}
        for moment in SCATTERED:
            async with store.clock_at(moment):
                sessions[moment] = await memory.create_session()
        reader = another_handle(store, memory)
        rows = await reader.get_sessions()
        require_clock([row["updated_at"] for row in rows], datetime.now(UTC))
        expected = [sessions[moment] for moment in sorted(sessions, reverse=True)]
        assert [row["id"] for row in rows] == expected
        assert [(await reader.get_sessions(1, at))[0]["id"] for at in range(len(expected))] == expected
        oldest = expected.pop()
        async with store.clock_at(max(SCATTERED) + timedelta(seconds=5)):
            await memory.add_message(oldest, "user", "text")
        assert [row["id"] for row in await reader.get_sessions()] == [oldest, *expected]

    @clause(
        "FM-TIM-034",
        promise="A handle has one clock and one time zone, whichever of its connections a call uses: concurrent calls "
        "write and read the same times as those of another handle.",
        impact="Under load, every second conversation is hours older than it is, and sinks in the list.",
        needs=Capability.SESSIONS | Capability.TIMESTAMPS | Capability.SEVERAL_HANDLES,
    )
    async def test_connections_agree_on_times(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        # The first connection alone, as a handle may set up later ones in another way.
        made = [await memory.create_session()]
        made += await asyncio.gather(*(memory.create_session() for _ in range(CONNECTIONS)))
        ours = await asyncio.gather(*(memory.get_session(session) for session in made))
        assert list(ours) == [await other.get_session(session) for session in made], "two handles read other times"
        again = await asyncio.gather(*(memory.get_session(made[0]) for _ in range(CONNECTIONS)))
        assert list(again) == [ours[0]] * CONNECTIONS, "one handle reads a time differently"
        times = [datetime.fromisoformat(row["created_at"]) for row in ours if row is not None]
        assert max(times) - min(times) < timedelta(seconds=NOW_SECONDS), "sessions made at once have other times"

    @clause(
        "FM-TIM-060",
        promise="`delete_sessions` and `feedback.stats` take any time of the years 1 to 9999 in UTC, the first and the "
        "last included; a time outside them is an `InvalidInputError`, and removes nothing.",
        impact="A job that removes every conversation, by the last time of the calendar, fails with a driver's error.",
        needs=Capability.SESSIONS | Capability.TIMESTAMPS | Capability.RETENTION,
    )
    async def test_times_of_any_year(self, store: StoreUnderTest) -> None:
        memory = store.open()
        rates = Capability.FEEDBACK in store.capabilities
        session = await memory.create_session()
        if rates:
            await memory.feedback.add(session, 1)
        for moment in OUTSIDE:
            with pytest.raises(InvalidInputError, match="inactive_since"):
                await memory.delete_sessions(inactive_since=moment)
            if rates:
                with pytest.raises(InvalidInputError, match="since"):
                    await memory.feedback.stats(since=moment)
        for moment, left in ((FIRST, 1), (LAST, 0)):
            if rates:
                assert (await memory.feedback.stats(since=moment))["total"] == left, f"since {moment}"
            assert await memory.delete_sessions(inactive_since=moment) == 1 - left, f"before {moment}"
            assert await memory.count_sessions() == left


async def _add(memory: Memory, session: str, number: int, *, named: bool) -> None:
    """Add a message with this number; with an id of its own it is a retry if it is already stored."""
    given: dict[str, Any] = {"message_id": f"message {number}"} if named else {}
    await memory.add_message(session, "user", str(number), **given)


def require_clock(texts: Sequence[str], now: datetime) -> None:
    """Leave the clause unverified if times are those of the present, because the clock was not set."""
    if any(abs((datetime.fromisoformat(text) - now).total_seconds()) < NOW_SECONDS for text in texts):
        unverified(UNSET_CLOCK)


def _check_times(texts: Sequence[str], moments: Sequence[datetime]) -> None:
    """Check that times are the moments, as exactly as the store's resolution allows."""
    assert len(texts) == len(moments)
    for text, moment in zip(texts, moments, strict=True):
        off = abs(datetime.fromisoformat(text) - moment)
        assert off < RESOLUTION, f"{text} instead of {moment.isoformat()}"
