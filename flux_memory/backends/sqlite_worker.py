"""One SQLite connection on one thread: calls that gather go there together, writes into one durable transaction."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, TypeVar

import aiosqlite

from flux_memory.errors import BackendUnavailableError, FluxMemoryError

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
"""Runs on the thread. A write raises errors of ours only before it has changed anything."""

_MOST_TOGETHER: Final = 256
"""Calls that the thread takes at once, and so writes of one transaction; more would keep others waiting."""
_ANSWERED_WITHIN: Final = 0.002
"""Seconds of reading after which those that are done get their answers, though others that came along wait."""
_CLOSE_ENOUGH_MS: Final = 100
"""How much longer than its deadline a job may wait for a lock."""
_GRACE: Final = 0.5
"""Seconds past a deadline until the caller stops waiting for the thread to say so itself."""


class _Job(Generic[Result]):
    """One call: its work, its caller's future, and the `time.monotonic()` by which it must have begun."""

    __slots__ = ("deadline", "future", "loop", "work", "writes")

    def __init__(self, work: Work[Result], timeout: float, *, writes: bool = False) -> None:
        self.work = work
        self.writes = writes
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Result] = self.loop.create_future()
        self.deadline = time.monotonic() + timeout


_Outcome = tuple[_Job[Any], Any, BaseException | None]


class SQLiteWorker(aiosqlite.Connection):
    """aiosqlite's connection and its thread, with two ways in: `read` and `write`.

    A job runs whole on the thread or not at all, so a caller that is cancelled leaves nothing half done, and no
    transaction is ever open between two jobs.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        # A handle that was never closed must not keep the interpreter from ending.
        self._thread.daemon = True
        self._jobs: deque[_Job[Any]] = deque()
        self._called = False
        self._busy_timeout = 0

    def __del__(self) -> None:
        """Say nothing: the memory that owns the worker warns, and stops the thread."""

    async def open(self) -> None:
        """Start the thread and open the connection on it."""
        job: _Job[None] = _Job(_nothing, 0)
        self._thread.start()
        self._tx.put_nowait((None, partial(self._open_on_thread, job)))
        try:
            await job.future
        except BaseException:
            self.abandon()
            raise

    async def read(self, work: Work[Result], timeout: float) -> Result:  # noqa: ASYNC109 - given to SQLite as well
        """Run a read on the thread."""
        return await self._outcome(_Job(work, timeout), timeout)

    async def write(self, work: Work[Result], timeout: float) -> Result:  # noqa: ASYNC109 - given to SQLite as well
        """Run a write on the thread, in one transaction with whatever has gathered; return once it is durable."""
        return await self._outcome(_Job(work, timeout, writes=True), timeout)

    def abandon(self) -> None:
        """End the thread without waiting for it, from wherever this is called."""
        self._stop(None)

    async def finish(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds a thread
        """Let the thread do what is queued, close the connection, and wait for both."""
        stopped: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._stop(stopped)
        await asyncio.wait([stopped], timeout=timeout)
        if stopped.done():
            self._thread.join()

    def _stop(self, stopped: asyncio.Future[object] | None) -> None:
        self._running = False
        self._tx.put_nowait((None, self._close_on_thread))
        self._tx.put_nowait((stopped, _stop_sentinel))

    def _open_on_thread(self, job: _Job[None]) -> None:
        # Kept here, not handed over: whoever asked may be gone by now, and it must still be closed.
        try:
            self._connection = self._connector()
        except Exception as error:  # noqa: BLE001 - the caller gets it
            _deliver([(job, None, error)])
        else:
            _deliver([(job, None, None)])

    def _close_on_thread(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _outcome(self, job: _Job[Result], timeout: float) -> Result:  # noqa: ASYNC109 - bounds a thread
        self._jobs.append(job)
        if not self._called:
            self._called = True
            self._tx.put_nowait((None, self._run_gathered))
        expiry = job.loop.call_later(timeout + _GRACE, _expire, job, timeout)
        try:
            return await job.future
        finally:
            expiry.cancel()

    def _run_gathered(self) -> None:
        # From here on whoever comes calls the thread again; whoever came before is among the jobs.
        self._called = False
        while self._jobs:
            writes = self._run_reads(min(len(self._jobs), _MOST_TOGETHER))
            while writes:
                writes = self._commit(writes)

    def _run_reads(self, most: int) -> list[_Job[Any]]:
        """Take so many jobs, run the reads among them, and return the writes.

        No list of the jobs is kept: what a caller has got and is done with makes room for what is read next.
        """
        writes: list[_Job[Any]] = []
        outcomes: list[_Outcome] = []
        answering = time.monotonic() + _ANSWERED_WITHIN
        for _ in range(most):
            job = self._jobs.popleft()
            if job.future.done():
                continue
            if job.writes:
                writes.append(job)
                continue
            self._wait_for_locks_until(job.deadline)
            outcomes.append(_attempt(job, self._conn))
            if time.monotonic() >= answering:
                _deliver(outcomes)
                outcomes = []
                answering = time.monotonic() + _ANSWERED_WITHIN
        _deliver(outcomes)
        return writes

    def _wait_for_locks_until(self, deadline: float) -> None:
        left = max(1, int((deadline - time.monotonic()) * 1000))
        # Close enough is left as it is: the statement costs as much as a small read.
        if not left <= self._busy_timeout <= left + _CLOSE_ENOUGH_MS:
            self._conn.execute(f"PRAGMA busy_timeout = {left}")
            self._busy_timeout = left

    def _commit(self, jobs: list[_Job[Any]]) -> list[_Job[Any]]:
        """Run jobs in one transaction and tell their callers; return those to be tried again."""
        db = self._conn
        try:
            self._wait_for_locks_until(min(job.deadline for job in jobs))
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            now = time.monotonic()
            waiting = [job for job in jobs if is_busy(error) and job.deadline > now]
            _deliver([(job, None, error) for job in jobs if job not in waiting])
            return waiting
        outcomes: list[_Outcome] = []
        try:
            for job in jobs:
                outcomes.append(_attempt(job, db))
                _raise_unless_ours(outcomes[-1][2])
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - each caller gets it as its own outcome
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            if len(jobs) == 1:
                _deliver([(jobs[0], None, error)])
                return []
            # One bad job fails alone: its neighbours get a transaction each.
            return [waiting for job in jobs for waiting in self._commit([job])]
        _deliver(outcomes)
        return []


def _expire(job: _Job[Any], timeout: float) -> None:
    if not job.future.done():
        job.future.set_exception(
            BackendUnavailableError(
                f"SQLite did not answer within {timeout} s; whether the call took effect is not known. "
                "Raise timeout=, or look for what keeps the disk busy"
            )
        )


def _nothing(db: sqlite3.Connection) -> None:
    """Be the work of a call that only waits."""


def _attempt(job: _Job[Any], db: sqlite3.Connection) -> _Outcome:
    try:
        return job, job.work(db), None
    except Exception as error:  # noqa: BLE001 - the caller gets it
        return job, None, error


def _raise_unless_ours(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, FluxMemoryError):
        raise error


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether somebody else's lock was in the way."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _deliver(outcomes: list[_Outcome]) -> None:
    if outcomes:
        # A closed event loop has no callers left to tell.
        with suppress(RuntimeError):
            outcomes[0][0].loop.call_soon_threadsafe(_settle, outcomes)


def _settle(outcomes: list[_Outcome]) -> None:
    for job, result, error in outcomes:
        if job.future.done():
            continue
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)


def _stop_sentinel() -> object:
    return aiosqlite.core._STOP_RUNNING_SENTINEL  # noqa: SLF001 - how aiosqlite's thread is told to end
