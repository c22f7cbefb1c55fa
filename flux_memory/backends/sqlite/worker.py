"""Runs calls on one SQLite connection in one thread: those that gather run together, writes in one transaction."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final

from flux_memory.backends.loops import CLOSED
from flux_memory.backends.observation import Observers, StoreName
from flux_memory.backends.pool_meter import MeteredPool
from flux_memory.backends.pool_stats import Occupancy
from flux_memory.backends.shared_timer import SharedTimer
from flux_memory.backends.slow_calls import PLAN_DEADLINE_SECONDS, Statements, note_statements
from flux_memory.backends.sqlite.driver import DriverThread
from flux_memory.backends.sqlite.errors import leaves_commit_unknown
from flux_memory.backends.sqlite.file import OpenFile
from flux_memory.backends.sqlite.forks import pause_at_forks
from flux_memory.backends.sqlite.queue import GRACE_SECONDS, Job, Queue, Result, Work, deliver, not_begun
from flux_memory.backends.sqlite.recording import RecordingConnection, explain
from flux_memory.errors import BackendUnavailableError, FluxMemoryError, MemoryClosedError, OutcomeUnknownError

BATCH_CALLS: Final = 256
"""Reads that the thread runs before it looks for writes, and writes of one transaction."""
_READS_SECONDS: Final = 0.002
"""Seconds after which finished reads are answered, though others of their batch still wait."""
_WRITES_SECONDS: Final = 0.05
"""Seconds after which a transaction ends though more writes wait; a longer write has one of its own."""
LOCK_SECONDS: Final = 0.02
"""Seconds that SQLite waits for a lock at a time; reads get their turn in between."""
_CLOCK_INSTRUCTIONS: Final = 1000
"""Instructions of SQLite's virtual machine between two checks of the clock."""


class SQLiteWorker(MeteredPool):
    """A connection on aiosqlite's thread, with two ways in: `read` and `write`.

    A job runs whole on the thread or not at all, so a caller that is cancelled leaves nothing half done. The thread
    rolls back a transaction that a read leaves open.
    """

    def __init__(
        self,
        opener: Callable[[Callable[[], bool], Callable[[float], bool]], tuple[sqlite3.Connection, OpenFile]],
        observers: Observers | None = None,
    ) -> None:
        super().__init__(observers or Observers(StoreName("sqlite", "")))
        self._records_statements = self.meter.observers.records_statements
        self._opener = opener
        self._db: sqlite3.Connection | None = None
        self._driver: DriverThread | None = None
        self._reads = Queue(self.meter, writes=False)
        self._writes = Queue(self.meter, writes=True)
        self._batch_limit = BATCH_CALLS
        self._called_on: asyncio.AbstractEventLoop | None = None
        """The event loop that will wake the thread."""
        self._given_up = False
        """Whether the thread has to end: waiting calls and openings are refused, and statements interrupted."""
        self._running_job: Job[Any] | None = None
        self._answers: list[Job[Any]] = []
        self._answer_at = math.inf
        """The `time.monotonic()` at which finished calls stop waiting for the one that runs."""
        self.at_rest = threading.Lock()
        """Held while the thread uses SQLite."""
        self._ended: Future[None] = Future()

    async def open(self, timeout: float, timer: SharedTimer) -> None:  # noqa: ASYNC109 - bounds a thread
        """Start the thread and open the connection on it."""
        job: Job[None] = Job(lambda _: None, self._reads, timeout, timer)
        self._send(partial(self._open_on_thread, job))
        try:
            await job.outcome()
        except asyncio.CancelledError:
            # By `close()`: no call waits for this opening any more.
            self.abandon()
            await self._wait_for_end(GRACE_SECONDS)
            raise
        except BaseException:
            self.abandon()
            raise

    def occupancy(self) -> Occupancy:
        size = int(self._db is not None)
        return Occupancy(size, size, size, 0 if self.at_rest.locked() else size, len(self._reads) + len(self._writes))

    def read(self, work: Work[Result], timeout: float, timer: SharedTimer) -> Coroutine[Any, Any, Result]:
        """Run a read on the thread."""
        return self._call(Job(work, self._reads, timeout, timer))

    def write(self, work: Work[Result], timeout: float, timer: SharedTimer) -> Coroutine[Any, Any, Result]:
        """Run a write on the thread, in one transaction with the others that wait; return once it is durable."""
        return self._call(Job(work, self._writes, timeout, timer))

    def abandon(self) -> None:
        """End the thread without waiting for it, from any thread."""
        self._given_up = True
        # Not `_send`, which may start a thread: at the interpreter's end that would hang.
        if self._driver is not None and not self._ended.done():
            self._driver.send(self._close_on_thread)

    async def finish(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds a thread
        """Run the queued calls, close the connection, and wait for both. Safe to call again.

        Calls that still run or wait for a lock after `timeout` seconds are given up.
        """
        if not self._ended.done():
            # The thread may not know of a queued call yet: `_call` tells it once the loop is idle.
            self._send(self._run_gathered)
            self._send(self._close_on_thread)
        await self._wait_for_end(timeout)
        self._given_up = True
        await self._wait_for_end(GRACE_SECONDS)
        if self._ended.done() and self._driver is not None:
            self._driver.thread.join(GRACE_SECONDS)

    async def _wait_for_end(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds a thread
        ended = asyncio.get_running_loop().create_future()
        self._ended.add_done_callback(partial(_notify_closed, ended))
        await asyncio.wait([ended], timeout=timeout)

    def close_copy(self) -> None:
        """Close the connection; in a forked child that closes the child's copy only."""
        with suppress(sqlite3.Error):
            if self._db is not None:
                self._db.close()
                self._db = None
                self.meter.closed += 1

    def _send(self, function: Callable[[], object]) -> None:
        """Run a function on the thread; start another thread if a stray exception has ended it."""
        if self._driver is None or not self._driver.thread.is_alive():
            self._driver = DriverThread()
        self._driver.send(function)

    def _open_on_thread(self, job: Job[None]) -> None:
        # Stored by the thread: the caller may be gone by now, and the connection must still be closed.
        try:
            pause_at_forks(self)
            began = time.perf_counter()
            with self.at_rest:
                self._db, self._file = self._opener(self._must_interrupt, self._pause_opening)
                self._db.set_progress_handler(self._must_interrupt, _CLOCK_INSTRUCTIONS)
            self.meter.note_created(time.perf_counter() - began)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            job.error = error
        deliver([job])

    def _pause_opening(self, seconds: float) -> bool:
        """Sleep between two attempts to open the file, so that the process can fork; return whether to end them."""
        self.at_rest.release()
        time.sleep(seconds)
        self.at_rest.acquire()
        return self._given_up

    def _must_interrupt(self) -> bool:
        """Return whether SQLite must interrupt the statement that runs."""
        if (job := self._running_job) is None:
            return False
        if time.monotonic() >= self._answer_at:
            if job.queue.writes:
                return True
            self._answer()
        return self._is_given_up(job)

    def _is_given_up(self, job: Job[Any]) -> bool:
        return self._given_up or job.given_up()

    def _close_on_thread(self) -> None:
        try:
            with self.at_rest:
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
        loop = job.timer.loop
        if self._called_on is not loop:
            self._called_on = loop
            # Once the loop is idle: calls made until then join the batch, and the thread does not compete with the
            # loop for the interpreter.
            loop.call_soon(self._send, self._run_gathered)
        try:
            return await job.outcome()
        finally:
            if job.statements:
                note_statements(job.statements, partial(self._explain, job.timer))
            if not job.answered:
                # The thread may never have been woken; the next call wakes it again.
                self._called_on = None

    async def _explain(self, timer: SharedTimer, statements: Statements) -> list[str]:
        if self._given_up or self._ended.done():
            raise MemoryClosedError(CLOSED)
        return await self.read(partial(explain, dict(statements)), PLAN_DEADLINE_SECONDS, timer)

    def _run_gathered(self) -> None:
        # Every call so far is in a queue; a later one wakes the thread again.
        self._called_on = None
        self._reads.lock_error = self._writes.lock_error = None
        if (db := self._db) is None:
            return
        try:
            while (self._reads or self._writes) and not self._given_up:
                with self.at_rest:
                    # Reads first: writes may wait for a lock.
                    self._run_reads(db)
                    if self._writes:
                        self._run_writes(db)
        except BaseException:
            # A stray exception, such as another thread's SystemExit: the waiting calls still run.
            self._send(self._run_gathered)
            _roll_back(db)
            raise

    def _run_reads(self, db: sqlite3.Connection) -> None:
        """Run the waiting reads, up to the first that is locked out by another process."""
        for _ in range(min(len(self._reads), BATCH_CALLS)):
            if (job := self._reads.take()) is None:
                break
            self._attempt(job, db)
            _roll_back(db)
            self._reads.note_lock(job.error)
            if self._reads.lock_error is not None and not self._is_given_up(job):
                self._reads.put_back(job)
                break
            now = time.monotonic()
            if not self._answers:
                self._answer_at = now + _READS_SECONDS
            self._answers.append(job)
            if now >= self._answer_at:
                self._answer()
        self._answer()

    def _answer(self) -> None:
        # Dropped here, delivered results free their memory before the next reads.
        answers, self._answers, self._answer_at = self._answers, [], math.inf
        deliver(answers)

    def _run_writes(self, db: sqlite3.Connection) -> None:
        """Run the waiting writes in one transaction and answer them; they stay queued while the file is locked.

        A write fails only if it is the first of its transaction. One that fails after others, or takes too long, runs
        again after the others are committed.
        """
        if not self._begin(db):
            return
        jobs: list[Job[Any]] = []
        committing = False
        try:
            self._attempt_together(jobs, db)
            committing = True
            db.execute("COMMIT")
            self.meter.note_batch(len(jobs))
            self._file.note_commit()
            self._batch_limit = BATCH_CALLS
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
                self._batch_limit = len(jobs) // 2 if committing else len(jobs) - 1
                for job in reversed(jobs):
                    self._writes.put_back(job)
                return
            for job in jobs:
                job.error = outcome
        deliver(jobs)

    def _begin(self, db: sqlite3.Connection) -> bool:
        """Begin a transaction; return `False` if the first write failed, or if all wait for the lock."""
        try:
            _roll_back(db)
            self._file.verify_before_write()
            db.execute("BEGIN IMMEDIATE")
        except BaseException as error:  # noqa: BLE001 - a caller gets it
            with suppress(sqlite3.Error):
                _roll_back(db)
            self._writes.note_lock(error)
            if self._writes.lock_error is None and (job := self._writes.take()) is not None:
                job.error = error
                deliver([job])
            return False
        self._writes.lock_error = None
        return True

    def _attempt_together(self, jobs: list[Job[Any]], db: sqlite3.Connection) -> None:
        """Run writes in the open transaction and add each to `jobs`."""
        until = time.monotonic() + _WRITES_SECONDS
        try:
            while len(jobs) < self._batch_limit and (not jobs or time.monotonic() < until):
                if (job := self._writes.take()) is None:
                    break
                jobs.append(job)
                self._attempt(job, db)
                if job.error is not None and not isinstance(job.error, FluxMemoryError):
                    raise job.error
                self._answer_at = until
        finally:
            self._answer_at = math.inf

    def _attempt(self, job: Job[Any], db: sqlite3.Connection) -> None:
        self._running_job = job
        job.error = None
        self.meter.note_taken(job, time.monotonic() - job.queued)
        try:
            if self._is_given_up(job):
                raise BackendUnavailableError(not_begun(job.timeout))
            if not job.queue.writes:
                self._file.verify_before_read()
            if self._records_statements and isinstance(db, RecordingConnection):
                job.statements = db.statements = {}
            job.result = job.work(db)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            job.error = error
        finally:
            self._running_job = None
            if self.meter.taken:
                self.meter.note_returned(job)


def _roll_back(db: sqlite3.Connection) -> None:
    """Roll back the transaction, if one is open."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def _notify_closed(closed: asyncio.Future[None], _: Future[None]) -> None:
    with suppress(RuntimeError):
        closed.get_loop().call_soon_threadsafe(closed.set_result, None)
