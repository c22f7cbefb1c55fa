"""Clauses on amounts: many sessions, long conversations and many megabytes, which a store must not cap."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import pytest

from flux_memory import ConflictError
from flux_memory.testkit.capabilities import NOTHING, Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.under_test import MANY, StoreUnderTest, add_many, contents

MANY_SESSIONS: Final = 1_100
"""More sessions than fit a page, a scan or a cache of a store."""
CREATED_AT_ONCE: Final = 50
"""Sessions that are created concurrently."""
CREATING_SECONDS: Final = 15.0
"""Seconds after which no more sessions are created: a slow store is tested with fewer."""

PART: Final = "0123456789abcde\n" * (1 << 16)
"""One MiB of text."""
PARTS: Final = 17
"""Messages of one part each: more MiB than stores commonly allow in a request, a document or a response."""


class AmountsContract(Binding):
    """The promises that hold for any amount of data."""

    @clause(
        "FM-LIM-010",
        promise="However many sessions a store has, each one is counted, listed, filtered and found, and `clear_all` "
        "removes all of them.",
        impact="Once there are many conversations, old ones cannot be found any more, or survive their deletion.",
        needs=Capability.SESSIONS,
    )
    async def test_many_sessions(self, store: StoreUnderTest) -> None:
        memory = store.open()
        options: dict[Capability, dict[str, Any]] = {
            Capability.USER_SCOPE: {"user_id": "ann"},
            Capability.METADATA_FILTER | Capability.SESSION_METADATA: {"metadata": {"k": 1}},
        }
        claimed = [option for needed, option in options.items() if needed in store.capabilities]
        given = {name: value for option in claimed for name, value in option.items()}
        ids: list[str] = []
        began = time.monotonic()
        while len(ids) < MANY_SESSIONS and time.monotonic() - began < CREATING_SECONDS:
            ids += await asyncio.gather(*(memory.create_session(**given) for _ in range(CREATED_AT_ONCE)))
        everything = await memory.get_sessions(None)
        assert len(everything) == len(ids)
        assert {row["id"] for row in everything} == set(ids)
        assert await memory.count_sessions() == len(ids)
        for filters in ({}, *claimed, given):
            for limit, offset in ((None, 0), (len(ids) - 1, 0), (None, len(ids) - 9), (5, len(ids) - 9), (30, 90)):
                page = everything[offset:] if limit is None else everything[offset : offset + limit]
                rows = await memory.get_sessions(limit, offset, **filters)
                # Compared outside the assert: pytest would spend minutes on showing the difference.
                same = rows == page
                assert same, f"{len(rows)} rows, not the {len(page)} expected, for {limit=}, {offset=}, {filters=}"
        for row in (everything[0], everything[-1]):
            assert await memory.get_session(row["id"]) == row
        if Capability.CLEAR_ALL in store.capabilities:
            await memory.clear_all()
            assert await memory.get_sessions(None) == []
            assert await memory.count_sessions() == 0

    @clause(
        "FM-LIM-011",
        promise="However long a conversation is, `message_count` is exact, `before` reaches its first message, a retry "
        "is recognised, and deleting it removes all of it.",
        impact="Old messages of a long conversation are out of reach, stored twice or left behind.",
        needs=Capability.SESSIONS,
    )
    async def test_a_long_conversation(self, store: StoreUnderTest) -> None:
        memory = store.open()
        named: dict[str, Any] = {"session_id": "long"} if Capability.SESSION_IDS in store.capabilities else {}
        retried: dict[str, Any] = {"message_id": "first"} if Capability.IDEMPOTENT_IDS in store.capabilities else {}
        session = await memory.create_session(**named)
        ids = [await memory.add_message(session, "user", "0", **retried)]
        ids += await add_many(store, memory, session, 1, 2**15 + MANY if store.thorough else MANY)
        if retried:
            assert await memory.add_message(session, "user", "0", **retried) == ids[0]
            with pytest.raises(ConflictError):
                await memory.add_message(session, "user", "another", **retried)
        found = await memory.get_session(session)
        assert found is not None
        assert found["message_count"] == len(ids)
        assert await memory.get_sessions() == [found]
        if Capability.CURSOR | Capability.MESSAGE_IDS in store.capabilities:
            for at in (1, 5, len(ids) // 2, len(ids) - 1):
                page = await memory.get_history(session, 3, before=ids[at])
                assert [row["id"] for row in page] == ids[max(at - 3, 0) : at], f"the page before message {at}"
        numbers = [str(number) for number in range(len(ids))]
        same = contents(await memory.get_history(session, len(ids) - 1)) == numbers[1:]
        assert same, "the history without its first message is not complete"
        await memory.delete_session(session)
        assert await memory.get_history(session) == []
        if named:
            await memory.create_session(**named)
            assert await memory.get_history(session) == []

    @clause(
        "FM-LIM-012",
        promise="A batch and a history of many megabytes (17 MiB) are stored and returned complete.",
        impact="Conversations with long documents lose messages, or cannot be read any more.",
        needs=NOTHING,
    )
    async def test_many_megabytes(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        texts = _parts_of(PART, store.max_content_bytes)
        if Capability.BATCH in store.capabilities:
            await memory.add_messages(session, [{"role": "user", "content": text} for text in texts])
        else:
            for text in texts:
                await memory.add_message(session, "user", text)
        for limit in (None, len(texts) - 1):
            # Compared outside the assert: pytest would spend minutes on showing the difference.
            history = contents(await memory.get_history(session, limit))
            same = history == texts[-limit:] if limit else history == texts
            assert same, f"{limit=}: {len(history)} messages of {sum(map(len, history))} characters, not those stored"


def _parts_of(part: str, most: int) -> list[str]:
    """Return `PARTS` times a text of ASCII characters, in numbered texts of at most so many bytes each."""
    size = min(len(part), most - 16)
    return [f"{number} {part[:size]}" for number in range(PARTS * len(part) // size)]
