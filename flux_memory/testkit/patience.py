"""How long a clause waits for a backend, be it that a call never ends, or that it blocks the event loop for ever."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

CLAUSE_SECONDS: Final = 60.0
"""A clause takes a fraction of a second; one that takes this long hangs."""
CLOSE_SECONDS: Final = 15.0
"""How long a handle may take to close."""
_SECONDS_ONCE_HUNG: Final = 10.0
_CLOSE_SECONDS_ONCE_HUNG: Final = 3.0
"""Every clause closes its handles, so that each of them would wait."""
_GRACE: Final = 2.0
"""For how long a loop that is not blocked may take to end a call by itself."""
_AGAIN: Final = 1.0
"""When the next thing that blocks the same loop is ended."""


class Patience:
    """How long the clauses of a run may take: most hang for one reason, so that the first to hang waits for all."""

    def __init__(self) -> None:
        self.seconds = CLAUSE_SECONDS
        self.close_seconds = CLOSE_SECONDS

    def lose(self) -> None:
        """Wait less for the clauses that follow."""
        self.seconds = min(self.seconds, _SECONDS_ONCE_HUNG)

    def lose_at_close(self) -> None:
        """Wait less for the handles that are closed from now on."""
        self.close_seconds = min(self.close_seconds, _CLOSE_SECONDS_ONCE_HUNG)


class BlockedError(BaseException):
    """The event loop stood still. Raised where it did, so that the traceback ends at what blocks it.

    No `Exception`: a backend makes what it likes of those.
    """


@contextmanager
def unblocked(seconds: float) -> Iterator[None]:
    """End what blocks the event loop, which no timeout of asyncio can: raise `BlockedError` in the midst of it.

    Python can do so in the main thread and on POSIX only. A timer of somebody else, as pytest-timeout's, is left alone.

    Args:
        seconds: After which a timeout of the loop would have ended the call, if it could.
    """
    if not _can_interrupt():
        yield
        return
    began = time.monotonic()
    alarm = _Alarm(seconds)
    outer_alarm = signal.signal(signal.SIGALRM, alarm)
    outer_seconds, outer_again = signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer_alarm)
        if outer_seconds:
            left = outer_seconds - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(left, _AGAIN), outer_again)
        if alarm.first is not None:
            # Whatever came of it, a timeout perhaps.
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
