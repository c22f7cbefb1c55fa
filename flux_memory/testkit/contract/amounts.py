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
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle, contents

MANY_SESSIONS: Final = 1_100
"""More sessions than fit a page, a scan or a cache of a store."""
VERY_MANY_SESSIONS: Final = 10_001
"""More sessions than the largest usual cap."""
AT_ONCE: Final = 100
"""Sessions that are created concurrently."""
MORE_HANDLES: Final = 9
"""Handles that help to create sessions on a store that does one call of a handle after the other."""
CREATION_SECONDS: Final = 40.0
"""Longest time for creating `MANY_SESSIONS` in the fast profile; a store that is slower is left to the thorough one."""
VERY_MANY_CREATIONS_SECONDS: Final = 20.0
"""The same for `VERY_MANY_SESSIONS`."""
_PROJECTION_SECONDS: Final = 3.0
"""Time after which the rate of a store is known, in spite of a busy machine."""

MANY_MESSAGES: Final = 10_001
"""More messages than the largest usual cap."""
MOST_MESSAGES: Final = 70_001
"""More messages than two bytes can count."""
ONE_BY_ONE: Final = 1_100
"""Messages on a store without batches, which are added one by one."""
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
        await _check_sessions(store, MANY_SESSIONS, CREATION_SECONDS)

    @clause(
        "FM-AMT-001",
        promise="10,001 sessions are counted, listed, filtered, found and cleared like ten, through any handle.",
        impact="A store that grows beyond its cap loses the oldest conversations from every list.",
        needs=Capability.SESSIONS,
    )
    async def test_very_many_sessions(self, store: StoreUnderTest) -> None:
        await _check_sessions(store, VERY_MANY_SESSIONS, VERY_MANY_CREATIONS_SECONDS)

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
            session = await memory.create_session()
            batch = _numbered(range(size), named=True)
            ids = [str(row["message_id"]) for row in batch]
            for attempt in ("the batch", "its retry"):
                same = await memory.add_messages(session, batch) == ids
                assert same, f"{attempt} of {size} messages returned other ids"
            await _check_contents(reader, session, range(size))
            more = _numbered(range(size // 2, size + 1), named=True)
            same = await reader.add_messages(session, more) == [*ids[size // 2 :], str(size)]
            assert same, f"a batch with {size - size // 2} stored messages returned other ids"
            await _check_contents(reader, session, range(size + 1))
            fresh: list[NewMessage] = [{**row, "message_id": f"new {row['content']}"} for row in batch]
            with pytest.raises(ConflictError):
                await memory.add_messages(session, [*fresh, {"role": "user", "content": "other", "message_id": ids[0]}])
            await _check_contents(reader, session, range(size + 1))

    @clause(
        "FM-AMT-008",
        promise="A conversation of 70,001 messages is counted, paged and deleted like a short one.",
        impact="A conversation that never ends, such as a channel's, breaks after years.",
        needs=Capability.SESSIONS,
        thorough=True,
    )
    async def test_the_longest_conversation(self, store: StoreUnderTest) -> None:
        await _check_conversation(store, MOST_MESSAGES)


async def _check_sessions(store: StoreUnderTest, count: int, seconds: float) -> None:
    """Check everything that sees many sessions."""
    # Its calls are too many to be shown.
    memory = store.open_plain()
    options: dict[Capability, dict[str, Any]] = {
        Capability.USER_SCOPE: {"user_id": "ann"},
        Capability.METADATA_FILTER | Capability.SESSION_METADATA: {"metadata": {"k": 1}},
    }
    claimed = [option for needed, option in options.items() if needed in store.capabilities]
    given = {name: value for option in claimed for name, value in option.items()}
    ids = await _create_sessions(store, memory, count, seconds, given)
    await memory.add_message(ids[0], "user", "text")
    reader = another_handle(store, memory)
    everything = await reader.get_sessions(None)
    assert len(everything) == count
    assert {row["id"] for row in everything} == set(ids)
    assert await reader.count_sessions() == count
    for filters in ({}, *claimed, given):
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


async def _create_sessions(
    store: StoreUnderTest, memory: Memory, count: int, seconds: float, given: dict[str, Any]
) -> list[str]:
    """Create sessions concurrently; leave the clause to the thorough profile if that would take longer than seconds."""
    handles, ids, began = [memory], list[str](), time.monotonic()
    while len(ids) < count:
        turns = range(min(AT_ONCE, count - len(ids)))
        ids += await asyncio.gather(*(handles[turn % len(handles)].create_session(**given) for turn in turns))
        passed = time.monotonic() - began
        if len(handles) == 1 and passed > 1 and Capability.SEVERAL_HANDLES in store.capabilities:
            handles += [store.open_plain() for _ in range(MORE_HANDLES)]
        if passed > _PROJECTION_SECONDS and passed / len(ids) * count > seconds and not store.thorough:
            store.leave_to_thorough(f"the store creates {len(ids) / passed:.0f} sessions a second; it needs {count:,}")
    return ids


async def _check_conversation(store: StoreUnderTest, most: int) -> None:
    """Check everything that sees many messages of one session."""
    memory = store.open()
    named: dict[str, Any] = {"session_id": "long"} if Capability.SESSION_IDS in store.capabilities else {}
    retried: dict[str, Any] = {"message_id": "first"} if Capability.IDEMPOTENT_IDS in store.capabilities else {}
    session = await memory.create_session(**named)
    ids = [await memory.add_message(session, "user", "0", **retried)]
    ids += await _add_numbers(store, memory, session, most)
    if retried:
        assert await memory.add_message(session, "user", "0", **retried) == ids[0]
        with pytest.raises(ConflictError):
            await memory.add_message(session, "user", "another", **retried)
    reader = another_handle(store, memory)
    found = await reader.get_session(session)
    assert found is not None
    assert found["message_count"] == len(ids)
    assert await reader.get_sessions() == [found]
    await _check_contents(reader, session, range(len(ids)))
    for limit in (1, PAGE, len(ids) - 1):
        await _check_contents(reader, session, range(len(ids) - limit, len(ids)), limit)
    if Capability.CURSOR | Capability.MESSAGE_IDS in store.capabilities:
        for at in (*range(1, len(ids), PAGE), 5, len(ids) - 1):
            page = await reader.get_history(session, PAGE, before=ids[at])
            same = [row["id"] for row in page] == ids[max(at - PAGE, 0) : at]
            assert same, f"{len(page)} messages before message {at}, and not those expected"
    await memory.delete_session(session)
    assert await reader.get_history(session) == []
    if named:
        await memory.create_session(**named)
        assert await reader.get_history(session) == []
        found = await reader.get_session(session)
        assert found is not None
        assert found["message_count"] == 0


async def _add_numbers(store: StoreUnderTest, memory: Memory, session: str, most: int) -> list[str]:
    """Add messages with the numbers from 1 on; return their ids."""
    if Capability.BATCH not in store.capabilities:
        # Their order must be known, so they are not added concurrently.
        stop, began, ids = most if store.thorough else ONE_BY_ONE, time.monotonic(), list[str]()
        for number in range(1, stop):
            ids.append(await memory.add_message(session, "user", str(number)))
            passed = time.monotonic() - began
            if passed > _PROJECTION_SECONDS and passed / number * stop > CREATION_SECONDS and not store.thorough:
                store.leave_to_thorough(f"the store adds {number / passed:.0f} messages a second; it needs {stop:,}")
        return ids
    starts = range(1, most, BATCH)
    batches = [_numbered(range(start, min(start + BATCH, most)), named=False) for start in starts]
    return [message_id for batch in batches for message_id in await memory.add_messages(session, batch)]


def _numbered(numbers: Iterable[int], *, named: bool) -> list[NewMessage]:
    rows: list[NewMessage] = [{"role": "user", "content": str(number)} for number in numbers]
    return [{**row, "message_id": row["content"]} for row in rows] if named else rows


async def _check_contents(memory: Memory, session: str, numbers: range, limit: int | None = None) -> None:
    found = contents(await memory.get_history(session, limit))
    same = found == [str(number) for number in numbers]
    assert same, f"{limit=}: {len(found)} messages, not {numbers[0]} to {numbers[-1]} in their order"
