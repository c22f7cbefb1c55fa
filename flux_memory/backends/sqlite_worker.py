"""One SQLite connection on one thread: calls that gather go there together, writes into one durable transaction."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
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
"""Reads that the thread answers in a row, and writes of one transaction; more would keep others waiting."""
_ANSWERED_WITHIN: Final = 0.002
"""Seconds of reading after which those that are done get their answers, though others that came along wait."""
LOCK_SLICE: Final = 0.02
"""Seconds for which SQLite waits for a lock at a time; in between, reads get their turn."""
_REST_WITHIN: Final = 5.0
"""Seconds that a fork waits for the thread to come to rest."""
_STEPS: Final = 1000
"""Instructions of SQLite's virtual machine between two looks at the clock."""
_GRACE: Final = 0.5
"""Seconds past its deadline that a call waits for its outcome once the thread has taken it."""


class _Job(Generic[Result]):
    """One call: its work, its caller's future, and the outcome once the thread has `answered`."""

    __slots__ = ("answered", "deadline", "error", "future", "queue", "result", "timeout", "timer", "work")

    def __init__(self, work: Work[Result], queue: _Queue, timeout: float) -> None:
        self.work = work
        self.queue = queue
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.answered = False
        self.result: Any = None
        self.error: BaseException | None = None

    def given_up(self) -> bool:
        """Return whether the caller is gone, or its deadline has passed."""
        return self.future.done() or time.monotonic() >= self.deadline

    def refusal(self) -> BaseException:
        """Return the error of a call that the thread did not run."""
        return self.queue.lock_error or BackendUnavailableError(not_begun(self.timeout))


class _Queue:
    """Calls that wait for the thread, in order.

    The thread takes a call out to run it; the caller takes it out to leave. Each is one atomic operation, so only one
    of them gets it: a call that was refused or cancelled while it waited is not run.
    """

    def __init__(self, *, writes: bool) -> None:
        self.writes: Final = writes
        self.lock_error: BaseException | None = None
        """What SQLite says of another process's lock, while the calls wait for that."""
        self._jobs: OrderedDict[_Job[Any], bool] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    def append(self, job: _Job[Any]) -> None:
        self._jobs[job] = True

    def withdraw(self, job: _Job[Any]) -> bool:
        """Return whether the call was still waiting; now it is not."""
        return self._jobs.pop(job, False)

    def take(self) -> _Job[Any] | None:
        """Take out the first call whose caller still waits."""
        while self._jobs:
            # Empty all the same, if the last caller leaves at this very moment.
            with suppress(KeyError):
                job, _ = self._jobs.popitem(last=False)
                if not job.future.done():
                    return job
        return None

    def put_back(self, job: _Job[Any]) -> None:
        """Put a call that was taken out before all others."""
        self._jobs[job] = True
        with suppress(KeyError):
            self._jobs.move_to_end(job, last=False)


class SQLiteWorker:
    """A connection on aiosqlite's thread, with two ways in: `read` and `write`.

    A job runs whole on the thread or not at all, so a caller that is cancelled leaves nothing half done, and no
    transaction is ever open between two jobs.
    """

    def __init__(self, opener: Callable[[], tuple[sqlite3.Connection, OpenFile]]) -> None:
        self._opener = opener
        self._db: sqlite3.Connection | None = None
        self._driver: aiosqlite.Connection | None = None
        self._reads = _Queue(writes=False)
        self._writes = _Queue(writes=True)
        self._together = _MOST_TOGETHER
        self._called = False
        self._given_up = False
        self._running_job: _Job[Any] | None = None
        self._at_rest = threading.Lock()
        self._ended: Future[None] = Future()
        _WORKERS.add(self)

    async def open(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds a thread
        """Start the thread and open the connection on it."""
        job: _Job[None] = _Job(lambda _: None, self._reads, timeout)
        self._send(partial(self._open_on_thread, job))
        try:
            await self._outcome(job)
        except BaseException:
            self.abandon()
            raise

    async def read(self, work: Work[Result], timeout: float) -> Result:  # noqa: ASYNC109 - given to SQLite as well
        """Run a read on the thread."""
        return await self._call(_Job(work, self._reads, timeout))

    async def write(self, work: Work[Result], timeout: float) -> Result:  # noqa: ASYNC109 - given to SQLite as well
        """Run a write on the thread, in one transaction with the others that wait; return once it is durable."""
        return await self._call(_Job(work, self._writes, timeout))

    def abandon(self) -> None:
        """End the thread without waiting for it, from any thread."""
        if not self._ended.done():
            self._send(self._close_on_thread)

    async def finish(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds a thread
        """Let the thread do what is queued, close the connection, and wait for both. Safe to call again.

        What still waits for a lock after `timeout` seconds, or is not done reading, is given up.
        """
        closed = asyncio.get_running_loop().create_future()
        self._ended.add_done_callback(partial(_tell, closed))
        if not self._ended.done():
            # A call of this very moment is queued, and the thread is told of it only once the loop is idle.
            self._send(self._run_gathered)
            self._send(self._close_on_thread)
        await asyncio.wait([closed], timeout=timeout)
        self._given_up = True
        await asyncio.wait([closed], timeout=_GRACE)
        if closed.done() and self._driver is not None:
            self._driver._thread.join(_GRACE)  # noqa: SLF001 - aiosqlite does not wait for its thread

    def close_copy(self) -> None:
        """Close a forked child's copy of the connection, which leaves the parent's alone."""
        with suppress(sqlite3.Error):
            if self._db is not None:
                self._db.close()
                self._db = None

    def _send(self, function: Callable[[], object]) -> None:
        """Have the thread run a function. A stray exception may have ended the thread: then it gets another one."""
        # aiosqlite has no public way to run a function of ours, nor to make its thread a daemon, without which a
        # handle that was never closed would keep the interpreter from ending.
        if self._driver is None or not self._driver._thread.is_alive():  # noqa: SLF001
            self._driver = aiosqlite.Connection(partial(sqlite3.connect, ":memory:"), iter_chunk_size=64)
            self._driver._thread.daemon = True  # noqa: SLF001
            try:
                self._driver._thread.start()  # noqa: SLF001
            except RuntimeError as error:
                raise BackendUnavailableError(
                    f"SQLite's thread cannot be started: {error}; raise the process's limit of threads or memory"
                ) from error
        self._driver._tx.put_nowait((None, function))  # noqa: SLF001

    def _open_on_thread(self, job: _Job[None]) -> None:
        # Kept here, not handed over: the caller may be gone by now, and it must still be closed.
        try:
            with self._at_rest:
                self._db, self._file = self._opener()
                self._db.set_progress_handler(self._is_given_up, _STEPS)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            job.error = error
        _deliver([job])

    def _is_given_up(self) -> bool:
        """Stop a statement whose caller does not wait any more, so that others get their turn."""
        job = self._running_job
        return job is not None and self._ends(job)

    def _ends(self, job: _Job[Any]) -> bool:
        return self._given_up or job.given_up()

    def _close_on_thread(self) -> None:
        try:
            with self._at_rest:
                self.close_copy()
            for queue in (self._reads, self._writes):
                while (job := queue.take()) is not None:
                    job.error = job.refusal()
                    _deliver([job])
        finally:
            if self._driver is not None:
                self._driver.stop()
            if not self._ended.done():
                self._ended.set_result(None)

    async def _call(self, job: _Job[Result]) -> Result:
        job.queue.append(job)
        if not self._called:
            self._called = True
            # Once the event loop has nothing else to do: calls that are made until then come along, and the thread
            # does not compete with the loop for the interpreter.
            job.future.get_loop().call_soon(self._send, self._run_gathered)
        return await self._outcome(job)

    async def _outcome(self, job: _Job[Result]) -> Result:
        job.timer = job.future.get_loop().call_later(job.timeout, self._expire, job)
        try:
            return await job.future
        finally:
            job.timer.cancel()
            job.queue.withdraw(job)

    def _expire(self, job: _Job[Any], *, last: bool = False) -> None:
        """Refuse a call at its deadline, if the thread has not taken it; if it has, give that a moment to answer."""
        if job.answered or job.future.done():
            _settle([job])
        elif job.queue.withdraw(job):
            job.future.set_exception(job.refusal())
            # The thread may have missed that it was called: the next call does it again.
            self._called = False
        elif not last:
            job.timer = job.future.get_loop().call_later(_GRACE, partial(self._expire, job, last=True))
        elif job.queue.writes:
            job.future.set_exception(
                OutcomeUnknownError(
                    f"SQLite did not answer within {job.timeout:g} s; whether the call took effect is not known. Raise "
                    "timeout=, or look for what keeps the disk busy"
                )
            )
        else:
            job.future.set_exception(job.refusal())

    def _run_gathered(self) -> None:
        # From here on a new call calls the thread again; all that were made before are in the queues.
        self._called = False
        if (db := self._db) is None:
            return
        try:
            while (self._reads or self._writes) and not self._given_up:
                with self._at_rest:
                    # Writes that wait for a lock keep no read waiting.
                    self._run_reads(db)
                    if self._writes:
                        self._run_writes(db)
        except BaseException:
            # A stray one, such as a SystemExit from another thread: the thread goes on with the calls that wait.
            self._send(self._run_gathered)
            _roll_back(db)
            raise

    def _run_reads(self, db: sqlite3.Connection) -> None:
        """Answer the reads that wait, up to the first that needs a lock which another process holds."""
        answered: list[_Job[Any]] = []
        answering = time.monotonic() + _ANSWERED_WITHIN
        for _ in range(min(len(self._reads), _MOST_TOGETHER)):
            if (job := self._reads.take()) is None:
                break
            self._attempt(job, db)
            self._reads.lock_error = job.error if is_busy(job.error) else None
            if self._reads.lock_error is not None and not self._ends(job):
                self._reads.put_back(job)
                break
            answered.append(job)
            if time.monotonic() >= answering:
                # Results that are delivered and dropped make room for those that are read next.
                _deliver(answered)
                answered = []
                answering = time.monotonic() + _ANSWERED_WITHIN
        _deliver(answered)

    def _run_writes(self, db: sqlite3.Connection) -> None:
        """Run the writes that wait in one transaction and answer them; leave them in the queue while it is locked.

        A write fails only as the first of its transaction. One that fails behind others is run again, after a
        transaction of those before it.
        """
        jobs: list[_Job[Any]] = []
        begun = committing = False
        try:
            _roll_back(db)
            self._file.verify_before_write()
            db.execute("BEGIN IMMEDIATE")
            begun = True
            self._writes.lock_error = None
            while len(jobs) < self._together and (job := self._writes.take()) is not None:
                jobs.append(job)
                self._attempt(job, db)
                if job.error is not None and not isinstance(job.error, FluxMemoryError):
                    raise job.error
            committing = True
            db.execute("COMMIT")
            self._file.note_commit()
            self._together = _MOST_TOGETHER
        except BaseException as error:  # noqa: BLE001 - the callers get it
            with suppress(sqlite3.Error):
                _roll_back(db)
            outcome = error
            if committing and leaves_commit_unknown(error):
                outcome = OutcomeUnknownError(
                    f"SQLite: {str(error) or repr(error)}: the disk failed or is full, and whether the call took "
                    "effect is not known; see the system's log, and retry with the same id"
                )
                outcome.__cause__ = error
            elif is_busy(error) and not begun:
                self._writes.lock_error = error
                return
            elif len(jobs) > 1:
                self._together = len(jobs) // 2 if committing else len(jobs) - 1
                for job in reversed(jobs):
                    self._writes.put_back(job)
                return
            elif not begun and (first := self._writes.take()) is not None:
                jobs = [first]
            for job in jobs:
                job.error = outcome
        _deliver(jobs)

    def _attempt(self, job: _Job[Any], db: sqlite3.Connection) -> None:
        self._running_job = job
        job.error = None
        try:
            if self._ends(job):
                raise BackendUnavailableError(not_begun(job.timeout))
            if not job.queue.writes:
                _roll_back(db)
                self._file.verify_before_read()
            job.result = job.work(db)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            job.error = error
        finally:
            self._running_job = None


def not_begun(timeout: float) -> str:
    """Return the message of a call that ended before its turn came."""
    return (
        f"SQLite did not answer within {timeout:g} s, and nothing was stored; raise timeout=, or look for what keeps "
        "the file or the disk busy"
    )


def _roll_back(db: sqlite3.Connection) -> None:
    """End a transaction that a failure left open."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def _deliver(jobs: list[_Job[Any]]) -> None:
    for job in jobs:
        job.answered = True
    if jobs:
        # A closed event loop has no callers left to tell.
        with suppress(RuntimeError):
            jobs[0].future.get_loop().call_soon_threadsafe(_settle, jobs)


def _settle(jobs: list[_Job[Any]]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is None:
            job.future.set_result(job.result)
        elif isinstance(job.error, Exception):
            job.future.set_exception(job.error)
        else:
            # Raised here as it is, a SystemExit would end the event loop.
            error = BackendUnavailableError(
                f"SQLite's thread was interrupted by {job.error!r}, and nothing was stored; call again"
            )
            error.__cause__ = job.error
            job.future.set_exception(error)


def _tell(closed: asyncio.Future[None], _: Future[None]) -> None:
    with suppress(RuntimeError):
        closed.get_loop().call_soon_threadsafe(closed.set_result, None)


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
