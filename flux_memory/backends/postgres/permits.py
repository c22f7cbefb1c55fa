"""The permits of a pool: one for each connection that calls may use at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress


class Permits:
    """What `asyncio.Semaphore` does, with a way to take a free permit without waiting, at a fraction of its cost.

    A permit that is released goes to the caller that has waited longest.

    Args:
        number: The number of permits.
    """

    __slots__ = ("_free", "_waiters")

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiters: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take a permit if one is free; then no caller waits."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def wait(self) -> None:
        """Take a permit, once one is free."""
        if self.take():
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            # A caller may be cancelled after it got the permit, and before it runs.
            if waiter.done() and not waiter.cancelled():
                self.release()
            else:
                # `release()` may have passed it over.
                with suppress(ValueError):
                    self._waiters.remove(waiter)
            raise

    def release(self) -> None:
        """Give a permit back."""
        while self._waiters:
            if not (waiter := self._waiters.popleft()).done():
                waiter.set_result(None)
                return
        self._free += 1
