"""Clauses on amounts: thousands of sessions and messages, which a store must not cap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final

import pytest

from flux_memory import ConflictError, Memory, NewMessage, Session
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle, contents

MANY_SESSIONS: Final = 1_100
"""More sessions than fit a page, a scan or a cache of a store."""
VERY_MANY_SESSIONS: Final = 10_001
"""More sessions than the largest usual cap."""
AT_ONCE: Final = 100
"""Calls that run concurrently."""
MORE_HANDLES: Final = 9
"""Handles that help to create sessions on a store that does one call of a handle after the other."""

MANY_MESSAGES: Final = 10_001
"""More messages than the largest usual cap."""
MOST_MESSAGES: Final = 70_001
"""More messages than two bytes can count."""
WITHOUT_BATCHES: Final = 1_101
"""Messages on a store without batches, in the fast profile."""
BATCH: Final = 1_500
"""Messages of a batch: more than the usual caps on the rows or the parameters of a statement."""
PAGE: Final = 1_000
"""Messages of a page of history."""


class AmountsContract(Binding):
    """The promises for any amount of data."""

    @clause(
        "FM-LIM-010",
        promise="However many sessions a store has, each one is counted, listed, filtered and found, and `clear_all` "
        "removes all of them.",
        impact="Once there are many conversations, old ones cannot be found any more, or survive their deletion.",
        needs=Capability.SESSIONS,
    )
    async def test_many_sessions(self, store: StoreUnderTest) -> None:
        await _check_sessions(store, MANY_SESSIONS)

    @clause(
        "FM-AMT-001",
        promise="10,001 sessions are counted, listed, filtered, found and cleared like ten, through any handle.",
        impact="A store that grows beyond its cap loses the oldest conversations from every list.",
        needs=Capability.SESSIONS,
        thorough=True,
    )
    async def test_very_many_sessions(self, store: StoreUnderTest) -> None:
        await _check_sessions(store, VERY_MANY_SESSIONS)

    @clause(
        "FM-LIM-011",
        promise="However long a conversation is, `message_count` is exact, `before` reaches its first message, a retry "
        "is recognised, and deleting it removes all of it.",
        impact="Old messages of a long conversation are out of reach, stored twice or left behind.",
        needs=Capability.SESSIONS,
    )
    async def test_a_long_conversation(self, store: StoreUnderTest) -> None:
        await _check_conversation(store, MANY_MESSAGES)

    @clause(
        "FM-AMT-002",
        promise="A batch of any length, up to 10,001 messages, is stored as a whole or not at all; its retry stores "
        "nothing.",
        impact="An import that is retried doubles a conversation, and one that fails leaves a part of it behind.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
    )
    async def test_large_batches(self, store: StoreUnderTest) -> None:
        memory = store.open()
        reader = another_handle(store, memory)
        for size in (BATCH, MANY_MESSAGES):
            stored = size
            session = await memory.create_session()
            batch = _named(range(size))
            ids = [str(row.get("message_id")) for row in batch]
            same = await memory.add_messages(session, batch) == ids
            assert same, f"the batch of {size} messages returned other ids"
            await _check_contents(reader, session, size)
            if size == BATCH or store.includes(f"the retry of a batch of {size:,} messages"):
                same = await memory.add_messages(session, batch) == ids
                assert same, f"the retry of {size} messages returned other ids"
                await _check_contents(reader, session, size)
                more = _named(range(size // 2, size + 1))
                same = await reader.add_messages(session, more) == [*ids[size // 2 :], str(size)]
                assert same, f"a batch with {size - size // 2} stored messages returned other ids"
                stored += 1
                await _check_contents(reader, session, stored)
            fresh: list[NewMessage] = [{**row, "message_id": f"new {row['content']}"} for row in batch]
            with pytest.raises(ConflictError):
                await memory.add_messages(session, [*fresh, {"role": "user", "content": "other", "message_id": ids[0]}])
            await _check_contents(reader, session, stored)

    @clause(
        "FM-AMT-008",
        promise="A conversation of 70,001 messages is counted, paged and deleted like a short one.",
        impact="A conversation that never ends, such as a channel's, breaks after years.",
        needs=Capability.SESSIONS,
        thorough=True,
    )
    async def test_the_longest_conversation(self, store: StoreUnderTest) -> None:
        await _check_conversation(store, MOST_MESSAGES)

    @clause(
        "FM-AMT-010",
        promise="A conversation of 10,001 messages is copied, followed, popped and truncated like a short one.",
        impact="The copy of a conversation that was kept for years ends after some thousand messages.",
        needs=Capability.FORK
        | Capability.TRUNCATE
        | Capability.POP
        | Capability.FORWARD_CURSOR
        | Capability.BATCH
        | Capability.SESSIONS
        | Capability.MESSAGE_IDS,
        thorough=True,
    )
    async def test_changes_of_a_long_conversation(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, ids = await memory.create_session(), list[str]()
        for start in range(0, MANY_MESSAGES, BATCH):
            ids += await memory.add_messages(session, numbered(*range(start, min(start + BATCH, MANY_MESSAGES))))
        fork = await memory.fork_session(session)
        cut = await memory.fork_session(session, through=ids[MANY_MESSAGES // 2])
        popped = await memory.pop_message(session)
        assert popped is not None
        assert popped["id"] == ids[-1]
        await memory.update_session(session, truncate_from=ids[1])
        for one, stop in ((fork, MANY_MESSAGES), (cut, MANY_MESSAGES // 2 + 1), (session, 1)):
            found = [row["id"] for row in await memory.get_history(one)]
            # Compared outside the assert: pytest would spend minutes on showing the difference.
            same = found == ids[:stop]
            assert same, f"{len(found)} of {stop} messages"
            record = await memory.get_session(one)
            assert record is not None
            assert record["message_count"] == stop
        followed = len(await memory.get_history(fork, after=ids[0]))
        assert followed == MANY_MESSAGES - 1, f"{followed} messages follow the first one"


async def _check_sessions(store: StoreUnderTest, count: int) -> None:
    """Check everything that sees many sessions."""
    memory = store.open()
    options: dict[Capability, dict[str, Any]] = {
        Capability.USER_SCOPE: {"user_id": "ann"},
        Capability.METADATA_FILTER | Capability.SESSION_METADATA: {"metadata": {"k": 1}},
    }
    claimed = [option for needed, option in options.items() if needed in store.capabilities]
    given = {name: value for option in claimed for name, value in option.items()}
    ids = await _create_sessions(store, memory, count, given)
    await memory.add_message(ids[0], "user", "text")
    reader = another_handle(store, memory)
    everything = await reader.get_sessions(None)
    assert len(everything) == count
    assert {row["id"] for row in everything} == set(ids)
    assert await reader.count_sessions() == count
    # Filters are slow on some stores; each on its own is checked with fewer sessions.
    for filters in ({}, *(claimed if count == MANY_SESSIONS else ()), given):
        for limit, offset in ((None, 0), (None, count - 9), (5, count - 9), (30, 90)):
            await _check_page(reader, everything, limit, offset, filters)
    for offset in range(0, count, PAGE):
        await _check_page(reader, everything, PAGE, offset, {})
    await _check_page(reader, everything, count - 1, 0, {})
    for row in (everything[0], everything[count // 2], everything[-1]):
        assert await reader.get_session(row["id"]) == row
    if Capability.CLEAR_ALL in store.capabilities:
        await memory.clear_all()
        for handle in (memory, reader):
            assert await handle.get_sessions(None) == []
            assert await handle.count_sessions() == 0
            assert [await handle.get_session(row["id"]) for row in (everything[0], everything[-1])] == [None, None]
            assert await handle.get_history(ids[0]) == []


async def _check_page(
    memory: Memory, everything: list[Session], limit: int | None, offset: int, filters: dict[str, Any]
) -> None:
    page = everything[offset:] if limit is None else everything[offset : offset + limit]
    rows = await memory.get_sessions(limit, offset, **filters)
    # Compared outside the assert: pytest would spend minutes on showing the difference.
    same = rows == page
    assert same, f"{len(rows)} rows, not the {len(page)} expected, for {limit=}, {offset=}, {filters=}"


async def _create_sessions(store: StoreUnderTest, memory: Memory, count: int, given: dict[str, Any]) -> list[str]:
    """Create sessions concurrently, on a slow store through more handles."""
    handles, ids, began = [memory], list[str](), time.monotonic()
    while len(ids) < count:
        turns = range(min(AT_ONCE, count - len(ids)))
        ids += await asyncio.gather(*(handles[turn % len(handles)].create_session(**given) for turn in turns))
        passed = time.monotonic() - began
        if len(handles) == 1 and passed > 1 and Capability.SEVERAL_HANDLES in store.capabilities:
            handles += [store.open() for _ in range(MORE_HANDLES)]
    return ids


async def _check_conversation(store: StoreUnderTest, most: int) -> None:
    """Check everything that sees many messages of one session."""
    memory = store.open()
    named: dict[str, Any] = {"session_id": "long"} if Capability.SESSION_IDS in store.capabilities else {}
    retried: dict[str, Any] = {"message_id": "first"} if Capability.IDEMPOTENT_IDS in store.capabilities else {}
    session = await memory.create_session(**named)
    ids = {"0": await memory.add_message(session, "user", "0", **retried)}
    ids |= await _add_numbers(store, memory, session, most)
    if retried:
        assert await memory.add_message(session, "user", "0", **retried) == ids["0"]
        with pytest.raises(ConflictError):
            await memory.add_message(session, "user", "another", **retried)
    reader = another_handle(store, memory)
    found = await reader.get_session(session)
    assert found is not None
    assert found["message_count"] == len(ids)
    assert await reader.get_sessions() == [found]
    history = await reader.get_history(session)
    texts = contents(history)
    same = (texts if Capability.BATCH in store.capabilities else sorted(texts, key=int)) == list(ids)
    assert same, f"{len(texts)} messages, not 0 to {len(ids) - 1} in their order"
    for limit in (1, PAGE, len(ids) - 1):
        same = await reader.get_history(session, limit) == history[-limit:]
        assert same, f"{limit=}: not the newest messages"
    if Capability.CURSOR | Capability.MESSAGE_IDS in store.capabilities:
        same = [row["id"] for row in history] == [ids[text] for text in texts]
        assert same, "the history has other ids than were returned"
        for at in (*range(1, len(ids), PAGE), 5, len(ids) - 1):
            page = await reader.get_history(session, PAGE, before=history[at]["id"])
            same = page == history[max(at - PAGE, 0) : at]
            assert same, f"{len(page)} messages before message {at}, and not those expected"
    await memory.delete_session(session)
    assert await reader.get_history(session) == []
    if named:
        await memory.create_session(**named)
        assert await reader.get_history(session) == []
        found = await reader.get_session(session)
        assert found is not None
        assert found["message_count"] == 0


async def _add_numbers(store: StoreUnderTest, memory: Memory, session: str, most: int) -> dict[str, str]:
    """Add messages with the numbers from 1 on; return their ids by their contents."""
    ids: dict[str, str] = {}
    batched = Capability.BATCH in store.capabilities
    if not batched and not store.includes(f"a conversation of {most:,} messages"):
        most = WITHOUT_BATCHES
    step = BATCH if batched else AT_ONCE
    for start in range(1, most, step):
        texts = [str(number) for number in range(start, min(start + step, most))]
        if batched:
            made = await memory.add_messages(session, [{"role": "user", "content": text} for text in texts])
        else:
            made = await asyncio.gather(*(memory.add_message(session, "user", text) for text in texts))
        ids |= zip(texts, made, strict=True)
    return ids


def _named(numbers: Iterable[int]) -> list[NewMessage]:
    return [{"role": "user", "content": str(number), "message_id": str(number)} for number in numbers]


async def _check_contents(memory: Memory, session: str, count: int) -> None:
    found = contents(await memory.get_history(session))
    same = found == [str(number) for number in range(count)]
    assert same, f"{len(found)} messages, not 0 to {count - 1} in their order"
