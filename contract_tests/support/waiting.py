"""Polls for states that no event announces, within a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def wait_until(condition: Callable[[], Awaitable[object]], *, seconds: float = 15.0) -> None:
    """Return when the condition holds.

    Raises:
        TimeoutError: the condition did not hold within the deadline.
    """
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - another process or thread has no event to wait for
            await asyncio.sleep(0.01)


def becomes_true(condition: Callable[[], object], *, seconds: float = 15.0) -> bool:
    """Poll until the condition holds; return whether it does within the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
