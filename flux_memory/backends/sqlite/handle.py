"""The handle of a SQLite file: opens it on first use, runs calls within their deadlines, and closes it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, Self, TypeVar

from flux_memory import records
from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.lifecycle import Lifecycle, on_any_loop, warn_never_closed
from flux_memory.backends.long_calls import LongCalls
from flux_memory.backends.observation import Observers, name_file
from flux_memory.backends.pool_stats import PoolStats
from flux_memory.backends.shared_timer import SharedTimer
from flux_memory.backends.slow_calls import SlowCalls
from flux_memory.backends.sqlite.errors import translate
from flux_memory.backends.sqlite.fetching import fetch
from flux_memory.backends.sqlite.opening import connect
from flux_memory.backends.sqlite.queue import Work, not_begun
from flux_memory.backends.sqlite.recording import RecordingConnection
from flux_memory.backends.sqlite.worker import SQLiteWorker
from flux_memory.errors import BackendUnavailableError, InvalidInputError, InvalidTypeError

Result = TypeVar("Result")

PING: Final = "SELECT count(*) FROM (SELECT version FROM flux_memory_schema LIMIT 1)"


class SQLiteHandle:
    """A thread with a connection, opened on first use, and the way to run calls on it; see `ConversationMemory`."""

    def __init__(
        self,
        db_path: str | os.PathLike[str] | None = None,
        *,
        timeout: float = 30.0,
        slow_call_seconds: float | None = None,
    ) -> None:
        if db_path is None:
            from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic only where it is needed

            db_path = load_settings().sqlite_path
        path = os.fspath(db_path) if isinstance(db_path, os.PathLike) else db_path
        if not isinstance(path, str):
            raise InvalidTypeError(f"db_path must be a str or a path, not {type(db_path).__name__}")
        try:
            name = os.fsencode(path)
        except UnicodeEncodeError:
            name = b""
        if not name or b"\x00" in name:
            raise InvalidInputError("db_path is empty, has a NUL or a lone surrogate; give the path of a file")
        self.db_path: Final = path
        if "://" in self.db_path:
            raise InvalidInputError("db_path is a URL; give the path alone, such as ./data/sqlite.db")
        self.timeout: Final = records.check_seconds("timeout", timeout)
        slow = None
        if slow_call_seconds is not None:
            slow = SlowCalls(records.check_seconds("slow_call_seconds", slow_call_seconds), path)
        observers = Observers(name_file(path), slow)
        self._bind(partial(_open_worker, path, self.timeout, observers), SQLiteWorker.finish, observers)

    def _bind(
        self,
        open_worker: Callable[[], Coroutine[Any, Any, SQLiteWorker]],
        close_worker: Callable[[SQLiteWorker, float], Awaitable[None]],
        observers: Observers,
    ) -> None:
        make_twin = partial(_make_twin, type(self), self.db_path, self.timeout)
        self._life: Lifecycle[SQLiteWorker] = Lifecycle(open_worker, close_worker, self.timeout, make_twin, observers)
        self._long = LongCalls(self._life)

    def pool_stats(self) -> PoolStats:
        """Return the figures of the thread's connection: sizes, waits and counters. Costs a few microseconds.

        It may be called at any time and from any thread, also before the first call and after `close()`.
        """
        return self._life.observers.pool_stats()

    @on_any_loop
    async def ping(self) -> float:
        """Return the seconds of a round trip to the store, on the way that every call takes.

        The first ping opens the store, as a first call does.

        Raises:
            BackendUnavailableError: The store did not answer within the deadline.
            SchemaError: The database's schema cannot be used.
        """
        began = time.perf_counter()
        await self._read(partial(fetch, PING, ()))
        return time.perf_counter() - began

    async def close(self) -> None:
        await self._life.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, 'db_path', 'not opened')!r})"

    def __del__(self) -> None:
        life: Lifecycle[SQLiteWorker] | None = getattr(self, "_life", None)
        if life is not None and life.is_in_use:
            warn_never_closed(self)
            life.abandon()
            if life.resource is not None:
                life.resource.abandon()

    def _read(self, work: Work[Result]) -> Awaitable[Result]:
        return self._run(SQLiteWorker.read, work, seconds_for(self.timeout))

    def _write(self, work: Work[Result], seconds: float | None = None) -> Awaitable[Result]:
        return self._run(SQLiteWorker.write, work, seconds_for(self.timeout) if seconds is None else seconds)

    async def _run(
        self,
        call: Callable[[SQLiteWorker, Work[Result], float, SharedTimer], Awaitable[Result]],
        work: Work[Result],
        seconds: float,
    ) -> Result:
        """Run a read or a write on the open store, within the seconds that are left of its deadline."""
        life = self._life
        with life.in_flight:
            try:
                if (worker := life.open_now) is None:
                    worker, seconds = await self._opened(seconds)
                return await call(worker, work, seconds, life.timer)
            except Exception as error:
                translated = translate(error, self.db_path)
                if translated is error:
                    raise
                raise translated from error

    async def _opened(self, seconds: float) -> tuple[SQLiteWorker, float]:
        """Return the open worker, and the seconds that are left of the call's deadline."""
        ends = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                worker = await self._life.opened()
        except TimeoutError as error:
            raise BackendUnavailableError(not_begun(seconds)) from error
        return worker, max(0.0, ends - time.monotonic())


def _make_twin(kind: type[SQLiteHandle], path: str, timeout: float, life: Lifecycle[SQLiteWorker]) -> SQLiteHandle:
    """Return another handle on the same file, for calls from other event loops; `:memory:` is the same connection."""
    twin = kind.__new__(kind)
    SQLiteHandle.__init__(twin, path, timeout=timeout)
    observers = life.observers
    if path == ":memory:":
        twin._bind(life.share, _leave_open, observers)  # noqa: SLF001 - the same module
    else:
        opener = partial(_open_worker, path, timeout, observers)
        twin._bind(opener, SQLiteWorker.finish, observers)  # noqa: SLF001 - the same module
    return twin


async def _leave_open(worker: SQLiteWorker, seconds: float) -> None:
    """Leave a shared connection to the handle that owns it."""


async def _open_worker(path: str, timeout: float, observers: Observers) -> SQLiteWorker:  # noqa: ASYNC109 - given to SQLite
    kind = RecordingConnection if observers.records_statements else sqlite3.Connection
    worker = SQLiteWorker(partial(connect, path, timeout, kind=kind), observers)
    timer = SharedTimer(asyncio.get_running_loop())
    try:
        await worker.open(timeout, timer)
    finally:
        timer.stop()
    return worker
