"""One timer of the event loop for many time limits: most of them end early, and a timer for each costs more."""

from __future__ import annotations

import asyncio
import math
from typing import Final


class Expiring:
    """Something that ends at a time, unless it is removed from its timer before."""

    __slots__ = ("expires",)
    expires: float
    """The time of the event loop at its end."""

    def expire(self) -> None:
        """End, or be added again; called on the event loop, and must not raise."""
        raise NotImplementedError


class SharedTimer:
    """Ends in time what is added to it.

    Args:
        loop: The event loop, on which every call to the timer is made.
    """

    __slots__ = ("_handle", "_pending", "_rings", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self._pending: dict[Expiring, None] = {}
        self._rings = math.inf
        """When the event loop's timer ends, which is not after the first of what is pending."""
        self._handle: asyncio.TimerHandle | None = None

    def add(self, limited: Expiring, seconds: float) -> None:
        """End something after a number of seconds."""
        limited.expires = expires = self.loop.time() + seconds
        self._pending[limited] = None
        if expires < self._rings:
            self._set(expires)

    def remove(self, limited: Expiring) -> None:
        """Do not end something any more; it may have ended."""
        self._pending.pop(limited, None)

    def stop(self) -> None:
        """Take the timer off the event loop, if nothing is pending; an addition sets it again."""
        if self._handle is not None and not self._pending:
            self._handle.cancel()
            self._rings, self._handle = math.inf, None

    def _set(self, moment: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._rings = moment
        self._handle = self.loop.call_at(moment, self._ring)

    def _ring(self) -> None:
        self._rings, self._handle = math.inf, None
        # The event loop may be early by less than a step of its clock.
        now = self.loop.time()
        due = [limited for limited in self._pending if limited.expires <= now]
        for limited in due:
            del self._pending[limited]
        if self._pending:
            self._set(min(limited.expires for limited in self._pending))
        for limited in due:
            limited.expire()
