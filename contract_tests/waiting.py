"""Waiting for a state of something that does not tell: asked again until it is there, within a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], Awaitable[object]], *, seconds: float = 15.0) -> None:
    """Return when the condition holds.

    Raises:
        TimeoutError: It did not within the deadline.
    """
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - another process or thread has no event to wait for
            await asyncio.sleep(0.01)
