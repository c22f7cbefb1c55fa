"""Writers that keep working while a fault happens, with a journal of every call, on both backends."""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from fault_report import Fault
from raw_postgres import OPEN, fetch_rows, wait_until_none, with_application_name

from flux_memory import ConflictError, ConversationMemory, Memory, PostgresConversationMemory
from flux_memory.testkit.histories import History, Journal, Recorder, Stored, call_as_anyone, read_stored

NUMBERS: Final = "SELECT session_id, seq, id FROM messages ORDER BY session_id, seq"


def on_both_backends(name: str) -> pytest.MarkDecorator:
    """Run a test of this fault on both backends, with the argument `store`."""
    params = [
        pytest.param(backend, marks=pytest.mark.fault(name, backend=backend)) for backend in ("sqlite", "postgres")
    ]
    return pytest.mark.parametrize("store", params, indirect=True)


@dataclass(frozen=True)
class Store:
    """A store that suffers a fault."""

    backend: str
    where: str
    """A path, or a DSN without an application name."""
    directory: Path
    """The directory of the journals."""

    def open(self, timeout: float = 30.0) -> Memory:
        """Open a handle."""
        if self.backend == "sqlite":
            return ConversationMemory(self.where, timeout=timeout)
        return PostgresConversationMemory(with_application_name(self.where), timeout=timeout, min_size=1, max_size=4)

    def journal(self, round_: int) -> Path:
        """Return the directory of one round's journals."""
        directory = self.directory / str(round_)
        directory.mkdir(exist_ok=True)
        return directory

    async def read_settled(self) -> Stored:
        """Read everything once the server has finished the calls of writers that are gone."""
        numbers: dict[str, list[tuple[int, str]]] = {}
        if self.backend == "postgres":
            await wait_until_none(self.where, OPEN)
        async with self.open() as memory:
            await memory.count_sessions()
            for session, number, message in await self._numbers():
                numbers.setdefault(session, []).append((number, message))
            return await read_stored(memory, numbers)

    async def clear(self) -> None:
        """Remove everything."""
        async with self.open() as memory:
            await memory.clear_all()

    async def _numbers(self) -> list[Any]:
        if self.backend == "postgres":
            return [tuple(row) for row in await fetch_rows(self.where, NUMBERS)]
        with closing(sqlite3.connect(self.where)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            return db.execute(NUMBERS).fetchall()

    def judge(self, fault: Fault, round_: int, before: Stored | None = None) -> Stored:
        """Check a round's journals against the stored data, and return that data."""
        stored = asyncio.run(self.read_settled())
        fault.judge(History.read(self.journal(round_)), stored, before)
        return stored


async def write_messages(
    memory: Memory,
    journal: Journal,
    worker: str,
    *,
    tasks: int = 4,
    calls: int | None = None,
    told: Callable[[object], None] = lambda _: None,
    patient: bool = False,
) -> None:
    """Write to one session for each task and to a shared one: endlessly, or `calls` times; stop at the first error.

    The calls have different deadlines and start at random moments, and some are cancelled.

    Args:
        memory: The handle to write with.
        journal: Records every call.
        worker: The common name of the tasks.
        tasks: Number of tasks.
        calls: Calls of each task after it has created its session.
        told: Called once every task has written a message.
        patient: Whether each call has the handle's deadline and none is cancelled.
    """
    recorder = Recorder(memory, journal, worker)
    shared = await recorder.create_session(f"shared by {worker}", session_id=f"{worker}-shared"[:36])

    async def one(task: int) -> None:
        rng = random.Random(f"{worker}{task}")
        own = await recorder.create_session(f"of {worker}", {"task": task})
        for call in itertools.count() if calls is None else range(calls):
            session = rng.choice((own, shared))
            if patient:
                await _call(recorder, session, rng)
            else:
                await call_as_anyone(partial(_call, recorder, session, rng), rng)
            if call == 1:
                begun.append(task)
                if len(begun) == tasks:
                    told("begun")

    begun: list[int] = []
    await asyncio.gather(*(one(task) for task in range(tasks)))


async def _call(recorder: Recorder, session: str, rng: random.Random) -> None:
    kind = rng.random()
    text = "x" * rng.randrange(2000)
    if kind < 0.45:
        await recorder.add_message(session, "user", text, {"n": rng.random()})
    elif kind < 0.65:
        await recorder.add_messages(
            session, [{"role": "user", "content": f"{number} {text}"} for number in range(rng.randrange(2, 20))]
        )
    elif kind < 0.7:
        await recorder.update_session_title(session, text[:20])
    elif kind < 0.8:
        await recorder.pop_message(session)
    elif kind < 0.9:
        await _change(recorder, session, rng, text)
    elif kind < 0.92:
        await recorder.fork_session(session, user_id="copies")
    elif kind < 0.94:
        await recorder.add_message(str(uuid4()), "user", text, create=True, user_id="copies")
    elif kind < 0.945:
        await recorder.delete_sessions(user_id="copies")
    else:
        await recorder.get_history(session)


async def _change(recorder: Recorder, session: str, rng: random.Random, text: str) -> None:
    """Truncate the session as it was read, and append to it."""
    found, newest = await recorder.get_session(session), await recorder.get_history(session, 5)
    # Another task may have changed it meanwhile.
    with suppress(ConflictError):
        await recorder.update_session(
            session,
            expected_revision=found["revision"] if found else None,
            truncate_from=rng.choice(newest)["id"] if newest else None,
            merge_metadata={"n": rng.random()},
            messages=[{"role": "user", "content": text}],
        )
