"""Clauses on forks beside other calls: a reader sees the whole copy or none, which is the session at one moment."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from flux_memory import ConflictError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, another_handle, gather_outcomes

LENGTH: Final = 40
"""Messages of a session that is copied while others read or write."""
FORKS: Final = 6
WRITERS: Final = 3


class AtomicForksContract(Binding):
    """The promises of forks to concurrent calls."""

    @clause(
        "FM-FRK-020",
        promise="A reader sees all of a fork or nothing: no copy without messages, metadata or title.",
        impact="A client that opens a copy at once sees half a conversation, and the model answers from it.",
        needs=Capability.FORK
        | Capability.BATCH
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.SESSION_METADATA
        | Capability.TITLES,
    )
    async def test_readers_see_whole_forks(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        session = await memory.create_session("title", {"k": 1})
        await memory.add_messages(session, numbered(*range(LENGTH)))
        history = await memory.get_history(session)
        acknowledged: set[str] = set()
        ended: set[str] = set()

        async def make(name: str) -> None:
            try:
                await memory.fork_session(session, new_session_id=name)
                acknowledged.add(name)
            finally:
                # A fork that fails must end its reader as well.
                ended.add(name)

        async def watch(name: str) -> None:
            while True:
                last = name in ended
                rows = await other.get_history(name)
                assert rows in ([], history), f"a reader sees {len(rows)} of {LENGTH} messages"
                record: Any = await other.get_session(name)
                assert record is None or (
                    (record["title"], record["metadata"], record["message_count"]) == ("title", {"k": 1}, LENGTH)
                )
                assert not rows or record is not None, "messages without a session"
                if last:
                    assert rows or name not in acknowledged, "an acknowledged fork is not visible"
                    return
                await asyncio.sleep(0)

        names = [f"fork {number}" for number in range(FORKS)]
        await together(call(name) for name in names for call in (watch, make))

    @clause(
        "FM-FRK-021",
        promise="A fork beside adds is the session at one moment: its messages are the first ones of the original, "
        "with each one that was acknowledged before the fork began.",
        impact="A copy of a busy conversation misses a message in the middle.",
        needs=Capability.FORK | Capability.BATCH | Capability.MESSAGE_IDS | Capability.SESSIONS,
    )
    async def test_forks_beside_adds(self, store: StoreUnderTest) -> None:
        memory = store.open()
        handles = (memory, another_handle(store, memory))
        session = await memory.create_session()
        acknowledged = await memory.add_messages(session, numbered(*range(LENGTH)))
        forks: list[tuple[str, int]] = []

        async def add(writer: int) -> None:
            for number in range(FORKS * 2):
                acknowledged.extend(await add_numbered(handles[writer % 2], session, [number]))
                # Lets the forks in, also on a store that answers at once.
                await asyncio.sleep(0)

        async def fork(caller: int) -> None:
            for _ in range(FORKS // 2):
                known = len(acknowledged)
                forks.append((await handles[caller % 2].fork_session(session), known))
                await asyncio.sleep(0)

        await asyncio.gather(*map(add, range(WRITERS)), *map(fork, range(2)))
        ids = [row["id"] for row in await memory.get_history(session)]
        assert sorted(ids) == sorted(acknowledged)
        for name, known in forks:
            copied = [row["id"] for row in await memory.get_history(name)]
            assert copied == ids[: len(copied)], "a fork is not the beginning of its original"
            assert {*acknowledged[:known]} <= {*copied}, "a fork misses messages that were acknowledged before it"
            record: Any = await memory.get_session(name)
            assert record["message_count"] == len(copied)
            (added,) = await add_numbered(memory, name, [0])
            assert [row["id"] for row in await memory.get_history(name, 1)] == [added]

    @clause(
        "FM-FRK-022",
        promise="Of concurrent forks and creations with one new id, exactly one succeeds; the others raise "
        "`ConflictError`.",
        impact="Two requests copy to the same id, and the copy has the messages of both.",
        needs=Capability.FORK | Capability.SESSIONS | Capability.SESSION_IDS | Capability.TITLES,
    )
    async def test_one_fork_wins(self, store: StoreUnderTest) -> None:
        memory = store.open()
        handles = (memory, another_handle(store, memory))
        sources = [await memory.create_session(title) for title in ("first", "second")]
        for at, source in enumerate(sources):
            await add_numbered(memory, source, range(at * 10, at * 10 + 3))
        whole = [[row["content"] for row in await memory.get_history(source)] for source in sources]

        async def race(name: str) -> None:
            calls = [
                handles[(at + place) % 2].fork_session(source, new_session_id=name)
                for place in range(2)
                for at, source in enumerate(sources)
            ]
            outcomes = await gather_outcomes(*calls, handles[1].create_session("created", session_id=name))
            assert outcomes.count(name) == 1, f"{outcomes.count(name)} calls have made the session"
            assert all(one == name or isinstance(one, ConflictError) for one in outcomes), outcomes
            record, said = await _seen(memory, name)
            won = outcomes.index(name)
            title, expected = ("created", []) if won == len(calls) else (("first", "second")[won % 2], whole[won % 2])
            assert (record["title"], record["message_count"], said) == (title, len(expected), expected)

        await together(race(f"new {number}") for number in range(FORKS))


async def _seen(memory: Memory, session: str) -> tuple[Any, list[str]]:
    return await memory.get_session(session), [row["content"] for row in await memory.get_history(session)]
