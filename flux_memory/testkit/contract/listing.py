"""Clauses on the list of sessions: its order, pages, counts and filters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from flux_memory import InvalidInputError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK
from flux_memory.testkit.contract.filters import ARRAYS, NUMBERS, OBJECTS, SCALARS, Cases
from flux_memory.testkit.contract.order import HUGE_COUNTS, NEGATIVE_COUNTS, NOT_COUNTS
from flux_memory.testkit.contract.pace import bumped, together
from flux_memory.testkit.contract.under_test import SEPARATORS, StoreUnderTest, add_numbered
from flux_memory.testkit.verdicts import unverified

SESSIONS: Final = 120
"""More than a default page, and more than a store is likely to read at once."""


class ListingContract(Binding):
    """The promises of `get_sessions`."""

    @clause(
        "FM-LST-001",
        promise="Sessions are listed by activity, newest first: creations, adds, batches and renames count.",
        impact="The conversation a user just used is not at the top of the list.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.TITLES | Capability.TIMESTAMPS,
    )
    async def test_newest_activity_first(self, store: StoreUnderTest) -> None:
        memory = store.open()
        a, b, c = [await memory.create_session(title) for title in "abc"]
        await _settle(memory, a)
        assert (await _ids(memory))[0] == a
        await memory.update_session_title(b, "b")
        await _settle(memory, b)
        await memory.add_messages(c, [{"role": "user", "content": "text"}])
        await _settle(memory, c)
        assert await _ids(memory) == [c, b, a]
        moment = datetime.now(UTC) + timedelta(hours=1)
        for later, session in enumerate((c, b, a)):
            # With a settable clock, one microsecond has to decide, even for a session that was created earlier.
            async with store.clock_at(moment + timedelta(microseconds=later)):
                await memory.add_message(session, "user", "text")
        rows = await memory.get_sessions()
        assert rows == sorted(rows, key=lambda row: row["updated_at"], reverse=True)

    @clause(
        "FM-LST-002",
        promise="Sessions with equal times have one order, however the list is filtered or split into pages.",
        impact="Pages overlap: one session appears twice and another never.",
        needs=Capability.TIMESTAMPS | Capability.SESSIONS | Capability.SESSION_IDS,
    )
    async def test_ties_have_one_order(self, store: StoreUnderTest) -> None:
        memory = store.open()
        ids = ["b", "B", "a", "_", "\u00e9", "\U0001f44d", "\uffee", "10", "9", "-", "a b", "ab"]
        async with store.clock_at(datetime.now(UTC) + timedelta(hours=1)):
            await together(memory.create_session(session_id=session) for session in ids)
        rows = await memory.get_sessions()
        if len({row["updated_at"] for row in rows}) > 1:
            unverified(UNSET_CLOCK)
        assert {row["id"] for row in rows} == set(ids)
        for size in (1, 5, len(ids)):
            assert await _pages(memory, size, len(ids)) == rows
        if Capability.USER_SCOPE in store.capabilities:
            assert await memory.get_sessions(user_id="") == rows

    @clause(
        "FM-LST-003",
        promise="`limit` and `offset` page through all sessions with no gap and no repeat; past the end is `[]`.",
        impact="Some conversations are on no page of the list.",
        needs=Capability.SESSIONS | Capability.TITLES,
    )
    async def test_pages_are_complete(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await together(memory.create_session(str(number)) for number in range(7))
        everything = await memory.get_sessions()
        for size in (1, 3, 7):
            assert await _pages(memory, size, 9) == everything
        assert await memory.get_sessions(offset=4) == everything[4:]
        for limit in (50, None):
            beyond = (7, *HUGE_COUNTS[1:])
            assert not any(await together(memory.get_sessions(limit, offset) for offset in beyond))

    @clause(
        "FM-LST-004",
        promise="`limit` defaults to 50; 0 returns nothing; `None`, and any number above the count, returns all.",
        impact="A list is cut off, or a page is much larger than the caller asked for.",
        needs=Capability.SESSIONS,
    )
    async def test_list_limits_at_the_edges(self, store: StoreUnderTest) -> None:
        memory = store.open()
        sessions = await together(memory.create_session() for _ in range(SESSIONS))
        everything = await memory.get_sessions(None)
        assert {row["id"] for row in everything} == set(sessions)
        assert len(everything) == SESSIONS
        assert await memory.get_sessions() == everything[:50]
        assert await memory.get_sessions(0) == []
        for rows in await together(memory.get_sessions(limit) for limit in HUGE_COUNTS[1:]):
            assert rows == everything

    @clause(
        "FM-LST-005",
        promise="A `limit` or `offset` that is not an `int` is a type error; a negative one is rejected.",
        impact="A wrong page number gives an empty list on one engine and an error on the other.",
        needs=Capability.SESSIONS,
    )
    async def test_wrong_counts_are_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()

        async def refuse(count: Any, *, wrong_type: bool) -> None:
            with pytest.raises(InvalidInputError, match="limit") as caught:
                await memory.get_sessions(count)
            assert isinstance(caught.value, TypeError) or not wrong_type
            with pytest.raises(InvalidInputError, match="offset") as caught:
                await memory.get_sessions(50, count)
            assert isinstance(caught.value, TypeError) or not wrong_type

        await together(refuse(count, wrong_type=True) for count in NOT_COUNTS)
        await together(refuse(count, wrong_type=False) for count in NEGATIVE_COUNTS)
        with pytest.raises(TypeError):
            await memory.get_sessions(50, None)  # type: ignore[arg-type]  # that is the point

    @clause(
        "FM-LST-006",
        promise="Sessions without messages are listed, with a count of 0.",
        impact="A conversation that was just started cannot be found.",
        needs=Capability.SESSIONS,
    )
    async def test_empty_sessions_are_listed(self, store: StoreUnderTest) -> None:
        memory = store.open()
        empty, filled = await memory.create_session(), await memory.create_session()
        await add_numbered(memory, filled, range(2))
        assert {row["id"]: row["message_count"] for row in await memory.get_sessions()} == {empty: 0, filled: 2}
        assert await memory.count_sessions() == 2

    @clause(
        "FM-LST-007",
        promise="`message_count` is correct after adds, batches, retries and rejections.",
        impact="The list shows a different number of messages than the conversation has.",
        needs=Capability.BATCH | Capability.IDEMPOTENT_IDS | Capability.SESSIONS,
    )
    async def test_message_count_is_true(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await add_numbered(memory, session, range(2))
        batch: Any = [{"role": "r", "content": "x", "message_id": "x"}, {"role": "r", "content": "y"}]
        await memory.add_messages(session, batch)
        await memory.add_message(session, "r", "x", message_id="x")
        with pytest.raises(InvalidInputError):
            await memory.add_messages(session, [batch[1], {"role": "", "content": ""}])
        (row,) = await memory.get_sessions()
        found = await memory.get_session(session)
        assert found == row
        assert row["message_count"] == len(await memory.get_history(session)) == 4
        assert type(row["message_count"]) is int

    @clause(
        "FM-LST-008",
        promise="`user_id` lists one user's sessions; `None` lists every user's, and `\"\"` those without an owner.",
        impact="Users see other users' conversations.",
        needs=Capability.SESSIONS | Capability.USER_SCOPE,
    )
    async def test_user_scope(self, store: StoreUnderTest) -> None:
        memory = store.open()
        ann, bob = [await memory.create_session(user_id=user) for user in ("ann", "bob")]
        ownerless = await memory.create_session()
        assert [row["id"] for row in await memory.get_sessions(user_id="ann")] == [ann]
        assert [row["id"] for row in await memory.get_sessions(user_id="bob")] == [bob]
        assert [row["id"] for row in await memory.get_sessions(user_id="")] == [ownerless]
        assert {row["id"] for row in await memory.get_sessions(user_id=None)} == {ann, bob, ownerless}
        assert await memory.get_sessions(user_id="an") == []

        async def separate(user: str) -> None:
            another = await memory.create_session(user_id=user)
            assert [row["id"] for row in await memory.get_sessions(user_id=user)] == [another]

        await together(separate(f"ann{mark}bob") for mark in SEPARATORS)
        assert [row["id"] for row in await memory.get_sessions(user_id="ann")] == [ann]
        later = [await memory.create_session(user_id="ann") for _ in range(3)]
        await memory.add_message(ann, "user", "text")
        mine = [row for row in await memory.get_sessions() if row["user_id"] == "ann"]
        assert await memory.get_sessions(user_id="ann") == mine
        await memory.delete_session(mine.pop(0)["id"])
        assert await memory.get_sessions(1, user_id="ann") == mine[:1]
        assert await memory.get_sessions(2, 1, user_id="ann") == mine[1:]
        assert len(mine) == len(later)

    @clause(
        "FM-LST-009",
        promise="A metadata filter compares scalars by type and value; a missing key is not `None`.",
        impact="A filter returns sessions that do not match, or misses sessions that do.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.SESSION_METADATA | Capability.METADATA_FILTER,
    )
    async def test_filter_by_scalars(self, store: StoreUnderTest) -> None:
        await _filters(store.open(), SCALARS)

    @clause(
        "FM-LST-010",
        promise="A metadata filter compares numbers by value, to the last digit: 1 finds 1.0.",
        impact="A filter by a long number finds another user's session.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.SESSION_METADATA | Capability.METADATA_FILTER,
    )
    async def test_filter_by_numbers(self, store: StoreUnderTest) -> None:
        await _filters(store.open(), NUMBERS)

    @clause(
        "FM-LST-011",
        promise="A metadata filter finds objects that contain it, at any depth; an empty filter finds all.",
        impact="A filter stops matching once a session gets a second key.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.SESSION_METADATA | Capability.METADATA_FILTER,
    )
    async def test_filter_by_objects(self, store: StoreUnderTest) -> None:
        await _filters(store.open(), OBJECTS)

    @clause(
        "FM-LST-012",
        promise="A metadata filter compares arrays like `jsonb @>`: order and repeats do not count, nesting does.",
        impact="A filter by tags works on one engine only.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.SESSION_METADATA | Capability.METADATA_FILTER,
    )
    async def test_filter_by_arrays(self, store: StoreUnderTest) -> None:
        await _filters(store.open(), ARRAYS)

    @clause(
        "FM-LST-013",
        promise="Filters apply before `limit` and `offset`, and a session has to match all of them.",
        impact="A filtered list has incomplete pages, or shows other users' sessions.",
        needs=Capability.SESSIONS | Capability.SESSION_METADATA | Capability.METADATA_FILTER | Capability.USER_SCOPE,
    )
    async def test_filters_come_before_pages(self, store: StoreUnderTest) -> None:
        memory = store.open()
        owners = [("ann", "bob")[number % 2] for number in range(12)]
        tags = [[["x"], ["x", "y"], ["z"]][number % 3] for number in range(12)]
        made = await together(
            memory.create_session(user_id=owners[number], metadata={"tags": tags[number], "number": number})
            for number in range(12)
        )
        wanted = [made[number] for number in range(12) if owners[number] == "ann" and "x" in tags[number]]
        ordered = [row["id"] for row in await memory.get_sessions(None) if row["id"] in wanted]
        pages = await together(memory.get_sessions(1, at, user_id="ann", metadata={"tags": ["x"]}) for at in range(5))
        paged = [row for page in pages for row in page]
        assert [row["id"] for row in paged] == ordered
        assert len(ordered) == 4
        assert await memory.get_sessions(1, 4, user_id="ann", metadata={"tags": ["x"]}) == []
        await together(memory.create_session(user_id="ann") for _ in range(SESSIONS))
        assert await memory.get_sessions(user_id="ann", metadata={"tags": ["x"]}) == paged


async def _ids(memory: Memory) -> list[str]:
    return [row["id"] for row in await memory.get_sessions()]


async def _settle(memory: Memory, session: str) -> None:
    """Add to a session until its time is the latest, however coarse the clock is."""

    async def is_latest() -> bool:
        rows = await memory.get_sessions()
        own = next(row["updated_at"] for row in rows if row["id"] == session)
        return all(row["updated_at"] < own for row in rows if row["id"] != session)

    assert await bumped(lambda: memory.add_message(session, "user", "text"), is_latest), (
        "an add a second after all other changes did not make its session the newest"
    )


async def _pages(memory: Memory, size: int, stop: int) -> list[Any]:
    pages = await together(memory.get_sessions(size, at) for at in range(0, stop, size))
    return [row for page in pages for row in page]


async def _filters(memory: Memory, cases: Cases) -> None:
    await together(
        memory.create_session(session_id=str(number), metadata=metadata)
        for number, (metadata, _, _) in enumerate(cases)
    )
    listings = await together(memory.get_sessions(None, metadata=wanted) for _, wanted, _ in cases)
    for number, ((metadata, wanted, expected), listed) in enumerate(zip(cases, listings, strict=True)):
        found = {row["id"] for row in listed}
        verb = "does not contain" if expected else "contains"
        assert (str(number) in found) is expected, f"according to the filter, {metadata!s:.200} {verb} {wanted!s:.200}"
