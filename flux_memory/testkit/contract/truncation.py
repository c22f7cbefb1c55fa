"""Clauses on what updates remove from and append to a history: only its tail is removed, and adds go on after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from flux_memory import ConflictError, Memory, Message
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK
from flux_memory.testkit.contract.corpus import METADATA, TEXTS, same
from flux_memory.testkit.contract.pace import bumped, together
from flux_memory.testkit.contract.spelling import twins_of
from flux_memory.testkit.contract.under_test import MANY, StoreUnderTest, another_handle, contents, gather_outcomes
from flux_memory.testkit.contract.updates import UPDATES, state_of
from flux_memory.testkit.verdicts import unverified

IDS: Final = Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS
APPENDS: Final = UPDATES | Capability.BATCH | IDS
TRUNCATES: Final = APPENDS | Capability.TRUNCATE
LENGTH: Final = 5
ADDERS: Final = 12
ROUNDS: Final = 3


class TruncationContract(Binding):
    """The promises on the messages that an update removes and appends."""

    @clause(
        "FM-UPD-040",
        promise="`truncate_from` removes that message and every one after it, `truncate_all` every message; the "
        "counter, the history and its pages agree.",
        impact="A regenerated answer stands beside the old one, or the question before it is gone.",
        needs=TRUNCATES,
    )
    async def test_a_truncation_removes_the_tail(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)

        async def check(kept: int, parts: dict[str, Any]) -> None:
            session, history = await _fill(memory, LENGTH)
            returned = await memory.update_session(session, **parts)
            assert returned["message_count"] == kept
            assert await state_of(other, session) == (returned, history[:kept])
            assert await other.get_history(session, 2) == history[:kept][-2:]
            await memory.update_session(session, truncate_all=True)
            assert (await state_of(other, session))[1] == []

        cases: list[tuple[int, dict[str, Any]]] = [(kept, {"truncate_from": str(kept)}) for kept in range(LENGTH)]
        await together(check(*case) for case in [*cases, (0, {"truncate_all": True})])
        empty = await memory.create_session()
        returned = await memory.update_session(empty, truncate_all=True)
        assert await state_of(other, empty) == (returned, [])
        assert returned["message_count"] == 0

    @clause(
        "FM-UPD-041",
        promise="`truncate_from` with an id that the session does not have raises `ConflictError` and changes nothing, "
        "also if another session has it, or if this one had it once.",
        impact="An edit of a message that is gone removes the rest of the conversation.",
        needs=TRUNCATES | Capability.TITLES,
    )
    async def test_a_truncation_at_no_message(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, _ = await _fill(memory, 3)
        other, _ = await _fill(memory, LENGTH)
        empty = await memory.create_session()
        before = await state_of(memory, session), await state_of(memory, other)

        async def refuse(target: str, message_id: str) -> None:
            with pytest.raises(ConflictError):
                await memory.update_session(target, truncate_from=message_id, title="new")

        unknown = ("3", "4", "", " 1", "1 ", "01", "1.0", "%", "_", "\x00", "1\x00", "\ud800", "x" * 1_000, session)
        await together(refuse(session, message_id) for message_id in unknown)
        await refuse(empty, "0")
        assert (await state_of(memory, session), await state_of(memory, other)) == before
        await memory.update_session(session, truncate_from="1")
        for message_id in ("1", "2"):
            await refuse(session, message_id)
        assert contents((await state_of(memory, session))[1]) == ["0"]
        assert await state_of(memory, other) == before[1]

    @clause(
        "FM-UPD-042",
        promise="After a truncation, adds continue in order with correct counts, and the ids of removed messages can "
        "be used again, with other content as well.",
        impact="A conversation that was truncated cannot be continued, or a new message is taken for a retry.",
        needs=TRUNCATES,
    )
    async def test_adds_continue_after_a_truncation(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        for parts, kept in (({"truncate_from": "2"}, 2), ({"truncate_all": True}, 0), ({"truncate_from": "0"}, 0)):
            session, history = await _fill(memory, LENGTH)
            given: Any = parts
            await memory.update_session(session, **given)
            assert await memory.add_message(session, "tool", "again", message_id="4") == "4"
            assert await other.add_messages(session, _numbered(3)) == ["3"]
            await memory.update_session(session, messages=_numbered(2, 7))
            await other.add_message(session, "user", "last", message_id="last")
            record, found = await state_of(memory, session)
            assert contents(found) == [*map(str, range(kept)), "again", "3", *(() if kept > 2 else ("2",)), "7", "last"]
            assert [row["id"] for row in found] == [*map(str, range(kept)), "4", "3", "2", "7", "last"]
            assert record["message_count"] == len(found)
            assert found[:kept] == history[:kept]
            if Capability.CURSOR in store.capabilities:
                for place, row in enumerate(found):
                    assert await other.get_history(session, before=row["id"]) == found[:place]
            with pytest.raises(ConflictError):
                await memory.add_message(session, "user", "4", message_id="4")

    @clause(
        "FM-UPD-043",
        promise="A truncation removes and an update appends any number of messages.",
        impact="Of a long conversation only a page is removed, and the rest returns with the next answer.",
        needs=TRUNCATES,
    )
    async def test_long_histories_are_truncated(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        returned = await memory.update_session(session, messages=_numbered(*range(MANY)))
        assert returned["message_count"] == MANY
        returned = await memory.update_session(session, truncate_from="1", messages=_numbered(*range(2, MANY)))
        assert returned["message_count"] == MANY - 1
        assert contents(await memory.get_history(session)) == ["0", *map(str, range(2, MANY))]
        returned = await memory.update_session(session, truncate_all=True)
        assert await state_of(memory, session) == (returned, [])

    @clause(
        "FM-UPD-044",
        promise="An update appends as `add_messages` does: with roles, texts, metadata and ids, in order; a message "
        "that is stored already is not stored again, and one with other content is refused together with the update.",
        impact="A retried update duplicates its messages, or drops one of two different ones.",
        needs=APPENDS | Capability.MESSAGE_METADATA | Capability.TITLES,
    )
    async def test_an_update_appends_like_a_batch(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        session, stored = await _fill(memory, 2)
        batch: list[Any] = [
            *({"role": "tool", "content": text, "metadata": {"name": name}} for name, text in TEXTS.items()),
            *({"role": "user", "content": name, "metadata": metadata} for name, metadata in METADATA.items()),
            {"role": "user", "content": "None", "metadata": None, "message_id": None},
        ]
        await memory.update_session(session, messages=(message for message in batch))
        record, history = await state_of(other, session)
        assert history[:2] == stored
        assert record["message_count"] == len(history) == 2 + len(batch)
        assert len({row["id"] for row in history}) == len(history)
        for row, message in zip(history[2:], batch, strict=True):
            assert (row["role"], row["content"]) == (message["role"], message["content"])
            assert same(row["metadata"], message["metadata"] or {})

        first: Any = {"role": "user", "content": "new", "metadata": {"k": 1}, "message_id": "new"}
        again = {**first, "metadata": {"k": 1.0}}
        mixed = [*_numbered(1), first, again, *_numbered(0, 8)]
        returned = await other.update_session(session, messages=mixed)
        _, history = await state_of(memory, session)
        assert [row["id"] for row in history[-2:]] == ["new", "8"]
        assert returned["message_count"] == len(history) == 4 + len(batch)
        returned = await memory.update_session(session, title="retried", messages=mixed)
        assert (returned["title"], returned["message_count"]) == ("retried", len(history))
        for wrong in ({"role": "tool"}, {"content": "another"}, {"metadata": {"k": 2}}, {"metadata": None}):
            for place in range(2):
                refused = _numbered(9, 10)
                refused.insert(place, {**first, **wrong})
                with pytest.raises(ConflictError):
                    await memory.update_session(session, title="refused", messages=refused)
        assert await state_of(other, session) == (returned, history)

    @clause(
        "FM-UPD-045",
        promise="Truncations and updates beside adds leave a session whole: its counter is the number of its messages, "
        "none is doubled, and it takes further adds.",
        impact="A conversation whose counter and messages disagree refuses every further message.",
        needs=TRUNCATES | Capability.TITLES,
    )
    async def test_truncations_beside_adds(self, store: StoreUnderTest) -> None:
        memory = store.open()
        handles = (memory, another_handle(store, memory))
        for turn in range(ROUNDS):
            session, _ = await _fill(memory, LENGTH)
            calls: list[Awaitable[object]] = []
            for number in range(ADDERS):
                handle = handles[number % 2]
                calls.append(handle.add_messages(session, _numbered(100 + number, 200 + number)))
                calls.append(handle.update_session(session, truncate_from=str(1 + number % 4)))
                calls.append(handle.update_session(session, messages=_numbered(300 + number), title=str(number)))
                if turn and number % 4 == 0:
                    calls.append(handle.update_session(session, truncate_all=True))
            outcomes = await gather_outcomes(*calls)
            wrong = [one for one in outcomes if isinstance(one, BaseException) and not isinstance(one, ConflictError)]
            assert not wrong, wrong
            await _is_whole(handles[0], session)
            await asyncio.gather(*(handle.add_message(session, "user", "after") for handle in handles))
            history = await _is_whole(handles[1], session)
            assert contents(history)[-2:] == ["after", "after"]
            last = [row for row in history if int(row["id"] if row["id"].isdecimal() else 0) >= 100]
            pairs = [row["content"] for row in last if row["content"] < "3"]
            assert all(pairs[at + 1] == str(int(pairs[at]) + 100) for at in range(0, len(pairs), 2)), contents(history)

    @clause(
        "FM-UPD-046",
        promise="An update has one time: its messages have the session's new `updated_at`. The time never goes back, a "
        "session keeps its `created_at`, and kept messages keep theirs.",
        impact="Lists show conversations in the wrong order, or messages seem older than the ones before them.",
        needs=TRUNCATES | Capability.TIMESTAMPS | Capability.TITLES,
    )
    async def test_the_time_of_an_update(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, history = await _fill(memory, 3)
        before, _ = await state_of(memory, session)
        parts: dict[str, dict[str, Any]] = {
            "title": {"title": "new"},
            "append": {"messages": _numbered(7, 8)},
            "truncate": {"truncate_from": "1"},
        }
        for name, given in parts.items():
            returned = await memory.update_session(session, **given)
            after, found = await state_of(memory, session)
            assert returned == after
            assert before["updated_at"] <= after["updated_at"], name
            assert after["created_at"] == before["created_at"]
            assert found[: len(history)] == history[: len(found)]
            assert all(row["created_at"] == after["updated_at"] for row in found[len(history) :]), name
            history, before = found, after
        newer = await memory.create_session()

        async def is_later() -> bool:
            return (await state_of(memory, session))[0]["updated_at"] > (await state_of(memory, newer))[0]["updated_at"]

        assert await bumped(lambda: memory.update_session(session, title="new"), is_later)
        assert [row["id"] for row in await memory.get_sessions()] == [session, newer]

    @clause(
        "FM-UPD-047",
        promise="No time goes back with an update, even if the clock is set back: neither `updated_at` nor the "
        "times of the messages that it appends.",
        impact="A conversation that was just changed sinks in the list, or an answer is dated before its question.",
        needs=TRUNCATES | Capability.TIMESTAMPS | Capability.TITLES,
    )
    async def test_updates_never_go_back_in_time(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, _ = await _fill(memory, 2)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        async with store.clock_at(tomorrow):
            await memory.update_session(session, messages=_numbered(2, 3))
        later, history = await state_of(memory, session)
        times = [later["updated_at"]]
        parts: list[dict[str, Any]] = [{"title": "new"}, {"messages": _numbered(4, 5)}, {"truncate_from": "3"}]
        parts += [{"truncate_from": "1", "messages": _numbered(6)}, {"truncate_all": True}]
        for given in parts:
            await memory.update_session(session, **given)
            record, history = await state_of(memory, session)
            times.append(record["updated_at"])
            said = [row["created_at"] for row in history]
            assert said == sorted(said), f"after {given}"
        assert times == sorted(times)
        if times[0] < tomorrow.isoformat(timespec="seconds"):
            unverified(UNSET_CLOCK)

    @clause(
        "FM-UPD-048",
        promise="`truncate_from` takes exactly the message with this id, and none whose id looks alike.",
        impact="An edit of one message removes the conversation from another one on.",
        needs=TRUNCATES,
    )
    async def test_truncations_compare_ids_exactly(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, twins = await memory.create_session(), twins_of(store)
        ids = [one for one, _ in twins]
        await memory.update_session(session, messages=_numbered(*ids))

        async def refuse(twin: str) -> None:
            with pytest.raises(ConflictError):
                await memory.update_session(session, truncate_from=twin)

        await together(refuse(twin) for _, twin in twins)
        assert contents((await state_of(memory, session))[1]) == ids
        await memory.update_session(session, messages=_numbered(*(twin for _, twin in twins)))
        for at in reversed(range(len(ids))):
            returned = await memory.update_session(session, truncate_from=ids[at])
            assert returned["message_count"] == at, f"truncated from {ids[at]!r}"


async def _fill(memory: Memory, count: int) -> tuple[str, list[Message]]:
    """Create a session with numbered messages, whose ids are their texts; return its id and its history."""
    session = await memory.create_session()
    await memory.add_messages(session, _numbered(*range(count)))
    return session, await memory.get_history(session)


def _numbered(*numbers: int | str) -> list[Any]:
    return [{"role": "user", "content": str(number), "message_id": str(number)} for number in numbers]


async def _is_whole(memory: Memory, session: str) -> list[Message]:
    """Assert that the counter of a session is the number of its messages, each of them once; return these."""
    record, history = await state_of(memory, session)
    assert record["message_count"] == len(history), f"a counter of {record['message_count']}, {contents(history)}"
    assert len({row["id"] for row in history}) == len(history)
    return history
