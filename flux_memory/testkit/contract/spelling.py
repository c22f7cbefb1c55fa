"""Clauses on the spelling of texts and ids: a text is never taken for another value, nor an id for a similar one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from itertools import cycle
from typing import Any, Final

from flux_memory import SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.lookalikes import TWINS, TYPED_TEXTS
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents, gather_outcomes

KEYS: Final = tuple(
    f"{start}{mark}{end}"
    for mark in (":", "/", "#", "_", ".")
    for start, end in (("s", "messages"), ("s", "meta"), ("s", "sessions"), ("session", "s"), ("user", "s"))
)
"""Ids in the form of the keys that stores make of the id `s`."""


class SpellingContract(Binding):
    """The promises on texts and ids that look like others."""

    @clause(
        "FM-TXT-013",
        promise="Text that looks like a date, a number, JSON, markup or an escape stays that text: content and roles, "
        "in single adds and batches.",
        impact="A message that consists of a date, a number or JSON comes back in another spelling.",
    )
    async def test_text_is_not_interpreted(self, store: StoreUnderTest) -> None:
        memory = store.open()
        single = await memory.create_session()
        await asyncio.gather(*(memory.add_message(single, text, text) for text in TYPED_TEXTS))
        rows = await memory.get_history(single)
        assert sorted((row["role"], row["content"]) for row in rows) == [(text, text) for text in sorted(TYPED_TEXTS)]
        if Capability.BATCH in store.capabilities:
            batch = await memory.create_session()
            await memory.add_messages(batch, [{"role": text, "content": text} for text in TYPED_TEXTS])
            rows = await memory.get_history(batch)
            assert [(row["role"], row["content"]) for row in rows] == [(text, text) for text in TYPED_TEXTS]

    @clause(
        "FM-TXT-014",
        promise="No call finds, changes or deletes a session under an id that only looks like its own.",
        impact="One conversation is read, continued, renamed or deleted in place of another.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.TITLES,
    )
    async def test_similar_session_ids_are_not_found(self, store: StoreUnderTest) -> None:
        memory = store.open()
        first, second = zip(*twins_of(store), strict=True)
        await asyncio.gather(*(memory.create_session(session_id=one) for one in first))
        await asyncio.gather(*(memory.add_message(one, "user", one) for one in first))
        before = await memory.get_sessions(None)
        writes: list[Awaitable[Any]] = [memory.add_message(one, "user", "lost") for one in second]
        writes += [memory.update_session_title(one, "lost") for one in second]
        if Capability.SESSION_UPDATES in store.capabilities:
            writes += [memory.update_session(one, title="lost") for one in second]
        if Capability.FORK in store.capabilities:
            writes += [memory.fork_session(one) for one in second]
        for one, outcome in zip(cycle(second), await gather_outcomes(*writes), strict=False):
            assert isinstance(outcome, SessionNotFoundError), f"{one!r} does not exist: {outcome!r}"
        reads: list[Awaitable[Any]] = [memory.get_history(one) for one in second]
        reads += [memory.get_session(one) for one in second]
        if Capability.POP in store.capabilities:
            reads += [memory.pop_message(one) for one in second]
        for one, outcome in zip(cycle(second), await asyncio.gather(*reads), strict=False):
            assert not outcome, f"{one!r} does not exist: {outcome!r}"
        await asyncio.gather(*(memory.delete_session(one) for one in second))
        assert await memory.get_sessions(None) == before

    @clause(
        "FM-TXT-015",
        promise="Sessions whose ids look alike are different sessions: each can be created, found and continued, and "
        "is deleted alone.",
        impact="Two conversations become one, or the second cannot be started.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS,
    )
    async def test_similar_session_ids_are_separate(self, store: StoreUnderTest) -> None:
        memory = store.open()
        first, second = zip(*twins_of(store), strict=True)
        both = [*first, *second]
        await asyncio.gather(*(memory.create_session(session_id=one) for one in both))
        await asyncio.gather(*(memory.add_message(one, "user", one) for one in both))
        histories = await asyncio.gather(*(memory.get_history(one) for one in second))
        for one, history in zip(second, histories, strict=True):
            assert contents(history) == [one]
        found = await asyncio.gather(*(memory.get_session(one) for one in both))
        for one, row in zip(both, found, strict=True):
            assert row is not None, f"{one!r} is not found"
            assert (row["id"], row["message_count"]) == (one, 1)
        await asyncio.gather(*(memory.delete_session(one) for one in first))
        assert {row["id"]: row["message_count"] for row in await memory.get_sessions(None)} == dict.fromkeys(second, 1)

    @clause(
        "FM-TXT-016",
        promise="Messages whose ids look alike are different messages, in one batch, in later batches and for each "
        "cursor.",
        impact="A message of a batch is taken for a retry of another message and dropped.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.CURSOR,
    )
    async def test_similar_message_ids_are_separate(self, store: StoreUnderTest) -> None:
        memory = store.open()
        together, apart, single = [await memory.create_session() for _ in range(3)]
        twins = twins_of(store)
        both = [one for pair in twins for one in pair]
        first, second = ([_message(one) for one in ids] for ids in zip(*twins, strict=True))
        assert await memory.add_messages(together, [_message(one) for one in both]) == both
        assert contents(await memory.get_history(together)) == both
        await memory.add_messages(apart, first)
        pages = [memory.get_history(apart, before=one["message_id"]) for one in second]
        if Capability.FORWARD_CURSOR in store.capabilities:
            pages += [memory.get_history(apart, after=one["message_id"]) for one in second]
        for one, page in zip(cycle(second), await asyncio.gather(*pages), strict=False):
            assert page == [], f"there is no message {one['message_id']!r}"
        await memory.add_messages(apart, second)
        assert contents(await memory.get_history(apart)) == [one["content"] for one in [*first, *second]]
        await asyncio.gather(*(memory.add_message(single, "user", one, message_id=one) for one in both))
        rows = await memory.get_history(single)
        assert sorted((row["id"], row["content"]) for row in rows) == sorted(zip(both, both, strict=True))

    @clause(
        "FM-TXT-017",
        promise="An id may look like a store's own key: another id, a separator and a word. Both are separate, as ids "
        "of sessions, users and messages.",
        impact="A session with an unlucky id overwrites the messages of another one.",
        needs=Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.USER_SCOPE,
    )
    async def test_ids_may_look_like_keys(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await memory.create_session(session_id="s", user_id="s")
        await memory.add_message("s", "user", "s", message_id="s")
        ids = ["s", *KEYS]
        await asyncio.gather(*(memory.create_session(session_id=one, user_id=one) for one in KEYS))
        await asyncio.gather(*(memory.add_message(one, "user", one, message_id=one) for one in KEYS))
        histories = await asyncio.gather(*(memory.get_history(one) for one in ids))
        lists = await asyncio.gather(*(memory.get_sessions(user_id=one) for one in ids))
        for one, history, rows in zip(ids, histories, lists, strict=True):
            assert [(row["id"], row["content"]) for row in history] == [(one, one)]
            assert [(row["id"], row["message_count"]) for row in rows] == [(one, 1)]
        await memory.delete_session("s")
        assert {row["id"] for row in await memory.get_sessions(None)} == {*KEYS}
        assert await memory.get_sessions(user_id="s") == []


def twins_of(store: StoreUnderTest) -> list[tuple[str, str]]:
    """Return the pairs of similar ids that are short enough for the store."""
    return [pair for pair in TWINS if max(map(len, pair)) <= store.max_id_length]


def _message(message_id: str) -> Any:
    return {"role": "user", "content": message_id, "message_id": message_id}
