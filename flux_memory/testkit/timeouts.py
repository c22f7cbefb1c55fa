"""Time limits for calls that hang, and an interrupt for calls that block the event loop."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Final

CALL_SECONDS: Final = 60.0
"""A call that has not ended after this time hangs. Calls usually take milliseconds, on distant stores seconds."""
CLAUSE_SECONDS: Final = 900.0
"""Limit for a clause whose calls all end: hundreds of calls, each of which may take seconds."""
CLOSE_SECONDS: Final = 30.0
"""Limit for closing handles: longer than calls in flight, which a close may wait for, usually take."""
_SECONDS_ONCE_HUNG: Final = 10.0
_CLOSE_SECONDS_ONCE_HUNG: Final = 3.0
"""Much shorter: every clause closes its handles, so each one would wait the full limit."""
_GRACE_SECONDS: Final = 2.0
"""Extra time in which a loop that is not blocked ends the call by its own timeout."""
_REPEAT_SECONDS: Final = 1.0
"""Interval of the next interrupts, for further calls that block the same loop."""


class Timeouts:
    """The time limits of a run. They are short after the first hang: the next ones most likely have the same cause."""

    def __init__(self) -> None:
        self.call_seconds = CALL_SECONDS
        self.close_seconds = CLOSE_SECONDS
        self.call_cut = ""
        """Why `call_seconds` was shortened, as text that follows a failure."""
        self.close_cut = ""
        """The same for `close_seconds`."""

    def shorten(self, clause_id: str) -> None:
        """Shorten the limit of the next calls, because a call of this clause never ended."""
        if self.call_seconds > _SECONDS_ONCE_HUNG:
            self.call_seconds = _SECONDS_ONCE_HUNG
            self.call_cut = f" (limit cut to {self.call_seconds:g} s because a call of {clause_id} never ended)"

    def shorten_close(self, clause_id: str) -> None:
        """Shorten the limit for closing the next handles, because a `close()` of this clause never ended."""
        if self.close_seconds > _CLOSE_SECONDS_ONCE_HUNG:
            self.close_seconds = _CLOSE_SECONDS_ONCE_HUNG
            self.close_cut = f" (limit cut to {self.close_seconds:g} s because a close() of {clause_id} never ended)"


class Limit:
    """How long a clause may go on: until one of its calls takes too long, or all of them together.

    Args:
        waiting: Returns the oldest call in flight and when it began, on the monotonic clock; without any, `None` and
            when the last one ended.
        call_seconds: The limit for each call, and for the time between two calls.
    """

    def __init__(self, waiting: Callable[[], tuple[str | None, float]], call_seconds: float) -> None:
        self._waiting = waiting
        self._began = time.monotonic()
        self.call_seconds = call_seconds
        self.spent = False
        """Whether the clause as a whole took too long."""
        self.hanging: str | None = None
        """The call that took too long."""

    def left(self) -> float:
        """Return the seconds until the limit, if no call ends before."""
        self.hanging, since = self._waiting()
        call_ends, clause_ends = max(since, self._began) + self.call_seconds, self._began + CLAUSE_SECONDS
        self.spent = clause_ends < call_ends
        return min(call_ends, clause_ends) - time.monotonic()


@asynccontextmanager
async def limited(limit: Limit) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the block at its limit, which raises `TimeoutError`, or interrupt it if it blocks the event loop."""
    loop = asyncio.get_running_loop()
    with unblocked(limit.call_seconds, limit.left):
        async with asyncio.timeout(None) as timeout:
            timer: asyncio.TimerHandle | None = None

            def look() -> None:
                nonlocal timer
                if (left := limit.left()) > 0:
                    timer = loop.call_later(left, look)
                else:
                    timeout.reschedule(loop.time())

            look()
            try:
                yield timeout
            finally:
                if timer is not None:
                    timer.cancel()


class BlockedError(BaseException):
    """The event loop was blocked. The traceback ends at the call that blocks it.

    It is not an `Exception`, because a backend may catch those.
    """


@contextmanager
def unblocked(seconds: float, left: Callable[[], float] | None = None) -> Iterator[None]:
    """Interrupt a call that blocks the event loop by raising `BlockedError` in it; a timeout of asyncio cannot.

    This works in the main thread on POSIX only. It does nothing while another timer runs, such as pytest-timeout's.

    Args:
        seconds: The timeout of the loop, which has to have expired first.
        left: Returns the seconds until that, if calls that end postpone it.
    """
    if not _can_interrupt():
        yield
        return
    began = time.monotonic()
    alarm = _Alarm(seconds, left or (lambda: began + seconds - time.monotonic()))
    outer_alarm = signal.signal(signal.SIGALRM, alarm)
    outer_seconds, outer_again = signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_SECONDS, _REPEAT_SECONDS)
    try:
        yield
    finally:
        alarm.is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer_alarm)
        if outer_seconds:
            outer_left = outer_seconds - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(outer_left, _REPEAT_SECONDS), outer_again)
        if alarm.first is not None:
            # It replaces the error that the interrupt led to, such as a timeout.
            raise alarm.first


def _can_interrupt() -> bool:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return False
    return signal.getitimer(signal.ITIMER_REAL)[0] == 0 or isinstance(signal.getsignal(signal.SIGALRM), _Alarm)


class _Alarm:
    def __init__(self, seconds: float, left: Callable[[], float]) -> None:
        self._seconds = seconds
        self._left = left
        self.is_over = False
        """Whether the block has ended: a late signal must not set the timer again, which would end the process."""
        self.first: BlockedError | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        if self.is_over:
            return
        if self.first is None and (left := self._left() + _GRACE_SECONDS) > 0:
            signal.setitimer(signal.ITIMER_REAL, left, _REPEAT_SECONDS)
            return
        error = BlockedError(
            f"the event loop stood still for {self._seconds:.0f} s: a call blocks it, perhaps by waiting for a lock "
            "that another handle holds; wait in a thread or by an await"
        )
        self.first = self.first or error
        raise error
