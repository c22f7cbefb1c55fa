"""One SQLite connection on one thread: calls that gather go there together, writes into one durable transaction."""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final

import aiosqlite

from flux_memory.backends.sqlite.errors import is_busy, leaves_commit_unknown
from flux_memory.backends.sqlite.file import OpenFile
from flux_memory.backends.sqlite.queue import GRACE_SECONDS, Job, Queue, Result, Work, deliver, not_begun
from flux_memory.errors import BackendUnavailableError, FluxMemoryError, OutcomeUnknownError

_MOST_TOGETHER: Final = 256
"""Reads that the thread answers in a row, and writes of one transaction; more would keep others waiting."""
_READS_SECONDS: Final = 0.002
"""Seconds after which reads that are done get their answers, though others that came along are not done."""
_WRITES_SECONDS: Final = 0.05
"""Seconds after which a transaction ends though more writes wait; a write that takes longer does not share one."""
LOCK_SLICE: Final = 0.02
"""Seconds for which SQLite waits for a lock at a time; in between, reads get their turn."""
_REST_WITHIN: Final = 5.0
"""Seconds that a fork waits for the thread to come to rest."""
_STEPS: Final = 1000
"""Instructions of SQLite's virtual machine between two looks at the clock."""


class SQLiteWorker:
    """A connection on aiosqlite's thread, with two ways in: `read` and `write`.

    A job runs whole on the thread or not at all, so a caller that is cancelled leaves nothing half done. No transaction
    stays open between two reads, nor after a transaction of writes that failed.
    """

    def __init__(self, opener: Callable[[], tuple[sqlite3.Connection, OpenFile]]) -> None:
        self._opener = opener
        self._db: sqlite3.Connection | None = None
        self._driver: aiosqlite.Connection | None = None
        self._reads = Queue(writes=False)
        self._writes = Queue(writes=True)
        self._together = _MOST_TOGETHER
        self._called = False
        self._given_up = False
        self._running_job: Job[Any] | None = None
        self._answers: list[Job[Any]] = []
        self._others_until = math.inf
        """The `time.monotonic()` until which calls that are done wait for the one that runs."""
        self._at_rest = threading.Lock()
        self._ended: Future[None] = Future()
        _WORKERS.add(self)

    async def open(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds a thread
        """Start the thread and open the connection on it."""
        job: Job[None] = Job(lambda _: None, self._reads, timeout)
        self._send(partial(self._open_on_thread, job))
        try:
            await job.outcome()
        except BaseException:
            self.abandon()
            raise

    def read(self, work: Work[Result], timeout: float) -> Coroutine[Any, Any, Result]:
        """Run a read on the thread."""
        return self._call(Job(work, self._reads, timeout))

    def write(self, work: Work[Result], timeout: float) -> Coroutine[Any, Any, Result]:
        """Run a write on the thread, in one transaction with the others that wait; return once it is durable."""
        return self._call(Job(work, self._writes, timeout))

    def abandon(self) -> None:
        """End the thread without waiting for it, from any thread."""
        self._given_up = True
        # To the thread that is there: at the interpreter's end it may be gone, and starting another one would hang.
        if self._driver is not None and not self._ended.done():
            self._driver._tx.put_nowait((None, self._close_on_thread))  # noqa: SLF001

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
        await asyncio.wait([closed], timeout=GRACE_SECONDS)
        if closed.done() and self._driver is not None:
            self._driver._thread.join(GRACE_SECONDS)  # noqa: SLF001 - aiosqlite does not wait for its thread

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

    def _open_on_thread(self, job: Job[None]) -> None:
        # Kept here, not handed over: the caller may be gone by now, and it must still be closed.
        try:
            with self._at_rest:
                self._db, self._file = self._opener()
                self._db.set_progress_handler(self._stops, _STEPS)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            job.error = error
        deliver([job])

    def _stops(self) -> bool:
        """Return whether the statement that runs is to stop: SQLite asks this again and again."""
        if (job := self._running_job) is None:
            return False
        if time.monotonic() >= self._others_until:
            if job.queue.writes:
                return True
            self._answer()
        return self._ends(job)

    def _ends(self, job: Job[Any]) -> bool:
        return self._given_up or job.given_up()

    def _close_on_thread(self) -> None:
        try:
            with self._at_rest:
                self.close_copy()
            for queue in (self._reads, self._writes):
                while (job := queue.take()) is not None:
                    job.error = job.refusal()
                    deliver([job])
        finally:
            if self._driver is not None:
                self._driver.stop()
            if not self._ended.done():
                self._ended.set_result(None)

    async def _call(self, job: Job[Result]) -> Result:
        job.queue.append(job)
        if not self._called:
            self._called = True
            # Once the event loop has nothing else to do: calls that are made until then come along, and the thread
            # does not compete with the loop for the interpreter.
            job.future.get_loop().call_soon(self._send, self._run_gathered)
        try:
            return await job.outcome()
        finally:
            if not job.answered:
                # The thread may have missed that it was called: the next call does it again.
                self._called = False

    def _run_gathered(self) -> None:
        # From here on a new call calls the thread again; all that were made before are in the queues.
        self._called = False
        self._reads.lock_error = self._writes.lock_error = None
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
        for _ in range(min(len(self._reads), _MOST_TOGETHER)):
            if (job := self._reads.take()) is None:
                break
            self._attempt(job, db)
            _roll_back(db)
            self._reads.lock_error = job.error if is_busy(job.error) else None
            if self._reads.lock_error is not None and not self._ends(job):
                self._reads.put_back(job)
                break
            now = time.monotonic()
            if not self._answers:
                self._others_until = now + _READS_SECONDS
            self._answers.append(job)
            if now >= self._others_until:
                self._answer()
        self._answer()

    def _answer(self) -> None:
        # Results that are delivered and dropped make room for those that are read next.
        answers, self._answers, self._others_until = self._answers, [], math.inf
        deliver(answers)

    def _run_writes(self, db: sqlite3.Connection) -> None:
        """Run the writes that wait in one transaction and answer them; leave them in the queue while it is locked.

        A write fails only as the first of its transaction. One that fails behind others, or takes too long for them,
        is run again after a transaction of those before it.
        """
        if not self._begin(db):
            return
        jobs: list[Job[Any]] = []
        committing = False
        try:
            self._attempt_together(jobs, db)
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
            elif len(jobs) > 1:
                self._together = len(jobs) // 2 if committing else len(jobs) - 1
                for job in reversed(jobs):
                    self._writes.put_back(job)
                return
            for job in jobs:
                job.error = outcome
        deliver(jobs)

    def _begin(self, db: sqlite3.Connection) -> bool:
        """Return whether the transaction began; if not, the first write fails, or all wait for the lock."""
        try:
            _roll_back(db)
            self._file.verify_before_write()
            db.execute("BEGIN IMMEDIATE")
        except BaseException as error:  # noqa: BLE001 - a caller gets it
            with suppress(sqlite3.Error):
                _roll_back(db)
            self._writes.lock_error = error if is_busy(error) else None
            if self._writes.lock_error is None and (job := self._writes.take()) is not None:
                job.error = error
                deliver([job])
            return False
        self._writes.lock_error = None
        return True

    def _attempt_together(self, jobs: list[Job[Any]], db: sqlite3.Connection) -> None:
        """Add the writes that share the transaction to `jobs`, each as it is run."""
        until = time.monotonic() + _WRITES_SECONDS
        try:
            while len(jobs) < self._together and (not jobs or time.monotonic() < until):
                if (job := self._writes.take()) is None:
                    break
                jobs.append(job)
                self._attempt(job, db)
                if job.error is not None and not isinstance(job.error, FluxMemoryError):
                    raise job.error
                self._others_until = until
        finally:
            self._others_until = math.inf

    def _attempt(self, job: Job[Any], db: sqlite3.Connection) -> None:
        self._running_job = job
        job.error = None
        try:
            if self._ends(job):
                raise BackendUnavailableError(not_begun(job.timeout))
            if not job.queue.writes:
                self._file.verify_before_read()
            job.result = job.work(db)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            job.error = error
        finally:
            self._running_job = None


def _roll_back(db: sqlite3.Connection) -> None:
    """End a transaction that a failure left open."""
    if db.in_transaction:
        db.execute("ROLLBACK")


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
