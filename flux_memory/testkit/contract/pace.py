"""The pace of a store: its calls may be slow and its clock coarse, so clauses wait for it instead of counting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

Result = TypeVar("Result")

AT_ONCE: Final = 16
"""Calls in flight where their order does not matter, so that the tests of a distant store take less time."""
RESOLUTION_SECONDS: Final = 1.0
"""How coarse the times of a store may be."""
_PAUSE_SECONDS: Final = 0.02
"""The pause between two changes while the clock has not moved on: a coarse clock costs few changes."""
_FIRST_SECONDS: Final = 0.25
"""How long the first calls on a handle take at most on a store for which the deadlines after an outage are made."""


async def together(calls: Iterable[Awaitable[Result]]) -> list[Result]:
    """Await calls that do not depend on each other, some of them at the same time; return their results in order.

    Raises:
        BaseException: A call failed.
    """
    queue, results = enumerate(calls), dict[int, Result]()

    async def work() -> None:
        for at, call in queue:
            results[at] = await call

    for outcome in await asyncio.gather(*(work() for _ in range(AT_ONCE)), return_exceptions=True):
        if outcome is not None:
            raise outcome
    return [results[at] for at in sorted(results)]


async def bumped(change: Callable[[], Awaitable[object]], is_later: Callable[[], Awaitable[bool]]) -> bool:
    """Repeat a change until its time is later, however coarse the store's clock may be.

    Args:
        change: Makes the change.
        is_later: Returns whether the change has a later time.

    Returns:
        Whether it has, at the latest once the resolution of a store has passed twice.
    """
    began = time.monotonic()
    while True:
        last = time.monotonic() - began > 2 * RESOLUTION_SECONDS
        await change()
        if await is_later():
            return True
        if last:
            return False
        await asyncio.sleep(_PAUSE_SECONDS)


async def stretched(first: Awaitable[Result]) -> tuple[Result, float]:
    """Await the first calls on a handle; return their result, and by how much to stretch the deadlines of later ones.

    After an outage a handle may have to connect again, which takes as long as its first calls: several round trips.
    """
    began = time.monotonic()
    result = await first
    return result, max(1.0, (time.monotonic() - began) / _FIRST_SECONDS)
