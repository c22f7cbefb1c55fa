"""The checker for histories: it finds every kind of violation, and none where tasks, handles and processes worked."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import time
from asyncio import CancelledError
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from raw_postgres import rows

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    ConversationMemory,
    Memory,
    OutcomeUnknownError,
    PostgresConversationMemory,
    SessionNotFoundError,
)
from flux_memory.testkit import ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.processes import Tell, run_together
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.histories import (
    History,
    Journal,
    Operation,
    Recorder,
    Sent,
    Stored,
    StoredSession,
    call_as_anyone,
    check,
    read_stored,
)
from flux_memory.testkit.mutants import broken

NUMBERS = "SELECT session_id, seq, id FROM messages"


def moment(second: float) -> str:
    return f"2026-01-01T00:00:{second:09.6f}+00:00"


def add(*ids: str, began: float, ended: float | None = None, outcome: Any = "acknowledged", **other: Any) -> Operation:
    """An add of messages whose content is their id; by default it takes a tenth of a second."""
    sent = tuple(Sent(made, "user", made, {}) for made in ids)
    end = began + 0.1 if ended is None else ended
    method = "add_message" if len(ids) == 1 else "add_messages"
    return Operation("w", method, "s", began=began, ended=end, outcome=outcome, messages=sent, **other)


def create(began: float = 0.0, **other: Any) -> Operation:
    fields = {"title": "t", "metadata": {}, "user_id": "u"}
    made = Operation("w", "create_session", "s", began=began, ended=began + 0.1, outcome="acknowledged", fields=fields)
    return replace(made, **other)


def call(method: str, began: float, *, session: str | None = "s", **other: Any) -> Operation:
    made = Operation("w", method, session, began=began, ended=began + 0.1, outcome="acknowledged")
    return replace(made, **other)


def holding(*ids: str, numbers: Any = None, **changed: Any) -> Stored:
    """A store with one session that has these messages."""
    history = [
        {"id": made, "role": "user", "content": made, "metadata": {}, "created_at": moment(at)}
        for at, made in enumerate(ids)
    ]
    record: Any = {
        "id": "s",
        "user_id": "u",
        "title": "t",
        "created_at": moment(0),
        "updated_at": moment(59),
        "metadata": {},
        "message_count": len(ids),
    }
    session: Any = StoredSession(record | changed, history)  # type: ignore[arg-type]
    return Stored({"s": session}, numbers)


def kinds(stored: Stored, *operations: Operation, before: Stored | None = None) -> list[str]:
    return sorted({violation.kind for violation in check(History(operations), stored, before)})


A, B, C = add("a", began=1), add("b", began=2), add("c", began=3)


def altered(stored: Stored, **changed: Any) -> Stored:
    stored.sessions["s"].history[0].update(changed)  # type: ignore[typeddict-item]
    return stored


@pytest.mark.parametrize(
    ("kind", "stored", "operations"),
    [
        ("lost", holding("b"), [create(), A, B]),
        ("lost", holding(), [create(), add("a", "b", began=1)]),
        ("lost", Stored({}), [create()]),
        ("lost", Stored({}), [create(), A]),
        ("lost", holding(), [create(), call("delete_session", 0.5), create(0.7), A]),
        ("refused but stored", holding("a"), [create(), add("a", began=1, outcome="failed", error="ConflictError")]),
        ("refused but stored", holding(), [create(outcome="failed")]),
        ("from nowhere", holding("a"), [create()]),
        ("from nowhere", holding(), []),
        ("doubled", holding("a", "a"), [create(), A]),
        ("doubled", holding("a", "b", numbers={"s": [(1, "a"), (1, "b")]}), [create(), A, B]),
        ("half stored", holding("a"), [create(), add("a", "b", began=1, outcome="unknown")]),
        ("half stored", holding("b"), [create(), add("a", "b", began=1)]),
        ("altered", altered(holding("a"), content="x"), [create(), A]),
        ("altered", altered(holding("a"), role="x"), [create(), A]),
        ("altered", altered(holding("a"), metadata={"k": 1}), [create(), A]),
        ("altered", holding(title="x"), [create()]),
        ("altered", holding(title="t"), [create(), call("update_session_title", 1, fields={"title": "new"})]),
        ("altered", holding(user_id="x"), [create()]),
        (
            "altered",
            holding(metadata={"k": 1.0}),
            [create(fields={"title": "t", "metadata": {"k": 1}, "user_id": "u"})],
        ),
        ("out of order", holding("b", "a"), [create(), A, B]),
        ("out of order", holding("c", "a", "b"), [create(), A, B, C]),
        ("out of order", holding("b", "a"), [create(), A, add("b", began=2, outcome="unknown")]),
        ("out of order", holding("b", "a"), [create(), add("a", "b", began=1)]),
        ("out of order", altered(holding("a", "b"), created_at=moment(50)), [create(), A, B]),
        ("out of order", holding("a", "b", numbers={"s": [(2, "a"), (1, "b")]}), [create(), A, B]),
        ("gap", holding("a", "b", numbers={"s": [(1, "a"), (3, "b")]}), [create(), A, B]),
        ("miscounted", holding("a", message_count=2), [create(), A]),
        ("undeleted", holding(), [create(), call("delete_session", 1)]),
        ("undeleted", holding("a"), [create(), A, call("clear_all", 2, session=None), create(3)]),
        ("undeleted", Stored({}, {"s": [(1, "a")]}), [create(), A, call("delete_session", 2)]),
        ("wrong read", holding("a", "b"), [create(), A, B, call("get_history", 3, seen=("a",))]),
        ("wrong read", holding("a", "b"), [create(), A, B, call("get_history", 3, seen=("b", "a"))]),
        ("wrong read", holding("a"), [create(), A, call("get_history", 3, seen=("a", "x"))]),
        ("foreign error", holding(), [create(), add("a", began=1, outcome="unknown", error="OSError", foreign=True)]),
    ],
)
def test_every_kind_of_violation_is_found(kind: str, stored: Stored, operations: list[Operation]) -> None:
    """A broken promise is told, under its own name and in a sentence."""
    found = check(History(tuple(operations)), stored)
    assert kind in {violation.kind for violation in found}
    assert all("session" in str(violation) or "(" in str(violation) for violation in found)


@pytest.mark.parametrize(
    ("stored", "operations"),
    [
        (Stored({}), []),
        (holding("a", "b", "c"), [create(), A, B, C]),
        (holding("a"), [create(), add("a", began=1, outcome="unknown")]),
        (holding(), [create(), add("a", began=1, outcome="unknown")]),
        (holding(), [create(), add("a", "b", began=1, outcome="unknown")]),
        (holding("a", "b"), [create(), add("a", "b", began=1, outcome="unknown")]),
        (holding(), [create(), add("a", began=1, outcome="failed")]),
        (holding("a"), [create(), A, add("a", began=2, outcome="failed")]),
        (holding("a"), [create(), add("a", began=1, outcome="unknown"), add("a", began=2)]),
        (holding("b", "a"), [create(), add("a", began=1, ended=5), add("b", began=2)]),
        (holding("b", "a"), [create(), add("a", began=1, outcome="unknown"), B]),
        (holding("a"), [create(), add("a", "b", began=1, outcome="unknown"), A]),
        (Stored({}), [create(), A, call("delete_session", 2)]),
        (Stored({}), [create(), add("a", began=1, ended=3), call("delete_session", 2)]),
        (holding("a"), [create(), A, call("delete_session", 2, outcome="unknown")]),
        (Stored({}), [create(), A, call("delete_session", 2, outcome="unknown")]),
        (holding("b"), [create(), A, call("clear_all", 1.5, session=None), create(1.7), B]),
        (Stored({}), [create(outcome="unknown")]),
        (holding(title="x"), [create(), call("update_session_title", 1, outcome="unknown", fields={"title": "x"})]),
        (holding(), [create(), call("update_session_title", 1, outcome="failed", fields={"title": "x"})]),
        (holding("a", "b", numbers={"s": [(2, "b"), (1, "a")]}), [create(), A, B]),
        (holding("a", "b"), [create(), A, call("get_history", 1.5, seen=("a",)), B]),
        (holding("a", "b"), [create(), A, add("b", began=2, ended=9), call("get_history", 3, seen=("a",))]),
    ],
)
def test_what_is_allowed_is_no_violation(stored: Stored, operations: list[Operation]) -> None:
    """Overlapping calls in either order, unknown calls stored or not, and what was deleted: all of it is right."""
    assert check(History(tuple(operations)), stored) == []


def test_what_was_there_before_is_no_violation() -> None:
    """A store that was not empty is held against what it had."""
    assert kinds(holding("a", "b"), B, before=holding("a")) == []
    assert kinds(holding("b"), B, before=holding("a")) == ["lost"]
    assert kinds(holding("b", "a"), B, before=holding("a")) == ["out of order"]


class Failing(ReferenceMemory):
    """Fails as it is told, before or after the work is done."""

    error: BaseException | None = None
    after = False

    async def add_message(self, *args: Any, **kwargs: Any) -> str:
        if self.error and not self.after:
            raise self.error
        made = await super().add_message(*args, **kwargs)
        if self.error:
            raise self.error
        return made


@pytest.mark.asyncio
async def test_a_recorder_tells_failed_from_unknown(tmp_path: Path) -> None:
    """An error that says that nothing was done is a failure; one that does not know, or a cancellation, is neither."""
    inner = Failing(ReferenceStore())
    journal = Journal(tmp_path / "w.jsonl")
    async with Recorder(inner, journal, "w") as memory:
        session = await memory.create_session("t", {"k": (1, 2.0)}, user_id="u")
        await memory.add_message(session, "user", "first", {"k": -0.0})
        await memory.add_messages(session, [{"role": "user", "content": "x"}, {"role": "user", "content": "\u20ac"}])
        for inner.after, error in [
            (False, BackendUnavailableError("gone")),
            *((after, error()) for after in (False, True) for error in (OutcomeUnknownError, CancelledError, OSError)),
        ]:
            inner.error = error
            with pytest.raises(type(error)):
                await memory.add_message(session, "user", f"{inner.after} {error!r}")
        inner.error = None
        with pytest.raises(SessionNotFoundError):
            await memory.add_message("nowhere", "user", "x")
        with pytest.raises(ConflictError):
            await memory.create_session(session_id=session)
        await memory.update_session_title(session, "new")
        assert len(await memory.get_history(session)) == 6
        assert len(await memory.get_history(session, 2)) == 2
        assert await memory.count_sessions() == len(await memory.get_sessions()) == 1
        found = await memory.get_session(session)
        assert found is not None
        assert found["title"] == "new"
        stored = await read_stored(memory)
    journal.close()
    history = History.read(tmp_path)
    assert (history.count("acknowledged"), history.count("failed"), history.count("unknown")) == (6, 3, 6)
    assert [violation.kind for violation in check(history, stored)] == ["foreign error"] * 2
    assert 0 < history.longest_call() <= history.longest_outage() < 10


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("unknown", "expected"),
    [({}, ["refused but stored"]), ({"unknown": (asyncio.CancelledError, BackendUnavailableError)}, [])],
    ids=["by default", "told otherwise"],
)
async def test_an_unavailable_store_has_not_stored(unknown: Any, expected: list[str], tmp_path: Path) -> None:
    """A plain `BackendUnavailableError` is a refusal: a store that has the message all the same broke its promise."""
    inner = Failing(ReferenceStore())
    with closing(Journal(tmp_path / "w.jsonl")) as journal:
        async with Recorder(inner, journal, "w", **unknown) as memory:
            session = await memory.create_session()
            inner.error, inner.after = BackendUnavailableError("gone"), True
            with pytest.raises(BackendUnavailableError):
                await memory.add_message(session, "user", "stored")
            stored = await read_stored(memory)
    assert [violation.kind for violation in check(History.read(tmp_path), stored)] == expected


MIXED: Any = [
    (ReferenceMemory, None),
    (broken("StoresWhatItRefused", ReferenceMemory), "refused but stored"),
    (broken("LooksAtTheClockLast", ReferenceMemory), "refused but stored"),
    (broken("RefusedBatchesAreStored", ReferenceMemory), "refused but stored"),
    (broken("BatchHalfApplied", ReferenceMemory), "half stored"),
    (broken("ForgetsTheIdWhenCancelled", ReferenceMemory), "from nowhere"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("sound", "kind"), MIXED, ids=lambda each: getattr(each, "__name__", None))
async def test_callers_of_every_kind_find_what_is_broken(sound: Any, kind: str | None, tmp_path: Path) -> None:
    """With deadlines, cancellations and start times mixed on one handle, the checker sees each broken promise."""
    store = ReferenceStore()
    with closing(Journal(tmp_path / "w.jsonl")) as journal:
        async with Recorder(Slow(sound(store)), journal, "w") as memory:
            session = await memory.create_session()

            async def work(worker: int) -> list[str]:
                chance = random.Random(worker)
                add = partial(add_something, memory, session, chance)
                return [await call_as_anyone(add, chance) for _ in range(20)]

            endings = Counter(ending for each in await asyncio.gather(*map(work, range(16))) for ending in each)
    async with ReferenceMemory(store) as reader:
        found = check(History.read(tmp_path), await read_stored(reader))
    assert set(endings) >= {"answered", "left"}
    assert {violation.kind for violation in found} == ({kind} if kind else set())


class Slow:
    """A memory whose event loop is held up now and then, for longer than the shortest deadline."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self._calls = 0

    def __getattr__(self, method: str) -> Any:
        bound = getattr(self._memory, method)

        async def slow(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            if self._calls % 20 == 0:
                asyncio.get_running_loop().call_soon(time.sleep, 0.025)
            await asyncio.sleep(0)
            return await bound(*args, **kwargs)

        return slow


def add_something(memory: Memory, session: str, chance: random.Random) -> Awaitable[Any]:
    if chance.random() < 0.3:
        return memory.add_messages(session, [{"role": "user", "content": str(chance.random())} for _ in range(3)])
    return memory.add_message(session, "user", str(chance.random()))


@pytest.mark.asyncio
async def test_a_caller_with_the_handles_deadline_is_told_everything() -> None:
    """Only callers that brought a deadline of their own may be refused; any other error is the test's concern."""
    chance = random.Random(1)
    endings: Counter[str] = Counter()

    async def unavailable() -> None:
        raise BackendUnavailableError("gone")

    for _ in range(1_000):
        try:
            endings[await call_as_anyone(unavailable, chance)] += 1
        except BackendUnavailableError:
            endings["raised"] += 1
    assert min(endings[name] for name in ("refused", "raised", "left")) > 5

    async def waits() -> None:
        await asyncio.Event().wait()

    asking = asyncio.ensure_future(call_as_anyone(waits, random.Random(2)))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_killed_process_leaves_a_record(tmp_path: Path) -> None:
    """A call that began and was never answered is unknown, and half a line at the end is no error."""
    journal = Journal(tmp_path / "killed.jsonl")
    answered = journal.begin(create())
    journal.end(answered, "acknowledged")
    journal.begin(add("a", "b", began=1))
    journal.close()
    path = tmp_path / "killed.jsonl"
    path.write_bytes(path.read_bytes() + json.dumps({"begin": "x"}).encode()[:-3])
    history = History.read(path)
    assert [(one.method, one.outcome) for one in history.operations] == [
        ("create_session", "acknowledged"),
        ("add_messages", "unknown"),
    ]
    assert check(history, holding("a", "b")) == []
    assert kinds(holding("a"), *history.operations) == ["half stored"]


def test_an_empty_history_has_no_longest_call() -> None:
    """Where nothing was done, nothing took long."""
    assert (History(()).longest_call(), History(()).longest_outage()) == (0.0, 0.0)


async def work(memory: Memory, name: str, sessions: list[str]) -> None:
    """Everything at once, some of it refused, some of it cancelled."""

    async def talk(task: int) -> None:
        for number in range(6):
            session = sessions[(task + number) % len(sessions)]
            await memory.add_message(session, "user", f"{name} {task} {number}", {"n": number, "f": 1.0})
            batch: Any = [{"role": "user", "content": f"{name} {task} {number} {at}"} for at in range(3)]
            adding = asyncio.ensure_future(memory.add_messages(session, batch))
            if number % 3 == 2:
                await asyncio.sleep(0)
                adding.cancel()
            await asyncio.wait({adding})
            await memory.get_history(session)
            with pytest.raises(ConflictError):
                await memory.create_session(session_id=session)
        await memory.update_session_title(sessions[0], f"{name} {task}")
        own = await memory.create_session(name, {"task": task}, user_id=name)
        await memory.add_message(own, "user", "mine")
        if task % 2:
            await memory.delete_session(own)

    await asyncio.gather(*(talk(task) for task in range(3)))


async def everything(factory: Callable[[], Memory], journals: Path, name: str, sessions: list[str]) -> None:
    """The work of one process: two handles, three tasks on each."""
    journal = Journal(journals / f"{name}-{os.getpid()}.jsonl")
    async with Recorder(factory(), journal, f"{name}.1") as one, Recorder(factory(), journal, f"{name}.2") as other:
        await asyncio.gather(work(one, f"{name}.1", sessions), work(other, f"{name}.2", sessions))
    journal.close()


def agree(
    store: StoreUnderTest, journals: Path, numbers: Callable[[], Awaitable[dict[str, list[tuple[int, str]]]]]
) -> None:
    """Let tasks, handles and processes work at once, and hold what they recorded against what is stored."""
    journals.mkdir()

    async def prepare() -> list[str]:
        journal = Journal(journals / "first.jsonl")
        memory = Recorder(store.open(), journal, "first")
        made = [await memory.create_session(f"session {number}") for number in range(3)]
        journal.close()
        return made

    sessions = store.run(prepare)

    async def child(open_handle: Callable[[], Memory], tell: Tell) -> None:
        await everything(open_handle, journals, "child", sessions)
        tell("done")

    assert run_together(*(store.fork(child) for _ in range(3))) == [["done"]] * 3

    async def look() -> Stored:
        return await read_stored(store.open(), await numbers())

    stored = store.run(look)
    history = History.read(journals)
    assert history.count("acknowledged") > 300
    assert history.count("failed") > 100
    assert [str(violation) for violation in check(history, stored)] == []
    assert stored.numbers is not None
    assert sum(map(len, stored.numbers.values())) == sum(len(one.history) for one in stored.sessions.values())


def by_session(found: list[tuple[str, int, str]]) -> dict[str, list[tuple[int, str]]]:
    numbers: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for session, number, made in found:
        numbers[session].append((number, made))
    return numbers


def test_sqlite_agrees_with_what_its_workers_recorded(tmp_path: Path) -> None:
    """On SQLite, tasks, handles and processes that work at once lose, double, halve and shuffle nothing."""
    path = tmp_path / "chat.db"

    async def numbers() -> dict[str, list[tuple[int, str]]]:
        with closing(sqlite3.connect(path)) as connection:
            return by_session(connection.execute(NUMBERS).fetchall())

    agree(StoreUnderTest(lambda: ConversationMemory(path)), tmp_path / "journals", numbers)


def test_postgres_agrees_with_what_its_workers_recorded(tmp_path: Path, flux_postgres_clean_dsn: str) -> None:
    """On PostgreSQL, tasks, handles and processes that work at once lose, double, halve and shuffle nothing."""
    dsn = flux_postgres_clean_dsn

    async def numbers() -> dict[str, list[tuple[int, str]]]:
        return by_session(await rows(dsn, NUMBERS))

    agree(StoreUnderTest(lambda: PostgresConversationMemory(dsn)), tmp_path / "journals", numbers)
