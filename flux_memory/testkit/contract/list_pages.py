"""Clauses on the cursor of `get_sessions`, on lists without metadata, and on counts with filters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from flux_memory import InvalidInputError, Memory, Session
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK
from flux_memory.testkit.contract.corpus import METADATA, NOT_OBJECTS, NOT_TEXTS
from flux_memory.testkit.contract.limits import NOWHERE, TOO_LARGE_FILTERS
from flux_memory.testkit.contract.pace import bumped, together
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered
from flux_memory.testkit.verdicts import unverified

NOT_FLAGS: Final[tuple[Any, ...]] = (0, 1, None, "", "true", [], object())
LISTED: Final = 12
"""Sessions of a list that others change while it is read."""
FILTERS: Final[tuple[dict[str, Any], ...]] = (
    *({}, {"user_id": "ann"}, {"user_id": "bob"}, {"user_id": ""}, {"user_id": "carol"}, {"user_id": None}),
    *({"metadata": {"k": 1}}, {"metadata": {"k": 1.0}}, {"metadata": {"k": "1"}}, {"metadata": {}}, {"metadata": None}),
    *({"user_id": "ann", "metadata": {"k": 1}}, {"user_id": "bob", "metadata": {"tags": ["b"]}}),
    *({"metadata": {"tags": ["a", "b"]}}, {"metadata": {"deep": {"k": None}}}, {"metadata": {"none": 0}}),
)


class ListPagesContract(Binding):
    """The promises of lists that are read page by page, and of counts."""

    @clause(
        "FM-LST-030",
        promise="`before` pages through the list with no gap and no repeat, also where sessions have equal times.",
        impact="Scrolling through the conversations skips some of them, or shows them twice.",
        needs=Capability.LIST_CURSOR | Capability.SESSIONS | Capability.SESSION_IDS | Capability.TIMESTAMPS,
    )
    async def test_the_list_cursor_pages(self, store: StoreUnderTest) -> None:
        memory = store.open()
        ids = ["b", "B", "a", "_", "\u00e9", "\U0001f44d", "\uffee", "10", "9", "-", "a b", "ab"]
        moment = datetime.now(UTC) + timedelta(hours=1)
        for later in range(2):
            async with store.clock_at(moment + timedelta(microseconds=later)):
                await together(memory.create_session(session_id=f"{session}{later}") for session in ids)
        rows = await memory.get_sessions(None)
        for found in await together(_pages(memory, size) for size in (1, 5, 24, 25)):
            assert found == rows
        following = await together(memory.get_sessions(None, before=row) for row in rows)
        assert following == [rows[at + 1 :] for at in range(len(rows))]
        if len({row["updated_at"] for row in rows}) > 2 or rows[-1]["updated_at"] < moment.isoformat(
            timespec="seconds"
        ):
            unverified(UNSET_CLOCK)

    @clause(
        "FM-LST-031",
        promise="`before` combines with `limit`, `offset` and each filter: it returns what follows the record in that "
        "list, 50 by default.",
        impact="The second page of a user's list shows another user's conversations.",
        needs=Capability.LIST_CURSOR
        | Capability.TIMESTAMPS
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER
        | Capability.USER_SCOPE,
    )
    async def test_the_list_cursor_with_filters(self, store: StoreUnderTest) -> None:
        memory = store.open()
        kinds: list[tuple[str, dict[str, Any]]] = [("ann", {"k": 1}), ("bob", {"k": 1}), ("ann", {"k": 2}), ("", {})]
        await together(
            memory.create_session(metadata=metadata, user_id=user)
            for user, metadata in kinds + [("ann", {"k": 1})] * 54
        )
        everything = await memory.get_sessions(None)
        filters: list[dict[str, Any]] = [{}, {"user_id": "ann"}, {"metadata": {"k": 1}}]
        for given in (*filters, filters[1] | filters[2]):
            of_list: list[Any] = await memory.get_sessions(None, **given)
            listed = {row["id"] for row in of_list}
            # A record that the filter leaves out marks a place, too.
            for mark in (everything[0], everything[-2], of_list[2]):
                at = everything.index(mark)
                follow = [row for row in everything[at + 1 :] if row["id"] in listed]
                pages: dict[tuple[int | None, int], list[Session]] = {
                    (50, 0): follow[:50],
                    (None, 0): follow,
                    (2, 1): follow[1:3],
                    (None, 3): follow[3:],
                    (0, 0): [],
                    (50, len(follow)): [],
                }
                found = await together(memory.get_sessions(*page, before=mark, **given) for page in pages)
                assert found == list(pages.values()), f"with {given}"
                assert await memory.get_sessions(before=mark, **given) == follow[:50], f"with {given}"

    @clause(
        "FM-LST-032",
        promise="Sessions that do not change are each on one page while others are created, change or are deleted, "
        "even those of the cursors.",
        impact="In a busy store, conversations never appear while a user scrolls through the list.",
        needs=Capability.LIST_CURSOR | Capability.SESSIONS | Capability.TITLES | Capability.TIMESTAMPS,
    )
    async def test_the_list_cursor_while_others_change(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await together(memory.create_session(str(number)) for number in range(LISTED * 2))
        rows = await memory.get_sessions(None)
        newest = rows[0]["updated_at"]

        async def is_later() -> bool:
            return (await memory.get_sessions(1))[0]["updated_at"] > newest

        # From here on, changed sessions have a later time than each one that does not change.
        assert await bumped(memory.create_session, is_later)
        # A page ends with a session that is renamed, deleted or left as it is, before the next one is read.
        changed = {row["id"]: ("rename", "delete", "add")[at // 2 % 3] for at, row in enumerate(rows) if at % 2}
        seen: list[str] = []
        page = await memory.get_sessions(2, before={**rows[0], "id": "", "updated_at": _later(newest)})
        while page:
            assert len(seen) <= len(rows), "the pages repeat sessions"
            seen += [row["id"] for row in page]
            mark = page[-1]
            for row in rows:
                how = changed.get(row["id"])
                if row["id"] == mark["id"] and how == "rename":
                    await memory.update_session_title(row["id"], "renamed")
                elif row["id"] == mark["id"] and how == "delete":
                    await memory.delete_session(row["id"])
                elif row["id"] == mark["id"] and how == "add":
                    await add_numbered(memory, row["id"], range(1))
            await memory.create_session("new")
            page = await memory.get_sessions(2, before=mark)
        still = [row["id"] for row in rows if row["id"] not in changed]
        assert [one for one in seen if one in still] == still
        assert len(set(seen)) == len(seen), "a session is on two pages"

    @clause(
        "FM-LST-033",
        promise="`before` takes a record that a list or `get_session` returned, with or without metadata; anything "
        "else is rejected.",
        impact="A page number instead of a record returns the first page, forever.",
        needs=Capability.LIST_CURSOR | Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_wrong_list_cursors(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for _ in range(3):
            await memory.create_session()
        rows = await memory.get_sessions()
        looked_up = await memory.get_session(rows[0]["id"])
        (bare,) = await memory.get_sessions(1, with_metadata=False)
        for mark in (rows[0], looked_up, bare, {"id": rows[0]["id"], "updated_at": rows[0]["updated_at"]}):
            given: Any = mark
            assert await memory.get_sessions(before=given) == rows[1:]
        for value in ("text", rows[0]["id"], 1, True, [], [rows[0]], (rows[0]["updated_at"], rows[0]["id"]), object()):
            wrong: Any = value
            with pytest.raises(InvalidInputError, match="before") as caught:
                await memory.get_sessions(before=wrong)
            assert isinstance(caught.value, TypeError), f"{wrong!r} raised {caught.value!r}"
        records: tuple[Any, ...] = (
            {},
            {"id": rows[0]["id"]},
            {"updated_at": rows[0]["updated_at"]},
            {**rows[0], "updated_at": "yesterday"},
            {**rows[0], "updated_at": ""},
            {**rows[0], "updated_at": None},
            {**rows[0], "id": None},
            {**rows[0], "id": 7},
        )
        for record in records:
            with pytest.raises(InvalidInputError, match="before"):
                await memory.get_sessions(before=record)

    @clause(
        "FM-LST-034",
        promise="With `with_metadata=False`, a list has the same records with `{}` as their metadata, for any filter "
        "and page; a value that is not a `bool` is rejected.",
        impact="The short list of conversations has another order or other titles than the long one.",
        needs=Capability.LIST_CURSOR
        | Capability.TIMESTAMPS
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER
        | Capability.USER_SCOPE
        | Capability.TITLES,
    )
    async def test_lists_without_metadata(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await _fill(memory)

        async def check(given: dict[str, Any]) -> None:
            rows = await memory.get_sessions(None, **given)
            bare: list[Any] = [{**row, "metadata": {}} for row in rows]
            assert await memory.get_sessions(None, with_metadata=True, **given) == rows
            assert await memory.get_sessions(None, with_metadata=False, **given) == bare, f"with {given}"
            assert await memory.get_sessions(2, 1, with_metadata=False, **given) == bare[1:3], f"with {given}"
            if rows:
                assert await memory.get_sessions(before=bare[0], with_metadata=False, **given) == bare[1:]

        await together(map(check, FILTERS))
        for value in NOT_FLAGS:
            with pytest.raises(InvalidInputError, match="with_metadata") as caught:
                await memory.get_sessions(with_metadata=value)
            assert isinstance(caught.value, TypeError), f"{value!r} raised {caught.value!r}"

    @clause(
        "FM-LST-035",
        promise="`count_sessions` returns the length of the list with the same filters.",
        impact="A user's page shows the number of all users' conversations.",
        needs=Capability.COUNT_FILTER
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER
        | Capability.USER_SCOPE
        | Capability.TITLES,
    )
    async def test_counts_are_lengths_of_lists(self, store: StoreUnderTest) -> None:
        memory = store.open()

        async def check(given: dict[str, Any]) -> None:
            listed = len(await memory.get_sessions(None, **given))
            assert await memory.count_sessions(**given) == listed, f"with {given}"

        await together(map(check, FILTERS))
        await _fill(memory)
        await together(map(check, FILTERS))
        doomed = (await memory.get_sessions(1, user_id="ann"))[0]["id"]
        counted = await memory.count_sessions(user_id="ann")
        await add_numbered(memory, doomed, range(2))
        assert await memory.count_sessions(user_id="ann") == counted
        await memory.delete_session(doomed)
        assert await memory.count_sessions(user_id="ann") == counted - 1

    @clause(
        "FM-LST-036",
        promise="`count_sessions` takes the filters that `get_sessions` takes: unknown users count 0, also those who "
        "look like another, and invalid or too large filters are rejected.",
        impact="A filter with a mistake counts every conversation of the store.",
        needs=Capability.COUNT_FILTER
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER
        | Capability.USER_SCOPE,
    )
    async def test_wrong_filters_of_counts(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await memory.create_session(metadata={"k": 1}, user_id="ann")
        for key in (*NOWHERE, "ann ", " ann", "Ann", "a_n", "an%", "an", "\u00e5nn"):
            assert await memory.count_sessions(user_id=key) == 0, f"a session of {key!r:.50} is counted"
        for wrong in NOT_TEXTS:
            with pytest.raises(InvalidInputError, match="user_id") as caught:
                await memory.count_sessions(user_id=wrong)
            assert isinstance(caught.value, TypeError), f"{wrong!r} raised {caught.value!r}"
        for wrong in NOT_OBJECTS:
            with pytest.raises(InvalidInputError, match="metadata") as caught:
                await memory.count_sessions(metadata=wrong)
            assert isinstance(caught.value, TypeError), f"{wrong!r} raised {caught.value!r}"
        for large in (*TOO_LARGE_FILTERS.values(), {"k": float("nan")}, {"k": "\x00"}):
            with pytest.raises(InvalidInputError, match="metadata"):
                await memory.count_sessions(metadata=large)


async def _fill(memory: Memory) -> None:
    cases: list[dict[str, Any]] = [
        *({"k": 1}, {"k": 1.0, "more": True}, {"k": "1"}, {"k": 2}, {"tags": ["a", "b", "c"]}, {"tags": ["b"]}),
        *({"deep": {"k": None, "l": 1}}, {"deep": {"k": 0}}, {}, {"none": None}),
        *list(METADATA.values())[:6],
    ]
    users = ("ann", "bob", "", "Ann", "an", "annie")
    await together(
        memory.create_session(f"title {at}", metadata, user_id=users[(at + shift) % len(users)])
        for shift in (0, 1)
        for at, metadata in enumerate(cases)
    )


async def _pages(memory: Memory, size: int) -> list[Session]:
    rows = page = await memory.get_sessions(size)
    while page:
        page = await memory.get_sessions(size, before=page[-1])
        assert not [row for row in page if row in rows], "a page repeats sessions of an earlier page"
        rows = rows + page
    return rows


def _later(moment: str) -> str:
    """Return a time just after this one, in the form of the records."""
    return (datetime.fromisoformat(moment) + timedelta(microseconds=1)).isoformat(timespec="microseconds")
