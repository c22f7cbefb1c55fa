"""Clauses on pages: of a history beside other sessions, of any number of messages, and of filtered lists."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from flux_memory import Memory, Session
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import VARIED_MESSAGES, same
from flux_memory.testkit.contract.lookalikes import TYPED_TEXTS
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, contents

ROUNDS: Final = 9
"""Messages of each of the sessions that are written in turn."""
COUNTS: Final = (49, 50, 51, 99, 100, 101, 999, 1_000, 1_001)
"""Numbers of messages around the sizes of pages, chunks and requests of stores."""
_COUNTS_ONE_BY_ONE: Final = (49, 50, 51)

PAGES: Final[tuple[dict[str, Any], ...]] = (
    *({}, {"offset": 3}, {"offset": 50}, {"limit": 0}, {"limit": 1, "offset": 50}, {"limit": 49}, {"limit": 50}),
    *({"limit": 51}, {"limit": 51, "offset": 1}, {"limit": 50, "offset": 4}, {"limit": None}),
    *({"limit": None, "offset": 3}, {"limit": None, "offset": 51}, {"limit": 10, "offset": 10}),
    *({"limit": 2**63}, {"limit": 2**63 - 1, "offset": 2}, {"limit": 50, "offset": 2**64}),
)
"""Arguments of `get_sessions` around its default limit."""


class PagesContract(Binding):
    """The promises of pages, in a store that holds other sessions and messages."""

    @clause(
        "FM-ORD-014",
        promise="The pages of a history do not depend on other sessions: on messages added to them in between, nor on "
        "equal message ids in them.",
        impact="In a busy store, pages of a conversation are too short or begin in the wrong place.",
        needs=Capability.MESSAGE_IDS | Capability.CURSOR,
    )
    async def test_pages_beside_other_sessions(self, store: StoreUnderTest) -> None:
        memory = store.open()
        sessions = [await memory.create_session() for _ in range(3)]

        async def add(at: int, number: int) -> None:
            # The same ids in each session, in different places.
            name = str((number * (at + 1) + at) % ROUNDS if at < 2 else ROUNDS - number)
            named: dict[str, Any] = {"message_id": name} if Capability.IDEMPOTENT_IDS in store.capabilities else {}
            await memory.add_message(sessions[at], "user", f"{at} {number}", **named)

        for number in range(ROUNDS):
            await together(add(at, number) for at in range(len(sessions)))
        for at, session in enumerate(sessions):
            said = [f"{at} {number}" for number in range(ROUNDS)]
            ids = [row["id"] for row in await memory.get_history(session)]
            for size in (1, 4, ROUNDS):
                newest = await memory.get_history(session, size)
                assert contents(newest) == said[-size:], f"the newest {size}"
                pages = await asyncio.gather(*(memory.get_history(session, size, before=one) for one in ids))
                for end, page in enumerate(pages):
                    assert contents(page) == said[max(end - size, 0) : end], f"{size} before message {end}"

    @clause(
        "FM-ORD-015",
        promise="A message is the same record in every page: with any limit, before any message and in each read.",
        impact="Scrolling back shows other texts, metadata or times than the first page did.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.MESSAGE_METADATA | Capability.CURSOR,
    )
    async def test_a_message_is_the_same_in_every_page(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_messages(session, VARIED_MESSAGES)
        rows = await memory.get_history(session)
        ids = [row["id"] for row in rows]
        assert [row["content"] for row in rows] == [message["content"] for message in VARIED_MESSAGES]
        for size in (1, 5):
            assert same(await memory.get_history(session, size), rows[-size:])
            pages = await asyncio.gather(*(memory.get_history(session, size, before=one) for one in ids))
            for end, page in enumerate(pages):
                assert same(page, rows[max(end - size, 0) : end]), f"another record among {size} before message {end}"
        assert same(await memory.get_history(session, before=ids[-1]), rows[:-1])

    @clause(
        "FM-LIM-013",
        promise="No number of messages is special: batches, histories and limits of 49 to 51, 99 to 101 and 999 to "
        "1,001 are complete.",
        impact="A conversation loses a message, or shows one twice, when it fills a page exactly.",
    )
    async def test_no_count_is_special(self, store: StoreUnderTest) -> None:
        memory = store.open()

        async def read_all(count: int) -> None:
            session = await memory.create_session()
            numbers = [str(number) for number in range(count)]
            if Capability.BATCH in store.capabilities:
                ids = await memory.add_messages(session, [{"role": "user", "content": number} for number in numbers])
            else:
                ids = await add_numbered(memory, session, range(count))
            assert len(ids) == count
            for limit in (None, count - 1, count, count + 1):
                said = contents(await memory.get_history(session, limit))
                expected = numbers if limit is None else numbers[-limit:]
                assert len(said) == len(expected), f"{len(said)} of {count} messages for {limit=}"
                assert said == expected, f"the wrong messages of {count} for {limit=}"
            if Capability.MESSAGE_IDS | Capability.CURSOR in store.capabilities:
                page = await memory.get_history(session, count - 1, before=ids[-1])
                assert len(page) == count - 1, f"{len(page)} of {count} messages before the last one"

        await together(
            read_all(count) for count in (COUNTS if Capability.BATCH in store.capabilities else _COUNTS_ONE_BY_ONE)
        )

    @clause(
        "FM-LST-014",
        promise="A filtered list is the whole list without the other sessions: the same records in the same order, "
        "with the same default limit, for any `limit` and `offset`.",
        impact="A user's own list shows other titles, another order or another number of rows than the full list.",
        needs=Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER
        | Capability.USER_SCOPE
        | Capability.TITLES,
    )
    async def test_filtered_lists_are_parts_of_the_whole(self, store: StoreUnderTest) -> None:
        memory = store.open()
        others = [("ann", {}), ("ann", {"k": [2]}), ("bob", {"k": [1]}), ("", {"k": [1]})]
        kinds: list[tuple[str, dict[str, Any]]] = [("ann", {"k": [1]})] * 53
        for at, other in enumerate(others):
            kinds.insert(at * 13 + 2, other)
        sessions = await asyncio.gather(
            *(
                memory.create_session(TYPED_TEXTS[at % len(TYPED_TEXTS)], metadata, user_id=user)
                for at, (user, metadata) in enumerate(kinds)
            )
        )
        await memory.add_message(sessions[40], "user", "text")
        await memory.update_session_title(sessions[7], "renamed")
        await memory.add_message(sessions[-2], "user", "text")
        await memory.add_message(sessions[20], "user", "text")
        if Capability.BATCH in store.capabilities:
            await memory.add_messages(sessions[30], [{"role": "user", "content": "text"} for _ in range(2)])
        everything = await memory.get_sessions(None)
        assert len(everything) == len(kinds)
        filters: list[dict[str, Any]] = [
            *({}, {"user_id": "ann"}, {"metadata": {"k": [1]}}, {"user_id": "ann", "metadata": {"k": [1]}}),
            {"user_id": "", "metadata": {"k": [1]}},
        ]
        for given in filters:
            expected = [row for row in everything if _matches(row, **given)]
            pages = await asyncio.gather(*(memory.get_sessions(**page, **given) for page in PAGES))
            for page, rows in zip(PAGES, pages, strict=True):
                assert rows == _cut(expected, **page), f"get_sessions with {given} and {page}"
        await _agrees_with_look_ups(memory, everything[:5])


def _matches(row: Session, user_id: str | None = None, metadata: Any = None) -> bool:
    return user_id in {None, row["user_id"]} and (metadata is None or row["metadata"] == metadata)


def _cut(rows: list[Session], limit: int | None = 50, offset: int = 0) -> list[Session]:
    return rows[offset:] if limit is None else rows[offset : offset + limit]


async def _agrees_with_look_ups(memory: Memory, rows: list[Session]) -> None:
    found = await asyncio.gather(*(memory.get_session(row["id"]) for row in rows))
    assert list(found) == rows
