"""Tests the recorder of histories, and that real concurrent work on both engines passes the checker."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from asyncio import CancelledError
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from raw_postgres import fetch_rows

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
    Recorder,
    Stored,
    call_as_anyone,
    check,
    read_stored,
)
from flux_memory.testkit.mutants import broken

NUMBERS = "SELECT session_id, seq, id FROM messages"


class FailingMemory(ReferenceMemory):
    """Fails on request, before or after the work is done."""

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
    """An error that says that nothing was done is a failure; an unknown outcome or a cancellation is neither."""
    inner = FailingMemory(ReferenceStore())
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
    """A plain `BackendUnavailableError` is a refusal: a store that has the message nonetheless broke its promise."""
    inner = FailingMemory(ReferenceStore())
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
async def test_mixed_callers_find_every_broken_promise(sound: Any, kind: str | None, tmp_path: Path) -> None:
    """With deadlines, cancellations and start times mixed on one handle, the checker sees each broken promise."""
    store = ReferenceStore()
    with closing(Journal(tmp_path / "w.jsonl")) as journal:
        async with Recorder(StallingMemory(sound(store)), journal, "w") as memory:
            session = await memory.create_session()

            async def work(worker: int) -> list[str]:
                chance = random.Random(worker)
                add = partial(add_any, memory, session, chance)
                return [await call_as_anyone(add, chance) for _ in range(20)]

            endings = Counter(ending for each in await asyncio.gather(*map(work, range(16))) for ending in each)
    async with ReferenceMemory(store) as reader:
        found = check(History.read(tmp_path), await read_stored(reader))
    assert set(endings) >= {"answered", "left"}
    assert {violation.kind for violation in found} == ({kind} if kind else set())


class StallingMemory:
    """A memory whose event loop stalls now and then, for longer than the shortest deadline."""

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


def add_any(memory: Memory, session: str, chance: random.Random) -> Awaitable[Any]:
    if chance.random() < 0.3:
        return memory.add_messages(session, [{"role": "user", "content": str(chance.random())} for _ in range(3)])
    return memory.add_message(session, "user", str(chance.random()))


@pytest.mark.asyncio
async def test_only_a_call_with_its_own_deadline_may_be_refused() -> None:
    """Only a call with its own deadline may be refused; any other error fails the test."""
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


async def make_mixed_calls(memory: Memory, name: str, sessions: list[str]) -> None:
    """Make calls of every kind, including refused and cancelled ones."""

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


async def run_two_handles(factory: Callable[[], Memory], journals: Path, name: str, sessions: list[str]) -> None:
    """Work in one process with two handles and three tasks on each."""
    journal = Journal(journals / f"{name}-{os.getpid()}.jsonl")
    async with Recorder(factory(), journal, f"{name}.1") as one, Recorder(factory(), journal, f"{name}.2") as other:
        await asyncio.gather(
            make_mixed_calls(one, f"{name}.1", sessions), make_mixed_calls(other, f"{name}.2", sessions)
        )
    journal.close()


def check_concurrent_work(
    store: StoreUnderTest, journals: Path, numbers: Callable[[], Awaitable[dict[str, list[tuple[int, str]]]]]
) -> None:
    """Let tasks, handles and processes work concurrently, and check their records against the stored data."""
    journals.mkdir()

    async def prepare() -> list[str]:
        journal = Journal(journals / "first.jsonl")
        memory = Recorder(store.open(), journal, "first")
        made = [await memory.create_session(f"session {number}") for number in range(3)]
        journal.close()
        return made

    sessions = store.run(prepare)

    async def child(open_handle: Callable[[], Memory], tell: Tell) -> None:
        await run_two_handles(open_handle, journals, "child", sessions)
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


def group_by_session(found: list[tuple[str, int, str]]) -> dict[str, list[tuple[int, str]]]:
    numbers: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for session, number, made in found:
        numbers[session].append((number, made))
    return numbers


def test_concurrent_work_on_sqlite_matches_its_records(tmp_path: Path) -> None:
    """On SQLite, concurrent tasks, handles and processes lose, duplicate, split and reorder nothing."""
    path = tmp_path / "chat.db"

    async def numbers() -> dict[str, list[tuple[int, str]]]:
        with closing(sqlite3.connect(path)) as connection:
            return group_by_session(connection.execute(NUMBERS).fetchall())

    check_concurrent_work(StoreUnderTest(lambda: ConversationMemory(path)), tmp_path / "journals", numbers)


def test_concurrent_work_on_postgres_matches_its_records(tmp_path: Path, flux_memory_postgres_dsn: str) -> None:
    """On PostgreSQL, concurrent tasks, handles and processes lose, duplicate, split and reorder nothing."""
    dsn = flux_memory_postgres_dsn

    async def numbers() -> dict[str, list[tuple[int, str]]]:
        return group_by_session(await fetch_rows(dsn, NUMBERS))

    check_concurrent_work(StoreUnderTest(lambda: PostgresConversationMemory(dsn)), tmp_path / "journals", numbers)
