"""Time limits for calls that hang, and an interrupt for calls that block the event loop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

CLAUSE_SECONDS: Final = 60.0
"""Limit for a clause, which normally takes a fraction of a second."""
CLOSE_SECONDS: Final = 15.0
"""Limit for closing a handle."""
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
        self.seconds = CLAUSE_SECONDS
        self.close_seconds = CLOSE_SECONDS

    def shorten(self) -> None:
        """Shorten the limit of the next clauses."""
        self.seconds = min(self.seconds, _SECONDS_ONCE_HUNG)

    def shorten_close(self) -> None:
        """Shorten the limit for closing the next handles."""
        self.close_seconds = min(self.close_seconds, _CLOSE_SECONDS_ONCE_HUNG)


class BlockedError(BaseException):
    """The event loop was blocked. The traceback ends at the call that blocks it.

    It is not an `Exception`, because a backend may catch those.
    """


@contextmanager
def unblocked(seconds: float) -> Iterator[None]:
    """Interrupt a call that blocks the event loop by raising `BlockedError` in it; a timeout of asyncio cannot.

    This works in the main thread on POSIX only. It does nothing while another timer runs, such as pytest-timeout's.

    Args:
        seconds: The timeout of the loop, which has to have expired first.
    """
    if not _can_interrupt():
        yield
        return
    began = time.monotonic()
    alarm = _Alarm(seconds)
    outer_alarm = signal.signal(signal.SIGALRM, alarm)
    outer_seconds, outer_again = signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_SECONDS, _REPEAT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer_alarm)
        if outer_seconds:
            left = outer_seconds - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(left, _REPEAT_SECONDS), outer_again)
        if alarm.first is not None:
            # It replaces the error that the interrupt led to, such as a timeout.
            raise alarm.first


def _can_interrupt() -> bool:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return False
    return signal.getitimer(signal.ITIMER_REAL)[0] == 0 or isinstance(signal.getsignal(signal.SIGALRM), _Alarm)


class _Alarm:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.first: BlockedError | None = None

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        __tracebackhide__ = True
        error = BlockedError(
            f"the event loop stood still for {self._seconds:.0f} s: a call blocks it, perhaps by waiting for a lock "
            "that another handle holds; wait in a thread or by an await"
        )
        self.first = self.first or error
        raise error
