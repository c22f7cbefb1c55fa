"""A load of writers and readers on one handle while a fault happens, and the verdict on the stored data afterwards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fault_report import Fault
from raw_postgres import fetch_rows

from flux_memory import BackendUnavailableError, ConflictError, OutcomeUnknownError, PostgresConversationMemory
from flux_memory.testkit.histories import History, Journal, Recorder, call_as_anyone, read_stored

_NUMBERS: Final = "SELECT session_id, seq, id FROM messages"
_SESSION_MESSAGES: Final = 60
_PATIENCE_SECONDS: Final = 40.0
_NOT_REPEATED: Final = (4, 5)
"""The places of pops and updates among ten calls."""


class Load:
    """Tasks on one handle that add, read, pop, update, fork and start new sessions until they are stopped.

    Their calls have different deadlines and start at random moments, and some are cancelled. `unavailable` collects the
    errors of the calls with the memory's own deadline, except for changes whose answer was lost: these cannot be
    repeated.

    Args:
        memory: The handle; its calls are recorded.
        directory: Where the journals are written.
        writers: Number of tasks.
    """

    def __init__(self, memory: Any, directory: Path, writers: int = 8) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.acknowledged = 0
        self.unavailable: list[BackendUnavailableError] = []
        self._journal = Journal(directory / "load.jsonl")
        self._memory = Recorder(memory, self._journal, "load")
        self._writers = writers
        self._stopping = False
        self._progress = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(self._writers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            self._journal.close()

    async def wait_for_calls(self, calls: int) -> None:
        """Return when this many more calls have been acknowledged.

        Raises:
            TimeoutError: the calls were not acknowledged in time.
        """
        wanted = self.acknowledged + calls
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while self.acknowledged < wanted:
                self._progress.clear()
                if failed := [task for task in self._tasks if task.done() and task.exception()]:
                    await failed[0]
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._progress.wait(), 0.5)

    def history(self) -> History:
        """Return the recorded history."""
        return History.read(self.directory)

    async def _write(self, number: int) -> None:
        turn, chance = 0, random.Random(number)
        while not self._stopping:
            session = f"{number}-{turn}"
            turn += 1
            try:
                await self._memory.create_session(f"of {number}", session_id=session)
            except BackendUnavailableError as error:
                await self._wait_after(error)
                continue
            self._count()
            for position in range(_SESSION_MESSAGES):
                if self._stopping:
                    return
                call = partial(self._one_of_many, session, position)
                try:
                    if await call_as_anyone(call, chance) == "answered":
                        self._count()
                except OutcomeUnknownError as error:
                    if position % 10 not in _NOT_REPEATED:
                        await self._wait_after(error)
                except BackendUnavailableError as error:
                    await self._wait_after(error)

    def _one_of_many(self, session: str, position: int) -> Awaitable[Any]:
        text = f"{session} {position}"
        other, memory = f"{session}-{position}", self._memory
        special: dict[int, Callable[[], Awaitable[Any]]] = {
            4: lambda: memory.pop_message(session),
            5: lambda: self._change(session, text),
            7: lambda: memory.get_history(session),
            8: lambda: memory.update_session_title(session, text),
            9: lambda: memory.fork_session(session, new_session_id=other),
            19: lambda: memory.add_message(other, "user", text, create=True, user_id="load"),
        }
        if call := special.get(position % 20, special.get(position % 10) if position % 10 < 9 else None):
            return call()
        if position % 4 == 3:
            return self._memory.add_messages(session, [{"role": "user", "content": f"{text} {n}"} for n in range(3)])
        return self._memory.add_message(session, "user", text, {"n": position})

    async def _change(self, session: str, text: str) -> None:
        """Replace the newest messages of the session as it was read."""
        found, newest = await self._memory.get_session(session), await self._memory.get_history(session, 2)
        # A change whose answer was lost may have given another revision meanwhile, and a late one another message.
        with suppress(ConflictError):
            await self._memory.update_session(
                session,
                expected_revision=found["revision"] if found else None,
                truncate_from=newest[0]["id"] if newest else None,
                merge_metadata={"changed": text},
                messages=[{"role": "user", "content": f"instead {text}"}],
            )

    async def _wait_after(self, error: BackendUnavailableError) -> None:
        self.unavailable.append(error)
        # A caller would back off like this.
        await asyncio.sleep(0.05)

    def _count(self) -> None:
        self.acknowledged += 1
        self._progress.set()


async def check_history(fault: Fault, dsn: str, history: History) -> None:
    """Read everything stored, through a new handle and directly, and check the history against it."""
    numbers: dict[str, list[tuple[int, str]]] = {}
    for session, number, message in await fetch_rows(dsn, _NUMBERS):
        numbers.setdefault(session, []).append((number, message))
    async with PostgresConversationMemory(dsn) as memory:
        fault.judge(history, await read_stored(memory, numbers))


async def run_round(
    fault: Fault,
    dsn: str,
    directory: Path,
    breaking: Callable[[Load], Awaitable[object]],
    *,
    stored_at: str | None = None,
    **arguments: Any,
) -> Load:
    """Run one round: load, fault, more load, verdict.

    Args:
        fault: Collects the figures.
        dsn: The DSN of the handle under test.
        directory: An empty directory for the journals.
        breaking: Causes the fault under load, and repairs it.
        stored_at: The DSN to read from afterwards, if it is not `dsn`.
        arguments: More arguments for the memory.
    """
    direct = stored_at or dsn
    async with PostgresConversationMemory(direct) as before:
        await before.clear_all()
    async with PostgresConversationMemory(dsn, **arguments) as memory, Load(memory, directory) as load:
        await load.wait_for_calls(20)
        await breaking(load)
        await load.wait_for_calls(20)
    await check_history(fault, direct, load.history())
    return load
