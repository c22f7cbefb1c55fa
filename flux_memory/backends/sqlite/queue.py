"""Calls that wait for SQLite's thread, and what their callers are told: the thread's outcome, or a refusal."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from flux_memory.errors import BackendUnavailableError, OutcomeUnknownError

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
"""Runs on the thread. A write raises errors of ours only before it has changed anything."""

GRACE_SECONDS: Final = 0.5
"""How long past its deadline a call waits for its outcome, once the thread has taken it."""


class Queue:
    """Calls that wait for the thread, in order.

    The thread takes a job out to run it; the caller takes it out to leave. Each is one atomic operation, so only one
    of them gets it: a call that was refused or cancelled while it waited is not run.
    """

    def __init__(self, *, writes: bool) -> None:
        self.writes: Final = writes
        self.lock_error: BaseException | None = None
        """What SQLite says of another process's lock, while the calls wait for that."""
        self._jobs: OrderedDict[Job[Any], bool] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

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
        """Put a job that was taken out before all others."""
        self._jobs[job] = True
        with suppress(KeyError):
            self._jobs.move_to_end(job, last=False)


class Job(Generic[Result]):
    """One call: its work, its caller's future, and the outcome once the thread has `answered`."""

    __slots__ = ("answered", "deadline", "error", "future", "queue", "result", "timeout", "timer", "work")

    def __init__(self, work: Work[Result], queue: Queue, timeout: float) -> None:
        self.work = work
        self.queue = queue
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.answered = False
        self.result: Any = None
        self.error: BaseException | None = None

    async def outcome(self) -> Result:
        """Wait for the outcome, or leave the queue."""
        self.timer = self.future.get_loop().call_later(self.timeout, self._expire)
        try:
            return await self.future
        finally:
            self.timer.cancel()
            self.queue.withdraw(self)

    def given_up(self) -> bool:
        """Return whether the caller is gone, or its deadline has passed."""
        return self.future.done() or time.monotonic() >= self.deadline

    def refusal(self) -> BaseException:
        """Return the error of a call that was not run."""
        return self.queue.lock_error or BackendUnavailableError(not_begun(self.timeout))

    def settle(self) -> None:
        """Tell the caller the outcome, on its event loop."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        elif isinstance(self.error, Exception):
            self.future.set_exception(self.error)
        else:
            # Raised here as it is, a SystemExit would end the event loop.
            error = BackendUnavailableError(
                f"SQLite's thread was interrupted by {self.error!r}, and nothing was stored; call again"
            )
            error.__cause__ = self.error
            self.future.set_exception(error)

    def _expire(self, *, last: bool = False) -> None:
        """Refuse the call at its deadline if the thread has not taken it; otherwise give the thread a moment more."""
        if self.answered or self.future.done():
            self.settle()
        elif self.queue.withdraw(self):
            self.future.set_exception(self.refusal())
        elif not last:
            self.timer = self.future.get_loop().call_later(GRACE_SECONDS, lambda: self._expire(last=True))
        elif self.queue.writes:
            self.future.set_exception(
                OutcomeUnknownError(
                    f"SQLite did not answer within {self.timeout:g} s; whether the call took effect is not known. "
                    "Raise timeout=, or look for what keeps the disk busy"
                )
            )
        else:
            self.future.set_exception(self.refusal())


def deliver(jobs: list[Job[Any]]) -> None:
    """Have outcomes told on the event loop; called on the thread."""
    for job in jobs:
        job.answered = True
    if jobs:
        # A closed event loop has no callers left to tell.
        with suppress(RuntimeError):
            jobs[0].future.get_loop().call_soon_threadsafe(_settle, jobs)


def _settle(jobs: list[Job[Any]]) -> None:
    for job in jobs:
        job.settle()


def not_begun(timeout: float) -> str:
    """Return the message of a call that ended before its turn came."""
    return (
        f"SQLite did not answer within {timeout:g} s, and nothing was stored; raise timeout=, or look for what keeps "
        "the file or the disk busy"
    )
