"""Tests the checker on pops, truncations, conditional updates, forks and bulk deletions, planted and real."""

from __future__ import annotations

import asyncio
import random
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted_histories import add_operation, call_operation, create_operation, find_kinds, store_with

from flux_memory import ConflictError
from flux_memory.testkit import ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.cancel_points import cut_short
from flux_memory.testkit.histories import History, Journal, Operation, Recorder, Stored, check, read_stored

A, B, C = add_operation("a", began=1), add_operation("b", began=2), add_operation("c", began=3)


def pop(popped: str | None, began: float = 5, **other: Any) -> Operation:
    return call_operation("pop_message", began, popped=popped, **other)


def update(began: float = 5, **other: Any) -> Operation:
    return call_operation("update_session", began, **other)


def fork(began: float = 5, **other: Any) -> Operation:
    return call_operation("fork_session", began, session="f", source="s", fields={}, **other)


def forked(stored: Stored, copy: Stored) -> Stored:
    """Return the store with a fork beside the session."""
    made: Any = copy.sessions["s"]
    return Stored({**stored.sessions, "f": replace(made, record=made.record | {"id": "f"})})


UNKNOWN: Any = {"outcome": "unknown"}
NEVER = (99, 99, 99)
"""Suspensions that no call reaches."""


@pytest.mark.parametrize(
    ("kind", "stored", "operations"),
    [
        ("undeleted", store_with("a", "b"), [A, B, pop("b")]),
        ("undeleted", store_with("a", "b"), [A, replace(B, outcome="unknown"), pop("b")]),
        ("undeleted", store_with("a", "b"), [A, B, update(truncate_from="b")]),
        ("undeleted", store_with("a", "c"), [A, B, C, update(truncate_from="b")]),
        ("undeleted", store_with("a"), [A, update(truncate_all=True)]),
        ("undeleted", store_with("a"), [A, B, pop("b"), call_operation("get_history", 6, seen=("a", "b"))]),
        ("undeleted", store_with(), [call_operation("delete_sessions", 5, session=None, fields={"user_id": "u"})]),
        ("lost", store_with(), [A, B, pop("b")]),
        ("lost", store_with("a"), [A, B, pop(None, **UNKNOWN), C]),
        ("lost", store_with("c"), [A, B, C, update(truncate_from="c", outcome="failed"), pop(None, **UNKNOWN)]),
        ("lost", store_with(), [A, B, update(truncate_from="b")]),
        ("lost", store_with("a"), [A, B, pop("b"), add_operation("b", began=6)]),
        ("lost", store_with("a"), [A, B, update(truncate_from="x", outcome="failed")]),
        ("removed twice", store_with("a"), [A, B, pop("b"), pop("b", 6)]),
        ("removed twice", store_with("a"), [A, B, pop("b"), update(6, truncate_from="b")]),
        ("from nowhere", store_with("a"), [A, pop("x")]),
        ("wrong read", store_with("a"), [A, pop(None)]),
        ("out of order", store_with("b"), [A, B, pop("a")]),
        ("overwritten", store_with(), [update(expected_revision="1"), update(5.05, expected_revision="1")]),
        (
            "overwritten",
            Stored({}),
            [update(expected_revision="1"), call_operation("delete_session", 7, expected_revision="1")],
        ),
        ("overwritten", store_with(), [update(revision="2"), update(6, revision="2")]),
        ("altered", store_with(), [update(merged={"k": 1})]),
        ("altered", store_with(metadata={"k": 2}), [update(merged={"k": 1})]),
        ("altered", store_with(title="t"), [update(fields={"title": "new"})]),
        ("half stored", forked(store_with("a", "b"), store_with("a")), [add_operation("a", "b", began=1), fork()]),
        ("lost", forked(store_with("a", "b"), store_with("a")), [A, B, fork()]),
        ("lost", forked(store_with("a", "b"), store_with("b")), [A, B, fork(through="b")]),
        ("from nowhere", forked(store_with("a", "b"), store_with("a", "b")), [A, B, fork(through="a")]),
        ("from nowhere", forked(store_with("a", "b"), store_with("a", "b")), [A, fork(1.5), B]),
        ("out of order", forked(store_with("a", "b"), store_with("b", "a")), [A, B, fork()]),
        ("lost", store_with("a"), [A, fork()]),
    ],
)
def test_every_violation_of_a_change_is_found(kind: str, stored: Stored, operations: list[Operation]) -> None:
    """A message that comes back, vanishes or is removed twice is reported, as is a lost update and a partial fork."""
    assert kind in find_kinds(stored, create_operation(), *operations)


@pytest.mark.parametrize(
    ("stored", "operations"),
    [
        (store_with("a"), [A, B, pop("b")]),
        (store_with("a"), [A, B, pop(None, **UNKNOWN)]),
        (store_with("a", "b"), [A, B, pop(None, **UNKNOWN)]),
        (store_with("a", "b"), [A, B, pop(None, outcome="failed")]),
        (store_with("a", "b"), [A, B, pop("b"), add_operation("b", began=6)]),
        (store_with("a"), [A, B, pop("b"), add_operation("b", began=6), pop("b", 7)]),
        (store_with(), [pop(None, 0.5), A, pop("a")]),
        (store_with("a"), [A, B, C, update(truncate_from="b")]),
        (store_with("a", "b"), [A, B, update(truncate_from="b", **UNKNOWN)]),
        (store_with("a", "c"), [A, B, update(2.5, truncate_from="b"), C]),
        (store_with("a"), [A, add_operation("b", "c", began=2), pop("c"), pop("b", 6)]),
        (store_with("c"), [A, B, update(2.5, truncate_all=True), C]),
        (store_with("b"), [A, update(1.5, truncate_all=True, messages=B.messages)]),
        (store_with(metadata={"k": 1}), [update(merged={"k": 1, "l": 2}), update(6, removed_keys=("l",))]),
        (store_with(), [update(merged={"k": 1}, **UNKNOWN)]),
        (store_with(), [update(expected_revision="1"), update(expected_revision="1", outcome="failed")]),
        (forked(store_with("a", "b"), store_with("a")), [A, fork(1.5), B]),
        (forked(store_with("a", "b"), store_with("a", "b")), [A, B, fork(through="b")]),
        (forked(store_with("a", "b"), store_with("a")), [A, B, fork(through="a")]),
        (forked(store_with("a"), store_with("a", "b")), [A, B, fork(4), pop("b")]),
        (store_with("a"), [A, fork(**UNKNOWN)]),
        (store_with("a"), [replace(A, creates=True, fields={"title": "", "metadata": {}, "user_id": "u"})]),
        (Stored({}), [call_operation("delete_sessions", 5, session=None, fields={})]),
        (store_with(), [call_operation("delete_sessions", 5, session=None, fields={"user_id": "v"})]),
    ],
)
def test_allowed_changes_have_no_violation(stored: Stored, operations: list[Operation]) -> None:
    """A change whose outcome is unknown may have happened; an add after a removal stores anew."""
    assert check(History((create_operation(), *operations)), stored) == []


@pytest.mark.parametrize(
    ("stored", "operations", "resent", "once"),
    [
        (store_with("a", "b"), [A, replace(B, ended=9), pop("b")], [], ["undeleted"]),
        (store_with("a"), [A, replace(B, ended=9), pop("b"), pop("b", 6)], [], ["removed twice"]),
        (store_with("a"), [A, replace(B, ended=9), *(pop("b", at) for at in (5, 10, 11))], ["removed twice"], None),
        (store_with("a", "b"), [A, B, pop("b")], ["undeleted"], None),
        (store_with("a"), [A, B, pop("b"), pop("b", 6)], ["removed twice"], None),
    ],
)
def test_an_add_that_is_sent_again_may_store_its_message_again(
    stored: Stored, operations: list[Operation], resent: list[str], once: list[str] | None
) -> None:
    """Only a removal during the add excuses it, and only on a backend that resends."""
    history = History(tuple(operations))
    assert [violation.kind for violation in check(history, stored, resends=True)] == resent
    assert [violation.kind for violation in check(history, stored)] == (resent if once is None else once)


def test_an_add_that_creates_is_a_creation() -> None:
    """A session that only an add created is not from nowhere."""
    adds = replace(A, creates=True, fields={"title": "", "metadata": {}, "user_id": "u"})
    assert find_kinds(store_with("a", title=""), adds) == []
    assert find_kinds(Stored({}), adds) == ["lost"]


async def work(memory: Recorder, session: str, worker: int, cuts: tuple[int, ...]) -> None:
    """Make changes of every kind, cancelled at one of these suspensions."""
    chance = random.Random(worker)
    for number in range(30):
        name = f"{worker}-{number}"
        kind = chance.choice(("add", "add", "add", "batch", "pop", "pop", "truncate", "update", "fork", "read"))
        call: Any
        if kind == "add":
            call = memory.add_message(session, "user", name, message_id=name, create=True, user_id="u")
        elif kind == "batch":
            call = memory.add_messages(session, [{"role": "user", "content": f"{name}-{at}"} for at in range(3)])
        elif kind == "pop":
            call = memory.pop_message(session)
        elif kind == "truncate":
            call = truncate_last(memory, session)
        elif kind == "update":
            call = update_as_read(memory, session, name)
        elif kind == "fork":
            call = memory.fork_session(session)
        else:
            call = memory.get_history(session)
        making = asyncio.ensure_future(cut_short(call, chance.choice(cuts), "asleep"))
        await asyncio.wait({making})
        if not making.cancelled():
            with suppress(ConflictError):
                making.result()


async def truncate_last(memory: Recorder, session: str) -> None:
    history = await memory.get_history(session, 2)
    if history:
        await memory.update_session(session, truncate_from=history[0]["id"], merge_metadata={"cut": 1})


async def update_as_read(memory: Recorder, session: str, name: str) -> None:
    record = await memory.get_session(session)
    assert record is not None
    added: Any = [{"role": "user", "content": name}]
    await memory.update_session(session, expected_revision=record["revision"], title=name, messages=added)


class SlowMemory(ReferenceMemory):
    """Waits before each call and after it, so that calls overlap and can be cancelled when they are done."""


def _slow(method: str) -> Any:
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        result = await getattr(ReferenceMemory, method)(self, *args, **kwargs)
        await asyncio.sleep(0)
        return result

    return call


for _name in ("add_message", "add_messages", "pop_message", "update_session", "fork_session", "get_session"):
    setattr(SlowMemory, _name, _slow(_name))


class PopsTwice(SlowMemory):
    async def pop_message(self, session_id: str) -> Any:
        last = (await self.get_history(session_id, 1))[-1:]
        await asyncio.sleep(0)
        await ReferenceMemory.pop_message(self, session_id)
        return last[0] if last else None


class PopsPutBack(SlowMemory):
    async def pop_message(self, session_id: str) -> Any:
        popped = await super().pop_message(session_id)
        if popped:
            with self._store.writing() as sessions:
                sessions[session_id]["messages"].append(dict(popped))
        return popped


class UpdatesAnyRevision(SlowMemory):
    async def update_session(self, session_id: str, *, expected_revision: Any = None, **given: Any) -> Any:
        return await super().update_session(session_id, **given)


class TruncatesTooMuch(SlowMemory):
    async def update_session(self, session_id: str, *, truncate_from: Any = None, **given: Any) -> Any:
        first = (await self.get_history(session_id))[:1]
        return await super().update_session(
            session_id, truncate_from=truncate_from and first[0]["id"] if first else truncate_from, **given
        )


class ForksTheNewest(SlowMemory):
    async def fork_session(self, session_id: str, **given: Any) -> Any:
        made = await super().fork_session(session_id, **given)
        with self._store.writing() as sessions:
            del sessions[made]["messages"][:2]
        return made


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("memory", "cuts", "kinds"),
    [
        (SlowMemory, NEVER, set()),
        (SlowMemory, (0, 1, 2, *NEVER), set()),
        (PopsTwice, NEVER, {"removed twice"}),
        (PopsPutBack, NEVER, {"undeleted", "removed twice"}),
        (UpdatesAnyRevision, (0, *NEVER), {"overwritten"}),
        (TruncatesTooMuch, NEVER, {"lost"}),
        (ForksTheNewest, NEVER, {"lost"}),
    ],
)
async def test_real_changes_find_every_broken_promise(
    memory: type[SlowMemory], cuts: tuple[int, ...], kinds: set[str], tmp_path: Path
) -> None:
    """Concurrent workers pop, truncate, update, fork and get cancelled: only broken memories do not pass."""
    store = ReferenceStore()
    with closing(Journal(tmp_path / "w.jsonl")) as journal:
        async with memory(store) as one, memory(store) as other:
            handles = [Recorder(each, journal, f"handle {at}") for at, each in enumerate((one, other))]
            session = await handles[0].create_session(user_id="u")
            await asyncio.gather(*(work(handles[worker % 2], session, worker, cuts) for worker in range(6)))
    async with ReferenceMemory(store) as reader:
        found = check(History.read(tmp_path), await read_stored(reader))
    assert {violation.kind for violation in found} & kinds or not kinds
    assert kinds or found == []
