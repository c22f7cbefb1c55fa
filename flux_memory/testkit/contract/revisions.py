"""Clauses on revisions: a new one for each change, none for anything else, and changes that depend on one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from flux_memory import ConflictError, InvalidInputError, Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle, contents, gather_outcomes
from flux_memory.testkit.contract.updates import EVERY_PART, fill, parts_of, state_of

RACERS: Final = 20
ROUNDS: Final = 3
RUN: Final = 150
"""Changes after which a counter or a clock that makes revisions would have repeated one."""
INCREMENTS: Final = 6
"""Changes that each of several callers makes by reading, deciding and comparing."""

Change = Callable[[Memory, str], Awaitable[Any]]


class RevisionsContract(Binding):
    """The promises of revisions, by which callers notice that a session has changed since they read it."""

    @clause(
        "FM-REV-001",
        promise="Every change of a session or its messages gives it a revision that no session had before, and the one "
        "before is refused from then on.",
        impact="A caller overwrites a change that it has not seen.",
        needs=EVERY_PART,
    )
    async def test_every_change_has_a_new_revision(self, store: StoreUnderTest) -> None:
        memory = store.open()
        changes: dict[str, Change] = {
            "add": lambda memory, s: memory.add_message(s, "user", "text"),
            "empty text": lambda memory, s: memory.add_message(s, "system", ""),
            "batch": lambda memory, s: memory.add_messages(s, _messages("x")),
            "title": lambda memory, s: memory.update_session_title(s, "new"),
            "the same title": lambda memory, s: memory.update_session_title(s, "old"),
            **{f"update, {name}": _update(parts) for name, parts in parts_of(store).items()},
            "the same title again": _update({"title": "old"}),
            "the same metadata": _update({"merge_metadata": {"b": [1.0]}}),
            "no metadata": _update({"merge_metadata": {}}),
            "no such key": _update({"remove_metadata": ["none"]}),
            "a stored message": _update({"messages": [{"role": "user", "content": "1", "message_id": "m1"}]}),
            "everything": _update({"title": "t", "merge_metadata": {"k": 1}, "messages": _messages("x")}),
        }
        if Capability.TRUNCATE in store.capabilities:
            everything = {"title": "t", "merge_metadata": {"k": 1}, "truncate_all": True}
            changes["everything, truncated"] = _update(everything)
        if Capability.POP in store.capabilities:
            changes["pop"] = lambda memory, s: memory.pop_message(s)
        seen: list[str] = []

        async def check(name: str) -> None:
            session = await fill(memory)
            before, _ = await state_of(memory, session)
            await changes[name](memory, session)
            after, history = await state_of(memory, session)
            seen.extend((before["revision"], after["revision"]))
            assert after["revision"] != before["revision"], f"not changed: {name}"
            with pytest.raises(ConflictError):
                await memory.update_session(session, expected_revision=before["revision"], title="too late")
            assert await state_of(memory, session) == (after, history)
            await memory.update_session(session, expected_revision=after["revision"], title="in time")

        await together(map(check, changes))
        assert len(set(seen)) == len(seen)
        assert all(type(revision) is str and revision for revision in seen)

    @clause(
        "FM-REV-002",
        promise="A call that changes nothing leaves the revision as it is: a read, a refused call, a retried add.",
        impact="Two readers of a conversation make each other's changes fail, without any change.",
        needs=EVERY_PART,
    )
    async def test_no_change_no_new_revision(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await fill(memory)
        first = await state_of(memory, session)
        stored: Any = [{"role": "user", "content": str(at), "message_id": f"m{at}"} for at in range(3)]
        unchanged: list[Awaitable[Any]] = [
            *(memory.get_session(session), memory.get_sessions(), memory.get_history(session), memory.count_sessions()),
            memory.add_message(session, "user", "1", message_id="m1"),
            *(memory.add_messages(session, batch) for batch in (stored[:0], stored, stored[:1])),
        ]
        await asyncio.gather(*unchanged)
        refused: list[Awaitable[Any]] = [
            memory.add_message(session, "user", "another", message_id="m1"),
            memory.add_messages(session, [*_messages("x"), *_messages("m1")]),
            memory.add_message(session, "", "text"),
            memory.update_session_title(session, "\x00"),
            memory.update_session(session, title="t", expected_revision="none"),
            memory.update_session(session, title="t", messages=_messages("m1")),
            memory.update_session(session),
            memory.update_session("nowhere", title="t"),
        ]
        if Capability.TRUNCATE in store.capabilities:
            refused.append(memory.update_session(session, title="t", truncate_from="unknown"))
        for outcome in await gather_outcomes(*refused):
            assert isinstance(outcome, ConflictError | InvalidInputError | SessionNotFoundError), outcome
        assert await state_of(memory, session) == first
        empty = await memory.get_session(await memory.create_session())
        assert empty is not None
        if Capability.POP in store.capabilities:
            assert await memory.pop_message(empty["id"]) is None
        assert await memory.get_session(empty["id"]) == empty

    @clause(
        "FM-REV-003",
        promise="A session's revision is the same in each record: of an update, of `get_session` and of "
        "`get_sessions`, by any handle.",
        impact="A change is refused, although the caller has just read the session.",
        needs=EVERY_PART | Capability.SEVERAL_HANDLES,
    )
    async def test_one_revision_in_every_record(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await fill(memory)
        await fill(memory)
        changes: list[Change] = [
            *(_update({"title": str(number)}) for number in range(2)),
            lambda handle, s: handle.add_message(s, "user", "text"),
            _update({"merge_metadata": {"k": 1}}),
            lambda handle, s: handle.update_session_title(s, "t"),
        ]
        for number, change in enumerate(changes):
            returned = await change((memory, other)[number % 2], session)
            shown: list[Any] = [await handle.get_session(session) for handle in (memory, other)]
            for handle in (memory, other):
                shown += [row for row in await handle.get_sessions() if row["id"] == session]
            shown += [returned] if isinstance(returned, dict) else []
            assert len({row["revision"] for row in shown}) == 1, shown
            assert len(shown) >= 4

    @clause(
        "FM-REV-004",
        promise="A revision is never used again: not after many changes, not by another session, and not by one that "
        "is deleted and created anew under the same id.",
        impact="A caller overwrites a conversation that it takes for the one that it has read.",
        needs=EVERY_PART | Capability.SESSION_IDS,
    )
    async def test_revisions_are_not_reused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        seen: list[str] = []

        async def note(session: str) -> str:
            found = await memory.get_session(session)
            assert found is not None
            seen.append(found["revision"])
            return found["revision"]

        old = []
        for _ in range(4):
            # The same id, the same values and the same number of changes.
            await memory.create_session("t", {"k": 1}, session_id="s")
            old.append(await note("s"))
            await memory.add_message("s", "user", "text", message_id="m")
            old.append(await note("s"))
            with pytest.raises(ConflictError):
                await memory.update_session("s", expected_revision=old[0] if len(old) > 2 else "none", title="late")
            if len(old) == 4 and Capability.CLEAR_ALL in store.capabilities:
                await memory.clear_all()
            else:
                await memory.delete_session("s")
        sessions = await together(memory.create_session() for _ in range(4))
        await together(map(note, sessions))

        async def change(session: str) -> None:
            # There and back: the values return, the revision does not.
            for title in "ab" * (RUN // len(sessions) // 2):
                record = await memory.update_session(session, title=title)
                seen.append(record["revision"])

        await together(map(change, sessions))
        assert len(set(seen)) == len(seen), "a revision was used again"

    @clause(
        "FM-REV-005",
        promise="`expected_revision` is compared exactly: only the session's current revision is accepted.",
        impact="A change that should depend on what its caller has read is made in any case.",
        needs=EVERY_PART,
    )
    async def test_revisions_are_compared_exactly(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, other = await fill(memory), await fill(memory)
        before, history = await state_of(memory, session)
        foreign, _ = await state_of(memory, other)
        own = before["revision"]
        lookalikes = [
            "",
            " ",
            "%",
            "*",
            own + " ",
            " " + own,
            own[:-1],
            own + "\n",
            own + "\x00",
            "\ud800",
            "none",
            "0",
        ]
        lookalikes += [f"{{{own}}}", own.swapcase() + "_", own.replace("-", "") + "-", "x" * 5_000, foreign["revision"]]
        lookalikes += [text for text in (own.upper(), own.lower(), own.replace("-", "")) if text != own]

        async def refuse(expected: str) -> None:
            for parts in parts_of(store).values():
                with pytest.raises(ConflictError):
                    await memory.update_session(session, expected_revision=expected, **parts)

        await together(map(refuse, lookalikes))
        assert await state_of(memory, session) == (before, history)
        parts: list[dict[str, Any]] = [{"title": "t"}, {"messages": _messages("x")}, {"merge_metadata": {}}]
        kept = ["0", "1", "2"]
        if Capability.TRUNCATE in store.capabilities:
            parts.insert(1, {"truncate_from": "m1"})
            del kept[1:]
        for given in parts:
            own = (await memory.update_session(session, expected_revision=own, **given))["revision"]
        after, history = await state_of(memory, session)
        assert (after["revision"], after["title"], contents(history)) == (own, "t", [*kept, "x"])

    @clause(
        "FM-REV-006",
        promise="Of concurrent updates that expect the same revision exactly one is made; the others raise "
        "`ConflictError` and change nothing.",
        impact="Two workers answer the same message, and both answers are stored.",
        needs=EVERY_PART,
    )
    async def test_one_of_many_racing_updates_is_made(self, store: StoreUnderTest) -> None:
        handles = [first := store.open(), another_handle(store, first)]
        session = await handles[0].create_session("start")
        said: list[str] = []
        for turn in range(ROUNDS):
            record, _ = await state_of(handles[0], session)
            outcomes = await gather_outcomes(
                *(
                    handles[number % 2].update_session(
                        session,
                        expected_revision=record["revision"],
                        title=f"{turn} {number}",
                        merge_metadata={f"{turn} {number}": number},
                        messages=_messages(f"{turn} {number}"),
                    )
                    for number in range(RACERS)
                )
            )
            made = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, dict)]
            assert len(made) == 1, outcomes
            assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == RACERS - 1, outcomes
            said.append(f"{turn} {made[0]}")
            after, history = await state_of(handles[1], session)
            assert after == outcomes[made[0]]
            assert (after["title"], sorted(after["metadata"]), contents(history)) == (said[-1], sorted(said), said)

    @clause(
        "FM-REV-007",
        promise="Conditional updates lose no change of one another and none of concurrent adds: what they are "
        "based on is what is stored.",
        impact="A counter or a plan in the metadata misses steps, or an answer ignores the question before it.",
        needs=EVERY_PART,
    )
    async def test_conditional_updates_beside_adds(self, store: StoreUnderTest) -> None:
        handles = [first := store.open(), another_handle(store, first)]
        session = await handles[0].create_session(metadata={"count": 0, "seen": 0})

        async def increment(memory: Memory, caller: str) -> None:
            made = 0
            while made < INCREMENTS:
                await asyncio.sleep(0)
                record = await memory.get_session(session)
                assert record is not None
                new = {"count": record["metadata"]["count"] + 1, "seen": record["message_count"]}
                batch: Any = [{"role": "assistant", "content": f"{caller} after {record['message_count']}"}]
                try:
                    await memory.update_session(
                        session, expected_revision=record["revision"], merge_metadata=new, messages=batch
                    )
                except ConflictError:
                    continue
                made += 1

        async def add(memory: Memory) -> None:
            for number in range(INCREMENTS):
                await asyncio.sleep(0)
                await memory.add_message(session, "user", str(number))

        await asyncio.gather(
            *(increment(memory, f"{at}") for at, memory in enumerate((*handles, handles[0]))), *map(add, handles)
        )
        record, history = await state_of(handles[1], session)
        assert record["metadata"]["count"] == 3 * INCREMENTS
        assert record["message_count"] == len(history) == 5 * INCREMENTS
        for place, message in enumerate(history):
            if message["role"] == "assistant":
                assert message["content"].endswith(f" after {place}"), contents(history)


def _update(parts: dict[str, Any]) -> Change:
    return lambda memory, session: memory.update_session(session, **parts)


def _messages(*ids: str) -> list[Any]:
    return [{"role": "user", "content": message_id, "message_id": message_id} for message_id in ids]
