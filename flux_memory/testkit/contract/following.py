"""Clauses on `after`: reading a history forwards, page by page, while it grows."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import product, starmap
from typing import Any, Final

import pytest

from flux_memory import InvalidInputError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import NOT_TEXTS, VARIED_MESSAGES, same
from flux_memory.testkit.contract.limits import NOWHERE
from flux_memory.testkit.contract.order import HUGE_COUNTS, NEGATIVE_COUNTS
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import (
    MANY,
    StoreUnderTest,
    add_many,
    add_numbered,
    another_handle,
    contents,
)

WRITERS: Final = 3
WRITTEN: Final = 12
"""Messages of each of them."""
ROUNDS: Final = 9
"""Messages of each of the sessions that are written in turn."""


class FollowingContract(Binding):
    """The promises of the forward cursor of `get_history`."""

    @clause(
        "FM-ORD-030",
        promise="`after` pages forwards through the whole history, with no gap and no repeat: `limit` selects the "
        "oldest messages that follow.",
        impact="A client that catches up skips messages or shows them twice.",
        needs=Capability.FORWARD_CURSOR | Capability.MESSAGE_IDS,
    )
    async def test_after_pages_forwards(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = await add_numbered(memory, session, range(11))
        for pages in await together(_follow(memory, session, ids[0], size) for size in (1, 3, 10, 11)):
            assert pages == ids[1:]
        assert contents(await memory.get_history(session, after=ids[6])) == ["7", "8", "9", "10"]
        assert contents(await memory.get_history(session, 2, after=ids[6])) == ["7", "8"]
        assert await memory.get_history(session, after=ids[-1]) == []
        assert await memory.get_history(session, 5, after=ids[-1]) == []

    @clause(
        "FM-ORD-031",
        promise="With `after`, `limit=0` returns nothing; `None`, and any number above the count, returns all that "
        "follows; a negative one is rejected.",
        impact="A client that catches up after a long time gets the first part only.",
        needs=Capability.FORWARD_CURSOR | Capability.MESSAGE_IDS,
    )
    async def test_limits_after_a_message(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = await add_numbered(memory, session, range(4))
        assert await memory.get_history(session, 0, after=ids[0]) == []
        for limit in (None, *HUGE_COUNTS):
            assert contents(await memory.get_history(session, limit, after=ids[0])) == ["1", "2", "3"], limit
        for wrong in NEGATIVE_COUNTS:
            with pytest.raises(InvalidInputError, match="limit"):
                await memory.get_history(session, wrong, after=ids[0])
        ids += await add_many(store, memory, session, 4)
        assert [row["id"] for row in await memory.get_history(session, after=ids[0])] == ids[1:]
        assert [row["id"] for row in await memory.get_history(session, MANY * 2, after=ids[3])] == ids[4:]
        assert [row["id"] for row in await memory.get_history(session, 999, after=ids[0])] == ids[1:1000]

    @clause(
        "FM-ORD-032",
        promise="A reader that follows with `after` sees each message of concurrent writers once, in the order of the "
        "history.",
        impact="A live view of a conversation never shows a message that was written at the same time as another.",
        needs=Capability.FORWARD_CURSOR | Capability.MESSAGE_IDS,
    )
    async def test_following_concurrent_writers(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        session = await memory.create_session()
        (first,) = await add_numbered(memory, session, range(1))
        writing = 0

        async def write(writer: int) -> None:
            nonlocal writing
            writing += 1
            handle = (memory, other)[writer % 2]
            for number in range(WRITTEN // 2):
                await handle.add_message(session, "user", f"{writer} {number}")
                # Lets the reader in, also on a store that answers at once.
                await asyncio.sleep(0)
            if Capability.BATCH in store.capabilities:
                await handle.add_messages(session, numbered(*range(WRITTEN // 2)))
            writing -= 1

        async def follow(size: int | None) -> list[str]:
            seen = [first]
            while True:
                await asyncio.sleep(0)
                last = not writing
                page = await memory.get_history(session, size, after=seen[-1])
                seen += [row["id"] for row in page]
                if last and not page:
                    return seen
                assert len(seen) <= WRITERS * WRITTEN + 1, "the pages repeat messages"

        _, *views = await asyncio.gather(asyncio.gather(*map(write, range(WRITERS))), *map(follow, (1, 4, None)))
        ids = [row["id"] for row in await memory.get_history(session)]
        for seen in views:
            assert seen == ids

    @clause(
        "FM-ORD-033",
        promise="Pages after a message do not depend on equal times or a clock that is set back, nor on other sessions "
        "with messages of the same ids.",
        impact="A client that catches up misses messages of the same batch, or gets them forever.",
        needs=Capability.FORWARD_CURSOR | Capability.BATCH | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
    )
    async def test_after_with_ties_and_neighbours(self, store: StoreUnderTest) -> None:
        memory = store.open()
        sessions = await together(memory.create_session() for _ in range(3))

        def named(at: int, number: int) -> str:
            return str((number * (at + 1) + at) % ROUNDS if at < 2 else ROUNDS - number)

        async with store.clock_at(datetime.now(UTC) + timedelta(hours=1)):
            for number in range(ROUNDS // 3):
                await together(
                    memory.add_message(session, "user", f"{at} {number}", message_id=named(at, number))
                    for at, session in enumerate(sessions)
                )
        for at, session in enumerate(sessions):
            numbers = range(ROUNDS // 3, ROUNDS)
            batch: list[Any] = [
                {"role": "user", "content": f"{at} {number}", "message_id": named(at, number)} for number in numbers
            ]
            await memory.add_messages(session, batch)

        async def check(at: int, size: int | None, number: int) -> None:
            page = await memory.get_history(sessions[at], size, after=named(at, number))
            expected = [f"{at} {later}" for later in range(number + 1, ROUNDS)][:size]
            assert contents(page) == expected, f"{size} after message {number} of session {at}"

        await together(starmap(check, product(range(len(sessions)), (1, 4, None), range(ROUNDS))))

    @clause(
        "FM-ORD-034",
        promise="`after` with an id that is not in the session (of another session, of a removed message, or not "
        "valid) returns nothing; with an id that is not a `str`, or beside `before`, it is rejected.",
        impact="A client with a stale cursor gets the whole conversation again, forever.",
        needs=Capability.FORWARD_CURSOR | Capability.CURSOR | Capability.MESSAGE_IDS,
    )
    async def test_after_an_unknown_message(self, store: StoreUnderTest) -> None:
        memory = store.open()
        mine, other = await memory.create_session(), await memory.create_session()
        # Earlier than all of `mine`, in its session and in the store.
        foreign = (await add_numbered(memory, other, range(2)))[0]
        ids = await add_numbered(memory, mine, range(3))
        for key in (foreign, *NOWHERE, "x" * (store.max_id_length + 1)):
            for limit in (None, 2):
                assert await memory.get_history(mine, limit, after=key) == [], f"after {key!r:.50}"
        for key in NOWHERE:
            assert await memory.get_history(key, after=ids[0]) == []
        for wrong in NOT_TEXTS:
            with pytest.raises(InvalidInputError, match="after") as caught:
                await memory.get_history(mine, after=wrong)
            assert isinstance(caught.value, TypeError), f"{wrong!r} raised {caught.value!r}"
        for before, after in ((ids[2], ids[0]), (ids[0], ids[0]), ("unknown", ids[0]), (ids[2], "unknown")):
            with pytest.raises(InvalidInputError, match="after"):
                await memory.get_history(mine, before=before, after=after)
        if Capability.POP in store.capabilities:
            await memory.pop_message(mine)
            assert await memory.get_history(mine, after=ids[2]) == []
            assert await memory.get_history(mine, before=ids[2]) == []
            await add_numbered(memory, mine, range(3, 5))
            assert await memory.get_history(mine, after=ids[2]) == []
            assert contents(await memory.get_history(mine, after=ids[1])) == ["3", "4"]

    @clause(
        "FM-ORD-035",
        promise="A message is the same record in pages after a message as in the whole history.",
        impact="A client that catches up gets messages without their metadata.",
        needs=Capability.FORWARD_CURSOR | Capability.BATCH | Capability.MESSAGE_IDS | Capability.MESSAGE_METADATA,
    )
    async def test_records_after_a_message(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_messages(session, VARIED_MESSAGES)
        rows = await memory.get_history(session)
        for size in (None, 5):
            for at, row in enumerate(rows):
                assert same(await memory.get_history(session, size, after=row["id"]), rows[at + 1 :][:size])


async def _follow(memory: Memory, session: str, after: str, size: int) -> list[str]:
    pages: list[str] = []
    while page := await memory.get_history(session, size, after=after):
        assert page[-1]["id"] not in {after, *pages}, "the page after a message ends with a message of an earlier page"
        pages += [row["id"] for row in page]
        after = pages[-1]
    return pages
