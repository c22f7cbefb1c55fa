"""Clauses on `pop_message`: it takes the newest message, once, and leaves the session as if it was never added."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from flux_memory import InvalidInputError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK
from flux_memory.testkit.contract.corpus import NOT_TEXTS, VARIED_MESSAGES, same
from flux_memory.testkit.contract.limits import NOWHERE
from flux_memory.testkit.contract.pace import bumped, together
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, another_handle, contents
from flux_memory.testkit.verdicts import unverified

POPS: Final = 24
"""Concurrent pops of one session."""
WRITERS: Final = 4
"""Callers that add, and as many that pop."""
TURNS: Final = 10
"""Calls of each of them."""


class PopsContract(Binding):
    """The promises of `pop_message`."""

    @clause(
        "FM-POP-001",
        promise="A pop removes the newest message, and only that, and returns the record that the history showed.",
        impact="An agent that takes back its last answer removes another message, or loses what it held.",
        needs=Capability.POP | Capability.BATCH | Capability.MESSAGE_IDS | Capability.MESSAGE_METADATA,
    )
    async def test_a_pop_takes_the_newest(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_messages(session, VARIED_MESSAGES)
        await add_numbered(memory, session, range(3))
        history = await memory.get_history(session)
        while history:
            popped = await memory.pop_message(session)
            assert same(popped, history.pop()), f"popped {popped!r:.200}"
            assert same(await memory.get_history(session), history)
        assert await memory.pop_message(session) is None

    @clause(
        "FM-POP-002",
        promise="A pop of a session without messages, or of an id that does not exist or is not valid, returns `None` "
        "and changes nothing; an id that is not a `str` is a type error.",
        impact="An undo on an empty conversation fails, or moves it to the top of the list.",
        needs=Capability.POP | Capability.SESSIONS,
    )
    async def test_a_pop_of_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        empty, emptied, other = [await memory.create_session() for _ in range(3)]
        await add_numbered(memory, other, range(2))
        await add_numbered(memory, emptied, range(1))
        assert await memory.pop_message(emptied) is not None
        before = await memory.get_sessions(), await memory.get_history(other)
        for key in (empty, emptied, *NOWHERE, "x" * (store.max_id_length + 1)):
            assert await memory.pop_message(key) is None, f"a pop of {key!r:.50} found something"
        assert (await memory.get_sessions(), await memory.get_history(other)) == before
        values: list[Any] = [None, *NOT_TEXTS]
        for wrong in values:
            with pytest.raises(InvalidInputError, match="session_id") as caught:
                await memory.pop_message(wrong)
            assert isinstance(caught.value, TypeError), f"{wrong!r} raised {caught.value!r}"

    @clause(
        "FM-POP-003",
        promise="A pop changes the session's count, time and revision with the removal, and nothing else of it.",
        impact="A client that compares revisions does not notice that the conversation has lost its last message.",
        needs=Capability.POP | Capability.BATCH | Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_a_pop_changes_the_record(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await add_numbered(memory, session, range(4))
        records: list[Any] = [await memory.get_session(session)]
        for left in (3, 2, 1, 0):
            await memory.pop_message(session)
            found: Any = await memory.get_session(session)
            assert found["message_count"] == left
            assert [row for row in await memory.get_sessions() if row["id"] == session] == [found]
            assert found["updated_at"] >= records[-1]["updated_at"], "the time went back"
            records.append(found)
        kept = [{**row, "updated_at": "", "message_count": 0, "revision": ""} for row in records]
        assert all(row == kept[0] for row in kept)
        if Capability.REVISIONS in store.capabilities:
            assert len({row["revision"] for row in records}) == len(records), "a pop kept the revision"
        # More than the pops of a coarse clock.
        await memory.add_messages(session, numbered(*range(200)))
        last = (await memory.get_history(session, 1))[0]["created_at"]

        async def is_later() -> bool:
            row = await memory.get_session(session)
            return row is not None and row["updated_at"] > last

        assert await bumped(lambda: memory.pop_message(session), is_later), "pops leave the session's time as it was"

    @clause(
        "FM-POP-004",
        promise="Messages that are added after a pop follow the remaining ones, and may have the id of a popped one "
        "with other content.",
        impact="After an undo, the next answer is dropped as a repetition, or appears in the middle of the history.",
        needs=Capability.POP
        | Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.CURSOR,
    )
    async def test_adds_after_pops(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        for name in "abcd":
            await memory.add_message(session, "user", f"first {name}", message_id=name)
        for _ in range(2):
            await memory.pop_message(session)
        assert await memory.add_message(session, "assistant", "second d", message_id="d") == "d"
        batch: list[Any] = [{"role": "r", "content": f"second {name}", "message_id": name} for name in "ce"]
        assert await memory.add_messages(session, batch) == ["c", "e"]
        said = ["first a", "first b", "second d", "second c", "second e"]
        assert contents(await memory.get_history(session)) == said
        assert contents(await memory.get_history(session, 2, before="c")) == said[1:3]
        popped = await memory.pop_message(session)
        assert popped is not None
        assert (popped["id"], popped["content"]) == ("e", "second e")
        # A retry of the add whose message was popped stores it again: the session no longer has it.
        assert await memory.add_messages(session, batch) == ["c", "e"]
        assert contents(await memory.get_history(session)) == said
        found = await memory.get_session(session)
        assert found is not None
        assert found["message_count"] == len(said)

    @clause(
        "FM-POP-005",
        promise="Concurrent pops, through any handles, return different messages, each exactly once, and the session "
        "takes new messages afterwards.",
        impact="Two workers take the same job, or a message disappears without a worker that has it.",
        needs=Capability.POP | Capability.MESSAGE_IDS | Capability.SESSIONS,
    )
    async def test_concurrent_pops(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        session = await memory.create_session()
        ids = await add_numbered(memory, session, range(POPS + 6))
        await other.get_history(session)
        popped = await asyncio.gather(*((memory, other)[at % 2].pop_message(session) for at in range(POPS)))
        assert sorted(row["id"] for row in popped if row is not None) == sorted(ids[6:])
        for handle in (memory, other):
            assert [row["id"] for row in await handle.get_history(session)] == ids[:6]
        found = await other.get_session(session)
        assert found is not None
        assert found["message_count"] == 6
        # More pops than messages.
        rest = await asyncio.gather(*((memory, other)[at % 2].pop_message(session) for at in range(12)))
        assert sorted(row["id"] for row in rest if row is not None) == sorted(ids[:6])
        added = await add_numbered(other, session, range(3))
        assert [row["id"] for row in await memory.get_history(session)] == added

    @clause(
        "FM-POP-006",
        promise="Pops beside adds lose and double no message: each acknowledged one is in the history or was popped, "
        "exactly once.",
        impact="In a busy conversation, an undo also removes a message that another caller has just added.",
        needs=Capability.POP | Capability.MESSAGE_IDS | Capability.SESSIONS,
    )
    async def test_pops_beside_adds(self, store: StoreUnderTest) -> None:
        memory = store.open()
        handles = (memory, another_handle(store, memory))
        session = await memory.create_session()
        first = await add_numbered(memory, session, range(TURNS))

        async def add(writer: int) -> list[str]:
            made = list[str]()
            for number in range(TURNS):
                made += await add_numbered(handles[writer % 2], session, [writer * 100 + number])
                # Lets the others in, also on a store that answers at once.
                await asyncio.sleep(0)
            return made

        async def pop(caller: int) -> list[str]:
            taken = list[str]()
            for _ in range(TURNS):
                popped = await handles[(caller + 1) % 2].pop_message(session)
                taken += [popped["id"]] if popped is not None else []
                await asyncio.sleep(0)
            return taken

        work = await asyncio.gather(*(call(caller) for caller in range(WRITERS) for call in (add, pop)))
        added, popped = [each for ids in work[::2] for each in ids], [each for ids in work[1::2] for each in ids]
        left = [row["id"] for row in await memory.get_history(session)]
        assert not (lost := {*first, *added} - {*popped, *left}), f"lost {lost}"
        assert not (twice := [one for one, times in Counter(popped + left).items() if times > 1]), f"twice {twice}"
        assert {*popped, *left} == {*first, *added}
        found = await memory.get_session(session)
        assert found is not None
        assert found["message_count"] == len(left)
        for ids in (first, *work[::2]):
            assert [one for one in left if one in ids] == [one for one in ids if one in left]

    @clause(
        "FM-POP-007",
        promise="A pop changes one session: messages of other sessions stay, also those with the same id.",
        impact="An undo in one user's conversation removes a message of another user's.",
        needs=Capability.POP | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.SESSIONS,
    )
    async def test_pops_leave_other_sessions(self, store: StoreUnderTest) -> None:
        memory = store.open()
        sessions = [await memory.create_session() for _ in range(3)]

        async def fill(session: str) -> None:
            for name in "abc":
                await memory.add_message(session, "user", f"{session} {name}", message_id=name)

        await together(map(fill, sessions))
        before = await together(_all_of(memory, session) for session in sessions)
        popped = await memory.pop_message(sessions[1])
        assert popped is not None
        assert popped["content"] == f"{sessions[1]} c"
        after = await together(_all_of(memory, session) for session in sessions)
        assert (after[0], after[2]) == (before[0], before[2])
        assert after[1][1] == before[1][1][:-1]

    @clause(
        "FM-POP-008",
        promise="No time goes back with a pop, even if the clock is set back: neither `updated_at` nor the times of "
        "messages that are added after it.",
        impact="A conversation whose last answer was taken back sinks in the list, or is removed as inactive.",
        needs=Capability.POP | Capability.BATCH | Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_pops_never_go_back_in_time(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        async with store.clock_at(tomorrow):
            await memory.add_messages(session, numbered(0, 1, 2))
        times: list[str] = []
        for _ in range(2):
            record = await memory.get_session(session)
            assert record is not None
            times.append(record["updated_at"])
            await memory.pop_message(session)
        await memory.add_message(session, "user", "later")
        record, history = await _all_of(memory, session)
        times.append(record["updated_at"])
        assert times == sorted(times), "a pop sets the time back"
        said = [row["created_at"] for row in history]
        assert said == sorted(said), "a message after a pop is older than those before"
        if times[0] < tomorrow.isoformat(timespec="seconds"):
            unverified(UNSET_CLOCK)

    @clause(
        "FM-POP-009",
        promise="Where messages were removed and others added, each message is the place that `before`, `after`, "
        "`through` and `truncate_from` name.",
        impact="After an undo, a copy ends one message early, or an edit removes the message before the edited one.",
        needs=Capability.POP | Capability.MESSAGE_IDS | Capability.SESSIONS,
    )
    async def test_places_after_pops(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await add_numbered(memory, session, range(3))
        # A store that numbers its messages may skip the numbers of removed ones.
        for popped in (1, 2, 1):
            for _ in range(popped):
                await memory.pop_message(session)
            await add_numbered(memory, session, range(popped + 1))
        history = await memory.get_history(session)
        assert len(history) == 6
        for at, row in reversed([*enumerate(history)]):
            name = row["id"]
            if Capability.CURSOR in store.capabilities:
                assert await memory.get_history(session, before=name) == history[:at]
                assert await memory.get_history(session, 1, before=name) == history[:at][-1:]
            if Capability.FORWARD_CURSOR in store.capabilities:
                assert await memory.get_history(session, after=name) == history[at + 1 :]
                assert await memory.get_history(session, 1, after=name) == history[at + 1 :][:1]
            if Capability.FORK in store.capabilities:
                fork = await memory.fork_session(session, through=name)
                assert await memory.get_history(fork) == history[: at + 1], f"through message {at}"
                (added,) = await add_numbered(memory, fork, [at])
                assert [row["id"] for row in await memory.get_history(fork, 2)] == [name, added]
        for at, row in reversed([*enumerate(history)]):
            if Capability.TRUNCATE in store.capabilities:
                await memory.update_session(session, truncate_from=row["id"])
            else:
                await memory.pop_message(session)
            record, left = await _all_of(memory, session)
            assert (left, record["message_count"]) == (history[:at], at)


async def _all_of(memory: Memory, session: str) -> tuple[Any, Any]:
    return await memory.get_session(session), await memory.get_history(session)
