"""How long a call may take: the handle's `timeout`, or less or more of it for the calls of one block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from flux_memory import records

_SECONDS: Final[ContextVar[float | None]] = ContextVar("flux_memory_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give each call in the block this long, whatever the `timeout` of its handle is.

    It holds for the task that enters it and for those it starts. Of nested blocks the innermost counts.

        with deadline(2):
            await memory.add_message(session, "user", "Hello")

    Args:
        seconds: Within which each call of the block ends.

    Raises:
        InvalidInputError: It is not a positive, finite number.
    """
    token = _SECONDS.set(records.check_seconds("seconds", seconds))
    try:
        yield
    finally:
        _SECONDS.reset(token)


def seconds_for(timeout: float) -> float:
    """Return the seconds that a call has on a handle with this timeout."""
    override = _SECONDS.get()
    return timeout if override is None else override
