"""Clauses on the order of a conversation and the pages of its history."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from flux_memory import ConflictError, InvalidInputError, Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import (
    MANY,
    StoreUnderTest,
    add_many,
    add_numbered,
    contents,
    gather_outcomes,
)
from flux_memory.testkit.verdicts import unverified

NOT_COUNTS: Final[tuple[Any, ...]] = (True, False, 1.0, 0.0, "1", b"1", [1], (), {}, object())
"""Values that are not an `int`."""
HUGE_COUNTS: Final = (3, 2**31, 2**63 - 1, 2**63, 2**64, 10**30)
"""Numbers above any count, some of them beyond 64 bits."""
NEGATIVE_COUNTS: Final = (-1, -(10**30), -(10**5_000))
"""The last one is longer than Python converts to text: building the error message must not fail."""


class OrderContract(Binding):
    """The promises of `get_history`."""

    @clause(
        "FM-ORD-001",
        promise="A history is in the order of the adds, oldest first.",
        impact="Answers come before their questions.",
    )
    async def test_history_is_in_the_order_of_adds(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = await add_numbered(memory, session, range(12))
        history = await memory.get_history(session)
        assert contents(history) == [str(number) for number in range(12)]
        assert [message["id"] for message in history] == ids

    @clause(
        "FM-ORD-002",
        promise="The order does not depend on ids or on equal timestamps.",
        impact="Messages of the same microsecond are shuffled on every read.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
    )
    async def test_ties_keep_their_order(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        async with store.clock_at(datetime.now(UTC) + timedelta(hours=1)):
            for number in range(9, 4, -1):
                await memory.add_message(session, "user", "", message_id=str(number))
            await memory.add_messages(
                session, [{"role": "r", "content": "", "message_id": str(n)} for n in (4, 1, 3, 0, 2)]
            )
        history = await memory.get_history(session)
        assert [message["id"] for message in history] == list("9876541302")
        if len({message["created_at"] for message in history}) > 1:
            unverified(UNSET_CLOCK)

    @clause(
        "FM-ORD-003",
        promise="`limit` selects the newest messages and returns them oldest first.",
        impact="The model is given the start of a long conversation instead of its end.",
    )
    async def test_limit_takes_the_newest(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await add_numbered(memory, session, range(6))
        assert contents(await memory.get_history(session, 2)) == ["4", "5"]
        assert contents(await memory.get_history(session, limit=5)) == ["1", "2", "3", "4", "5"]

    @clause(
        "FM-ORD-004",
        promise="`limit=0` returns nothing; `None`, and any number above the count, even beyond 64 bits, returns all.",
        impact="A limit from a configuration file empties or breaks the history.",
        needs=Capability.MESSAGE_IDS | Capability.CURSOR,
    )
    async def test_limits_at_the_edges(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = await add_numbered(memory, session, range(3))
        assert await memory.get_history(session, 0) == []
        assert await memory.get_history(session, 0, before=ids[2]) == []
        assert contents(await memory.get_history(session, None)) == ["0", "1", "2"]
        for history in await together(memory.get_history(session, limit) for limit in HUGE_COUNTS):
            assert contents(history) == ["0", "1", "2"]
        for history in await together(memory.get_history(session, limit, before=ids[2]) for limit in HUGE_COUNTS):
            assert contents(history) == ["0", "1"]
        ids += await add_many(store, memory, session, 3)
        for most in (None, MANY * 2, 2**63):
            assert contents(await memory.get_history(session, most)) == [str(number) for number in range(len(ids))]
            before = await memory.get_history(session, most, before=ids[-1])
            assert [message["id"] for message in before] == ids[:-1]

    @clause(
        "FM-ORD-005",
        promise="A `limit` that is not an `int` (a `bool` is not) is a type error; a negative one is rejected.",
        impact="`limit=-1` means all messages on one engine and an error on the other.",
    )
    async def test_wrong_limits_are_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()

        async def refuse(limit: Any, *, wrong_type: bool) -> None:
            with pytest.raises(InvalidInputError, match="limit") as caught:
                await memory.get_history(session, limit)
            assert isinstance(caught.value, TypeError) or not wrong_type

        await together(refuse(limit, wrong_type=True) for limit in NOT_COUNTS)
        await together(refuse(limit, wrong_type=False) for limit in NEGATIVE_COUNTS)

    @clause(
        "FM-ORD-006",
        promise="`before` pages back through the whole history, with no gap and no repeat.",
        impact="Scrolling back skips messages or shows them twice.",
        needs=Capability.MESSAGE_IDS | Capability.CURSOR,
    )
    async def test_before_pages_back(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = await add_numbered(memory, session, range(11))
        for pages in await together(_page_back(memory, session, size) for size in (1, 3, 11)):
            assert pages == [str(number) for number in range(11)]
        assert contents(await memory.get_history(session, before=ids[4])) == ["0", "1", "2", "3"]
        assert await memory.get_history(session, before=ids[0]) == []

    @clause(
        "FM-ORD-007",
        promise="Paging back has no gap and no repeat while others append.",
        impact="Scrolling back in a busy conversation skips messages.",
        needs=Capability.MESSAGE_IDS | Capability.CURSOR | Capability.SEVERAL_HANDLES,
    )
    async def test_before_pages_back_while_others_append(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()
        await add_many(store, memory, session, 0, 20)
        seen: list[str] = []
        page = await memory.get_history(session, 3)
        for number in range(20, 40):  # seven pages are expected
            if not page:
                break
            seen = contents(page) + seen
            # Between two reads, and during one.
            reading = asyncio.ensure_future(memory.get_history(session, 3, before=page[0]["id"]))
            await asyncio.gather(*(other.add_message(session, "user", str(number)) for _ in range(3)))
            page = await reading
        assert seen == [str(number) for number in range(20)]

    @clause(
        "FM-ORD-008",
        promise="`before` with an id that is not in the session returns nothing, even if another session has that id.",
        impact="A client with a stale cursor starts again at the newest page, forever.",
        needs=Capability.CURSOR,
    )
    async def test_before_an_unknown_message_is_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        mine, other = await memory.create_session(), await memory.create_session()
        await add_numbered(memory, mine, range(3))
        # Later than all of `mine`, in its session and in the store.
        foreign = (await add_numbered(memory, other, range(4)))[-1]
        assert await memory.get_history(mine, before="unknown") == []
        assert await memory.get_history(mine, 2, before=foreign) == []

    @clause(
        "FM-ORD-009",
        promise="The order holds when the clock is set back.",
        impact="After a clock correction, new messages appear in the middle of the conversation.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.CURSOR | Capability.TIMESTAMPS,
    )
    async def test_order_survives_a_clock_set_back(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        async with store.clock_at(tomorrow):
            await add_numbered(memory, session, range(3))
        await add_numbered(memory, session, range(3, 6))
        await memory.add_messages(session, [{"role": "user", "content": "6"}, {"role": "user", "content": "7"}])
        history = await memory.get_history(session)
        assert contents(history) == list("01234567")
        assert contents(await memory.get_history(session, 3)) == ["5", "6", "7"]
        assert contents(await memory.get_history(session, 3, before=history[5]["id"])) == ["2", "3", "4"]
        if history[0]["created_at"] < tomorrow.isoformat(timespec="seconds"):
            unverified(UNSET_CLOCK)

    @clause(
        "FM-ORD-010",
        promise="All readers see concurrent writers' messages in one order, in which each writer's messages keep "
        "theirs.",
        impact="Two readers of one conversation see its messages in different orders.",
        needs=Capability.SEVERAL_HANDLES,
    )
    async def test_concurrent_writers_keep_their_order(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()

        async def write(writer: int) -> None:
            for number in range(8):
                await (memory, other)[writer % 2].add_message(session, f"writer {writer}", str(number))

        await asyncio.gather(*map(write, range(4)))
        history = await memory.get_history(session)
        assert history == await other.get_history(session)
        for writer in range(4):
            own = contents([message for message in history if message["role"] == f"writer {writer}"])
            assert own == [str(number) for number in range(8)]

    @clause(
        "FM-ORD-011",
        promise="An add that finished before another began comes first, through any handles.",
        impact="An answer written by another worker comes before its question.",
        needs=Capability.SEVERAL_HANDLES,
    )
    async def test_two_handles_share_one_order(self, store: StoreUnderTest) -> None:
        handles = [store.open() for _ in range(3)]
        session = await handles[0].create_session()
        for number in range(12):
            await handles[number % 3].add_message(session, "user", str(number))
        for handle in handles:
            assert contents(await handle.get_history(session)) == [str(number) for number in range(12)]

    @clause(
        "FM-ORD-012",
        promise="A failed or rejected add leaves no visible gap and takes no place in the order.",
        impact="Counts and pages disagree with the stored messages.",
        needs=Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.CURSOR | Capability.SESSIONS,
    )
    async def test_failed_adds_leave_no_hole(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        for number in range(4):
            await memory.add_message(session, "user", str(number), message_id=str(number))
            with pytest.raises(ConflictError):
                await memory.add_message(session, "user", "another", message_id=str(number))
            with pytest.raises(InvalidInputError):
                await memory.add_message(session, "user", "\x00")
            with pytest.raises(SessionNotFoundError):
                await memory.add_message("nowhere", "user", "lost")
            await gather_outcomes(
                *(
                    memory.add_messages(
                        session, [{"role": "r", "content": "x"}, {"role": "r", "content": "y", "message_id": "0"}]
                    )
                    for _ in range(3)
                )
            )
        found = await memory.get_session(session)
        assert found is not None
        assert found["message_count"] == 4
        assert contents(await memory.get_history(session)) == ["0", "1", "2", "3"]
        assert await _page_back(memory, session, 1) == ["0", "1", "2", "3"]

    @clause(
        "FM-ORD-013",
        promise="Each session has its own order: its messages never appear in another session's history.",
        impact="One user reads another user's messages.",
    )
    async def test_sessions_do_not_mix(self, store: StoreUnderTest) -> None:
        memory = store.open()
        sessions = [await memory.create_session() for _ in range(3)]
        await together(add_numbered(memory, session, range(at, 9, 3)) for at, session in enumerate(sessions))
        for at, history in enumerate(await together(map(memory.get_history, sessions))):
            assert contents(history) == [str(number) for number in range(at, 9, 3)]


async def _page_back(memory: Memory, session: str, size: int) -> list[str]:
    pages: list[str] = []
    before: str | None = None
    while page := await memory.get_history(session, size, before=before):
        pages = contents(page) + pages
        assert page[0]["id"] != before, "the page before a message begins with that message"
        before = page[0]["id"]
    return pages
