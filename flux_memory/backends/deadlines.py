"""Sets the deadline of the calls in a block, in place of the `timeout` of their handles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from flux_memory import records

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
