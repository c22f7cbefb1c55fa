"""Sets the deadline of the calls in a block, in place of the `timeout` of their handles."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from flux_memory import records
from flux_memory.backends.shared_timer import Expiring, SharedTimer

_SECONDS: Final[ContextVar[float | None]] = ContextVar("flux_memory_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give each call in the block this deadline instead of the `timeout` of its handle.

    It holds for the task that enters the block and for tasks started in it. Of nested blocks the innermost counts.

        with deadline(2):
            await memory.add_message(session, "user", "Hello")

    Args:
        seconds: The time within which each call ends.

    Raises:
        InvalidInputError: `seconds` is not a positive, finite number.
    """
    token = _SECONDS.set(records.check_seconds("seconds", seconds))
    try:
        yield
    finally:
        _SECONDS.reset(token)


def seconds_for(timeout: float) -> float:
    """Return the seconds that a call has: those of the innermost `deadline()` around it, otherwise the timeout.

    A backend asks at the beginning of each call.

    Args:
        timeout: The timeout of the handle, in seconds.
    """
    override = _SECONDS.get()
    return timeout if override is None else override


class TimeLimit(Expiring):
    """What `asyncio.timeout()` does for one call, at a quarter of its cost; a call on PostgreSQL pays it each time.

    Args:
        seconds: The time after which the block is cancelled.
        timer: The timer of the calls on this event loop.

    Raises:
        TimeoutError: At the end of the block, which was cancelled for this limit alone.
    """

    __slots__ = ("_cancelling", "_passed", "_seconds", "_task", "_timer")
    _task: asyncio.Task[Any]

    def __init__(self, seconds: float, timer: SharedTimer) -> None:
        self._seconds = seconds
        self._timer = timer
        self._passed = False

    def __enter__(self) -> None:
        task = asyncio.current_task(self._timer.loop)
        if task is None:
            raise RuntimeError("a call needs a task; await it in one")
        self._task = task
        self._cancelling = task.cancelling()
        self._timer.add(self, self._seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.remove(self)
        # A cancellation by another part of the program counts on, and passes.
        if self._passed and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        self._passed = True
        self._task.cancel()
