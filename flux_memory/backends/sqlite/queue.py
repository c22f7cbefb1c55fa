"""Queues calls for SQLite's thread and gives their callers the thread's outcome, or a refusal at the deadline."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from typing import Any, Final, Generic, TypeVar

from flux_memory.backends.pool_meter import PoolMeter
from flux_memory.backends.shared_timer import Expiring, SharedTimer
from flux_memory.backends.sqlite.errors import is_busy
from flux_memory.errors import BackendUnavailableError, OutcomeUnknownError

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
"""Runs on the thread. A write raises a `FluxMemoryError` only before it has changed anything."""

_LOG: Final = logging.getLogger("flux_memory.sqlite")

GRACE_SECONDS: Final = 0.5
"""Seconds that a call which the thread has taken waits for its outcome after its deadline."""


class Queue:
    """Calls that wait for the thread, in order.

    The thread takes a job out to run it; the caller takes it out to leave. Each is one atomic operation, so only one
    of them gets the job: a call that was refused or cancelled while it waited does not run.

    Args:
        meter: Counts the calls.
        writes: Whether the calls are writes.
    """

    def __init__(self, meter: PoolMeter, *, writes: bool) -> None:
        self.writes: Final = writes
        self.meter: Final = meter
        self.lock_error: BaseException | None = None
        """SQLite's error about another process's lock, while the calls wait for that lock."""
        self._jobs: OrderedDict[Job[Any], bool] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    def note_lock(self, error: BaseException | None) -> None:
        """Note whether another process's lock keeps the calls waiting."""
        before, self.lock_error = self.lock_error, error if is_busy(error) else None
        if self.lock_error is not None and before is None:
            _LOG.info("another process holds the lock (%s); the waiting calls are tried again", error)
            self.meter.note_retry(type(error).__name__)

    def append(self, job: Job[Any]) -> None:
        self._jobs[job] = True

    def withdraw(self, job: Job[Any]) -> bool:
        """Take a job out; return whether it was still waiting."""
        return self._jobs.pop(job, False)

    def take(self) -> Job[Any] | None:
        """Take out the first job whose caller still waits."""
        try:
            while (job := self._jobs.popitem(last=False)[0]).future.done():
                pass
        except KeyError:
            return None
        return job

    def put_back(self, job: Job[Any]) -> None:
        """Put a job that was taken out back at the front."""
        self._jobs[job] = True
        with suppress(KeyError):
            self._jobs.move_to_end(job, last=False)


class Job(Expiring, Generic[Result]):
    """One call: its work, its caller's future, and the outcome once the thread has `answered`.

    Args:
        work: Runs on the thread.
        queue: The queue in which it waits.
        timeout: The seconds that the call has.
        timer: The timer of the calls on the caller's event loop.
    """

    __slots__ = (
        *("answered", "deadline", "error", "future", "is_late", "queue", "queued", "result", "statements", "timeout"),
        *("timer", "work"),
    )

    def __init__(self, work: Work[Result], queue: Queue, timeout: float, timer: SharedTimer) -> None:
        self.work = work
        self.queue = queue
        self.timeout = timeout
        self.timer = timer
        self.queued = time.monotonic()
        self.deadline = self.queued + timeout
        self.future: asyncio.Future[Result] = timer.loop.create_future()
        self.is_late = False
        """Whether its deadline passed while the thread ran it."""
        self.answered = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.statements: dict[str, Any] | None = None
        """The statements that it ran, kept only for the log of slow calls."""

    async def outcome(self) -> Result:
        """Wait for the outcome; a caller that is cancelled leaves the queue."""
        self.timer.add(self, self.timeout)
        try:
            return await self.future
        finally:
            self.timer.remove(self)
            self.queue.withdraw(self)

    def given_up(self) -> bool:
        """Return whether the caller is gone, or its deadline has passed."""
        return self.future.done() or time.monotonic() >= self.deadline

    def refusal(self) -> BaseException:
        """Return the error of a call that did not run."""
        return self.queue.lock_error or BackendUnavailableError(not_begun(self.timeout))

    def settle(self) -> None:
        """Give the caller the outcome; runs on its event loop."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        elif isinstance(self.error, Exception):
            self.future.set_exception(self.error)
        else:
            # A SystemExit that is raised on the event loop would end it.
            error = BackendUnavailableError(
                f"SQLite's thread was interrupted by {self.error!r}, and nothing was stored; call again"
            )
            error.__cause__ = self.error
            self.future.set_exception(error)

    def expire(self) -> None:
        """Refuse the call at its deadline, or give the thread `GRACE_SECONDS` more if it has taken the call."""
        if self.answered or self.future.done():
            self.settle()
        elif self.queue.withdraw(self):
            self.queue.meter.note_timeout()
            self.future.set_exception(self.refusal())
        elif not self.is_late:
            self.is_late = True
            self.timer.add(self, GRACE_SECONDS)
        elif self.queue.writes:
            self.future.set_exception(
                OutcomeUnknownError(
                    f"SQLite did not answer within {self.timeout:g} s; whether the call took effect is not known. "
                    "Raise timeout=, or find the process that keeps the disk busy"
                )
            )
        else:
            self.future.set_exception(self.refusal())


def deliver(jobs: list[Job[Any]]) -> None:
    """Settle jobs on the event loops of their callers; called on the thread."""
    for job in jobs:
        job.answered = True
    for loop, together in groupby(jobs, lambda job: job.timer.loop):
        # A closed event loop has no callers left.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, list(together))


def _settle(jobs: list[Job[Any]]) -> None:
    for job in jobs:
        job.settle()


def not_begun(timeout: float) -> str:
    """Return the error message of a call whose deadline passed before the thread ran it."""
    return (
        f"SQLite did not answer within {timeout:g} s, and nothing was stored; raise timeout=, or find the process "
        "that keeps the file or the disk busy"
    )
