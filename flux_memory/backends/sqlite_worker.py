"""One SQLite connection on one thread: calls that gather go there together, writes into one durable transaction."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, TypeVar

import aiosqlite

from flux_memory.backends.sqlite_errors import is_busy, leaves_commit_unknown
from flux_memory.backends.sqlite_file import OpenFile
from flux_memory.errors import BackendUnavailableError, FluxMemoryError, OutcomeUnknownError

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
"""Runs on the thread. A write raises errors of ours only before it has changed anything."""

_MOST_TOGETHER: Final = 256
"""Calls that the thread takes at once, and so writes of one transaction; more would keep others waiting."""
_ANSWERED_WITHIN: Final = 0.002
"""Seconds of reading after which those that are done get their answers, though others that came along wait."""
LOCK_SLICE: Final = 0.02
"""Seconds for which SQLite waits for a lock at a time; in between others get their turn, and deadlines are kept."""
_REST_WITHIN: Final = 5.0
"""Seconds that a fork waits for the thread to come to rest."""
_STEPS: Final = 1000
"""Instructions of SQLite's virtual machine between two looks at the clock."""
_GRACE: Final = 0.5
"""Seconds past a deadline until the caller stops waiting for the thread to say so itself."""


class _Job(Generic[Result]):
    """One call: its work, its caller's future, and the `time.monotonic()` by which it must have ended."""

    __slots__ = ("begun", "deadline", "expired", "future", "loop", "work", "writes")

    def __init__(self, work: Work[Result], timeout: float, *, writes: bool = False) -> None:
        self.work = work
        self.writes = writes
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Result] = self.loop.create_future()
        self.deadline = time.monotonic() + timeout
        # The thread sets one and then reads the other, the event loop the reverse: one of them sees both.
        self.begun = False
        self.expired = False

    def begin(self) -> bool:
        """Tell the thread whether somebody still waits for the call; from now on its outcome may be unknown."""
        self.begun = True
        return not self.expired and not self.future.done()

    def given_up(self) -> bool:
        """Tell whether nobody waits for the call any more, or nobody should."""
        return self.future.done() or time.monotonic() >= self.deadline


_Outcome = tuple[_Job[Any], Any, BaseException | None]


class SQLiteWorker(aiosqlite.Connection):
    """aiosqlite's connection and its thread, with two ways in: `read` and `write`.

    A job runs whole on the thread or not at all, so a caller that is cancelled leaves nothing half done, and no
    transaction is ever open between two jobs.
    """

    def __init__(self, opener: Callable[[], tuple[sqlite3.Connection, OpenFile]]) -> None:
        super().__init__(self._open_file, iter_chunk_size=64)
        self._opener = opener
        # A handle that was never closed must not keep the interpreter from ending.
        self._thread.daemon = True
        self._jobs: deque[_Job[Any]] = deque()
        self._called = False
        self._given_up = False
        self._running_job: _Job[Any] | None = None
        self._at_rest = threading.Lock()
        _WORKERS.add(self)

    def __del__(self) -> None:
        """Say nothing: the memory that owns the worker warns, and stops the thread."""

    async def open(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds a thread
        """Start the thread and open the connection on it."""
        job: _Job[None] = _Job(_nothing, timeout)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise BackendUnavailableError(
                f"SQLite's thread cannot be started: {error}; raise the process's limit of threads or memory"
            ) from error
        self._tx.put_nowait((None, partial(self._open_on_thread, job)))
        expiry = job.loop.call_later(timeout + _GRACE, _expire, job, timeout)
        try:
            await job.future
        except BaseException:
            self.abandon()
            raise
        finally:
            expiry.cancel()

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
        """Let the thread do what is queued, close the connection, and wait for both.

        What still waits for a lock after `timeout` seconds, or is not done reading, is given up.
        """
        stopped: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        # A call of this very moment is on the list, and the thread is told of it only once the loop is idle.
        self._tx.put_nowait((None, self._run_gathered))
        self._stop(stopped)
        await asyncio.wait([stopped], timeout=timeout)
        self._given_up = True
        await asyncio.wait([stopped], timeout=_GRACE)
        if stopped.done():
            self._thread.join()

    def close_copy(self) -> None:
        """Close a forked child's copy of the connection, which leaves the parent's alone."""
        with suppress(sqlite3.Error):
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _stop(self, stopped: asyncio.Future[object] | None) -> None:
        self._running = False
        self._tx.put_nowait((None, self._close_on_thread))
        self._tx.put_nowait((stopped, _stop_sentinel))

    def _open_on_thread(self, job: _Job[None]) -> None:
        # Kept here, not handed over: whoever asked may be gone by now, and it must still be closed.
        try:
            with self._at_rest:
                self._connection = self._connector()
        except Exception as error:  # noqa: BLE001 - the caller gets it
            _deliver([(job, None, error)])
        else:
            _deliver([(job, None, None)])

    def _open_file(self) -> sqlite3.Connection:
        db, self._file = self._opener()
        db.set_progress_handler(self._is_given_up, _STEPS)
        return db

    def _is_given_up(self) -> bool:
        """Stop a statement whose caller does not wait any more, so that others get their turn."""
        job = self._running_job
        return job is not None and self._ends(job)

    def _ends(self, job: _Job[Any]) -> bool:
        return self._given_up or job.given_up()

    def _close_on_thread(self) -> None:
        with self._at_rest:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    async def _outcome(self, job: _Job[Result], timeout: float) -> Result:  # noqa: ASYNC109 - bounds a thread
        self._jobs.append(job)
        if not self._called:
            self._called = True
            # Once the event loop has nothing else to do: whoever calls until then comes along, and the thread does not
            # compete with the loop for the interpreter.
            job.loop.call_soon(self._tx.put_nowait, (None, self._run_gathered))
        expiry = job.loop.call_later(timeout + _GRACE, _expire, job, timeout)
        try:
            return await job.future
        finally:
            expiry.cancel()

    def _run_gathered(self) -> None:
        # From here on whoever comes calls the thread again; whoever came before is among the jobs.
        self._called = False
        writes: list[_Job[Any]] = []
        while self._jobs or writes:
            with self._at_rest:
                # Writes that wait for a lock keep no read waiting.
                writes += self._run_reads(min(len(self._jobs), _MOST_TOGETHER))
                if writes:
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
            if job.writes:
                writes.append(job)
                continue
            if not job.begin():
                continue
            outcome = self._attempt(job)
            if is_busy(outcome[2]) and not self._ends(job):
                self._jobs.append(job)
                continue
            outcomes.append(outcome)
            if time.monotonic() >= answering:
                _deliver(outcomes)
                outcomes = []
                answering = time.monotonic() + _ANSWERED_WITHIN
        _deliver(outcomes)
        return writes

    def _commit(self, jobs: list[_Job[Any]]) -> list[_Job[Any]]:
        """Run jobs in one transaction and tell their callers; return those to be tried again."""
        db = self._conn
        try:
            self._file.look_before_write()
            db.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, OSError, FluxMemoryError) as error:
            waiting = [job for job in jobs if is_busy(error) and not self._ends(job)]
            _deliver([(job, None, error) for job in jobs if job not in waiting])
            return waiting
        jobs = [job for job in jobs if job.begin()]
        outcomes: list[_Outcome] = []
        try:
            for job in jobs:
                outcomes.append(self._attempt(job))
                _raise_unless_ours(outcomes[-1][2])
            self._make_durable()
        except Exception as error:  # noqa: BLE001 - each caller gets it as its own outcome
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            for job in jobs:
                job.begun = isinstance(error, OutcomeUnknownError)
            if len(jobs) == 1 or isinstance(error, OutcomeUnknownError):
                _deliver([(job, None, error) for job in jobs])
                return []
            # One bad job fails alone: its neighbours get a transaction each.
            return [waiting for job in jobs for waiting in self._commit([job])]
        _deliver(outcomes)
        return []

    def _attempt(self, job: _Job[Any]) -> _Outcome:
        self._running_job = job
        try:
            if not job.writes:
                self._file.look_before_read()
            return job, job.work(self._conn), None
        except Exception as error:  # noqa: BLE001 - the caller gets it
            return job, None, error
        finally:
            self._running_job = None

    def _make_durable(self) -> None:
        """Commit; a failure of which nobody knows whether it is one says so."""
        try:
            self._conn.execute("COMMIT")
            self._file.note_commit()
        except sqlite3.Error as error:
            if not leaves_commit_unknown(error):
                raise
            raise OutcomeUnknownError(
                f"SQLite: {error}: the disk failed or is full, and whether the call took effect is not known; see "
                "the system's log, and retry with the same id"
            ) from error


def _expire(job: _Job[Any], timeout: float) -> None:
    if job.future.done():
        return
    job.expired = True
    if job.begun and job.writes:
        job.future.set_exception(
            OutcomeUnknownError(
                f"SQLite did not answer within {timeout:g} s; whether the call took effect is not known. Raise "
                "timeout=, or look for what keeps the disk busy"
            )
        )
    else:
        job.future.set_exception(BackendUnavailableError(not_begun(timeout)))


def not_begun(timeout: float) -> str:
    """Return the message of a call that ended before its turn came."""
    return (
        f"SQLite did not answer within {timeout:g} s, and nothing was stored; raise timeout=, or look for what keeps "
        "the file or the disk busy"
    )


def _nothing(db: sqlite3.Connection) -> None:
    """Be the work of a call that only waits."""


def _raise_unless_ours(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, FluxMemoryError):
        raise error


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


_WORKERS: Final[weakref.WeakSet[SQLiteWorker]] = weakref.WeakSet()
_STOPPED: Final[list[SQLiteWorker]] = []
"""The workers that wait for a fork that is under way."""


def _stop_all() -> None:
    for worker in list(_WORKERS):
        if worker._at_rest.acquire(timeout=_REST_WITHIN):  # noqa: SLF001 - the same module
            _STOPPED.append(worker)


def _go_on() -> None:
    while _STOPPED:
        _STOPPED.pop()._at_rest.release()  # noqa: SLF001 - the same module


def _close_in_child() -> None:
    while _STOPPED:
        _STOPPED.pop().close_copy()


if hasattr(os, "register_at_fork"):
    # SQLite keeps a process's locks in memory, which a child would take for its own: that it holds them, and that it
    # must wait for them. So nothing is under way while the process is copied, and the copy is closed.
    os.register_at_fork(before=_stop_all, after_in_parent=_go_on, after_in_child=_close_in_child)


def _stop_sentinel() -> object:
    return aiosqlite.core._STOP_RUNNING_SENTINEL  # noqa: SLF001 - how aiosqlite's thread is told to end
