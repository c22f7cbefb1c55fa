"""The life of a handle: opened once by whoever comes first, used on one event loop, closed once."""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, TypeVar

from flux_memory.errors import FluxMemoryError, MemoryClosedError

Resource = TypeVar("Resource")

CLOSED: Final = "this memory is closed; open another one"
_TOGETHER: Final = 0.1
"""Seconds within which callers come together, and share what becomes of an opening."""
_LEAST: Final = 1.0
"""Seconds that closing itself may take, however long the calls in flight took."""


class Lifecycle(Generic[Resource]):
    """Owns what a handle opens lazily: a worker thread, a pool.

    Args:
        open_resource: Opens it; called by the first user, and again after a failure.
        close_resource: Closes it, once nothing is in flight or the grace is over, within so many seconds.
        grace: Seconds that `close()` may take, or `_LEAST` more where calls in flight take all of them.
    """

    def __init__(
        self,
        open_resource: Callable[[], Coroutine[Any, Any, Resource]],
        close_resource: Callable[[Resource, float], Awaitable[None]],
        grace: float,
    ) -> None:
        self._open_resource = open_resource
        self._close_resource = close_resource
        self._grace = grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[Resource] | None = None
        self._opening_began = 0.0
        self._closing: asyncio.Task[None] | None = None
        self.resource: Resource | None = None
        """What is open now, if anything is; it stays here until it is closed."""
        self._in_flight = 0
        self._idle = asyncio.Event()
        self.forked = False
        self.closed = False
        self._ended = False
        """Set by `close()` when it stops waiting for calls: nothing is opened or handed out any more."""
        _LIVES.add(self)

    def check_open(self) -> None:
        """Raise `MemoryClosedError` after `close()`, and `FluxMemoryError` where it belongs to a parent process."""
        if self.closed:
            raise MemoryClosedError(CLOSED)
        if self.forked:
            raise FluxMemoryError(
                "this memory was opened before the process forked, and belongs to the parent; create one in the child"
            )

    async def opened(self) -> Resource:
        """Return the resource; the first caller begins to open it, and all who come meanwhile wait for that.

        Raises:
            FluxMemoryError: The handle belongs to another event loop.
            MemoryClosedError: `close()` gave up waiting before the opening was done.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                raise FluxMemoryError(
                    "this memory was first used on another event loop, and its connections live there; "
                    "create one memory for each event loop"
                )
            self._loop = loop
        # An opening that began earlier has less time left than this call, and may fail for lack of it: tried again.
        earlier = self._opening if loop.time() - self._opening_began > _TOGETHER else None
        while not self._ended:
            if self.resource is not None:
                return self.resource
            opening = self._opening or self._begin_opening(loop)
            # It neither cancels the opening with this caller, nor this caller with the opening: that one is cancelled
            # with every other task of the loop, and begins anew for a caller that is left.
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is not None and opening is not earlier:
                opening.result()
        raise MemoryClosedError(CLOSED)

    def _begin_opening(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[Resource]:
        self._opening_began = loop.time()
        self._opening = loop.create_task(self._open_resource())
        self._opening.add_done_callback(self._finish_opening)
        return self._opening

    def _finish_opening(self, opening: asyncio.Task[Resource]) -> None:
        """Runs before any caller wakes, also where the task was cancelled before its first step."""
        if opening is not self._opening:
            return
        self._opening = None
        # Asking for the exception also keeps asyncio from logging it where every caller is gone.
        if not opening.cancelled() and opening.exception() is None:
            self.resource = opening.result()

    def leave_to_parent(self) -> None:
        """Let go of what was opened before this process was forked; what was not opened yet can be opened here."""
        if self._loop is None:
            return
        _PARENTS.append((self, self.resource))
        self.resource = None
        self._loop = self._opening = self._closing = None
        self._in_flight = 0
        self.forked = True

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a call, so that `close()` waits for it."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def close(self) -> None:
        """Refuse new calls, wait for those in flight, close the resource.

        Safe to call again, also at once; after a close that was cancelled it continues.
        """
        self.closed = True
        loop = asyncio.get_running_loop()
        while not self._ended or self.resource is not None:
            closing = self._closing
            if closing is None or closing.done() or closing.get_loop() is not loop:
                closing = self._closing = loop.create_task(self._close())
            await asyncio.wait([closing])
            if not closing.cancelled():
                closing.result()

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._grace
        if self._loop is loop:
            if self._in_flight:
                self._idle.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._idle.wait(), self._grace)
            if self._opening is not None:
                await asyncio.wait([self._opening], timeout=max(end - loop.time(), 0))
        self._ended = True
        if self._loop is loop and self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening], timeout=_LEAST)
        if self.resource is not None:
            await self._close_resource(self.resource, max(end - loop.time(), _LEAST))
            self.resource = None


_LIVES: weakref.WeakSet[Lifecycle[Any]] = weakref.WeakSet()
_PARENTS: list[Any] = []
"""What a parent process opened, kept to the end of this one: destroyed here, it would be shut down there."""


def _leave_all_to_parent() -> None:
    for life in list(_LIVES):
        life.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)


def warn_never_closed(handle: object) -> None:
    """Warn, from a handle's `__del__`, that `close()` was forgotten."""
    message = f"{handle!r} was never closed; use 'async with' or close()"
    warnings.warn(message, ResourceWarning, stacklevel=3, source=handle)
