"""Opens a handle's resource at its first call on its home loop, runs the calls of other loops, and closes it once."""

from __future__ import annotations

import asyncio
import math
import os
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import wraps
from threading import Lock
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar

from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.loops import CLOSED, FORKED, LoopThread, run_on
from flux_memory.backends.observation import Observers, StoreName
from flux_memory.backends.shared_timer import SharedTimer
from flux_memory.errors import FluxMemoryError, MemoryClosedError

Arguments = ParamSpec("Arguments")
Resource = TypeVar("Resource")
Result = TypeVar("Result")

_SHARED_OPENING_SECONDS: Final = 0.1
"""Seconds after the start of an opening within which a call shares its failure; later calls retry."""
_UNNEEDED_OPENING_SECONDS: Final = 0.2
"""Seconds that closing waits for an opening that no call needs any more, and which may be about to end."""
_MIN_CLOSE_SECONDS: Final = 1.0
"""Seconds that closing may take even if the calls in flight used up all the time."""


class Twin(Protocol):
    """The part of a handle that its calls from other event loops need."""

    @property
    def _life(self) -> Lifecycle[Any]: ...

    async def close(self) -> None: ...


Handle = TypeVar("Handle", bound=Twin)


def on_any_loop(
    method: Callable[Concatenate[Handle, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Handle, Arguments], Coroutine[Any, Any, Result]]:
    """Make a method of a handle callable from any event loop, until the handle is closed.

    The first call makes its loop the handle's home. A call from another loop, or after the home has ended, runs on a
    twin of the handle, whose home is the loop of a thread of its own. Observers see the name of the method, or the
    keyword argument `operation` of a method that runs calls of several names.
    """
    own_name = method.__name__.lstrip("_")

    @wraps(method)
    async def call(self: Handle, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        life = self._life
        life.check_open()
        if life.is_home():
            if (observer := life.observers.active) is None:
                return await method(self, *args, **kwargs)
            operation = str(kwargs.get("operation", own_name)) if kwargs else own_name
            with observer.call(operation, life.observers):
                return await method(self, *args, **kwargs)
        return await life.visit(lambda twin: call(twin, *args, **kwargs))

    return call


class _CallCount:
    """The number of calls in flight, and a context that each of them enters, at a fraction of a generator's cost."""

    __slots__ = ("_idle", "calls")

    def __init__(self) -> None:
        self.calls = 0
        self._idle = asyncio.Event()

    def __enter__(self) -> None:
        self.calls += 1

    def __exit__(self, *_: object) -> None:
        self.calls -= 1
        if not self.calls:
            self._idle.set()

    async def ended(self) -> None:
        """Wait until no call is in flight; the next one may begin before the waiter runs."""
        self._idle.clear()
        await self._idle.wait()


class Lifecycle(Generic[Resource]):
    """Owns the resource that a handle opens lazily: a worker thread or a pool.

    Args:
        open_resource: Opens the resource; called at the first call, and again after a failure.
        close_resource: Closes the resource within a number of seconds, once no call is in flight or the grace is over.
        grace: Seconds that `close()` may take outside any `deadline()`, plus `_MIN_CLOSE_SECONDS` if calls in flight
            take all of them.
        make_twin: Makes another handle on the same store, for calls from other event loops; takes this object.
        observers: The observers of the handle's calls.
    """

    timer: SharedTimer
    """The timer of the calls on the home loop."""

    def __init__(
        self,
        open_resource: Callable[[], Coroutine[Any, Any, Resource]],
        close_resource: Callable[[Resource, float], Awaitable[None]],
        grace: float,
        make_twin: Callable[[Lifecycle[Resource]], Any],
        observers: Observers | None = None,
    ) -> None:
        self.observers: Final = observers or Observers(StoreName("", ""))
        self._open_resource = open_resource
        self._close_resource = close_resource
        self._grace = grace
        self._make_twin = make_twin
        self._lock = Lock()
        """Held while the home is chosen and while the twin is made."""
        self.is_twin = False
        self._away: tuple[LoopThread, Any] | None = None
        """The twin for calls from other event loops, and the thread of its loop."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """The home, which `timer` is set before."""
        self._opening: asyncio.Task[Resource] | None = None
        """The opening that runs, or the one that succeeded."""
        self._opening_began = 0.0
        self._waiting = 0
        """Callers that wait for the opening, or have not run since it ended."""
        self._closing: asyncio.Task[None] | None = None
        self._close_by = math.inf
        self.resource: Resource | None = None
        """The open resource, if any, until it is closed."""
        self.in_flight: Final = _CallCount()
        """A context that counts a call, so that `close()` waits for it."""
        self.forked = False
        self.closed = False
        self._ended = False
        """`close()` has stopped waiting for calls: `opened()` raises from now on."""
        _LIFECYCLES.add(self)

    def check_open(self) -> None:
        """Raise `MemoryClosedError` after `close()`, and `FluxMemoryError` if the handle is a parent process's."""
        if self.closed:
            raise MemoryClosedError(CLOSED)
        if self.forked:
            raise FluxMemoryError(FORKED)

    def is_home(self) -> bool:
        """Return whether the running event loop is the handle's home; that of the first call becomes it."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            with self._lock:
                if self._loop is None:
                    self.timer = SharedTimer(loop)
                    self._loop = loop
        return self._loop is loop

    async def visit(self, call: Callable[[Any], Coroutine[Any, Any, Result]]) -> Result:
        """Run a call on the twin, on the loop of its own thread.

        Raises:
            MemoryClosedError: The handle was closed meanwhile.
        """
        with self._lock:
            if self.closed:
                raise MemoryClosedError(CLOSED)
            if self._away is None or self._away[0].has_ended:
                twin = self._make_twin(self)
                twin._life.is_twin = True  # noqa: SLF001 - a handle, whose lifecycle is for this module
                self._away = (LoopThread(), twin)
            thread, twin = self._away
        return await thread.run(lambda: call(twin))

    async def share(self) -> Resource:
        """Return the resource for use on another event loop as well; open it there if the home has not."""
        home = self._loop
        while self.resource is None:
            if home is None or not home.is_running():
                self.resource = await self._open_resource()
            elif not (answer := await run_on(home, self.opened)).cancelled():
                return answer.result()
        return self.resource

    @property
    def open_now(self) -> Resource | None:
        """The resource, if `opened()` would return it at once."""
        return None if self._waiting or self._ended else self.resource

    async def opened(self) -> Resource:
        """Return the resource; the first caller starts to open it, and later ones wait for the same opening.

        Raises:
            MemoryClosedError: `close()` stopped waiting before the resource was open.
        """
        loop = asyncio.get_running_loop()
        # An earlier opening has less time left than this call: if it fails, this call starts another.
        earlier = self._opening if loop.time() - self._opening_began > _SHARED_OPENING_SECONDS else None
        # A call that comes while others wake up waits behind them: it must not overtake their messages.
        overtakes = self._waiting > 0
        while not self._ended:
            if self.resource is not None and not overtakes:
                return self.resource
            opening = self._opening or self._begin_opening(loop)
            self._waiting += 1
            try:
                # A cancelled caller does not cancel the opening, nor the other way round: an application may cancel
                # every task, and a caller that still waits starts another opening.
                await asyncio.wait([opening])
            finally:
                self._waiting -= 1
            overtakes = False
            if not opening.cancelled() and opening.exception() is not None and opening is not earlier:
                opening.result()
        raise MemoryClosedError(CLOSED)

    def _begin_opening(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[Resource]:
        self._opening_began = loop.time()
        self._opening = loop.create_task(self._open_resource())
        self._opening.add_done_callback(self._finish_opening)
        return self._opening

    def _finish_opening(self, opening: asyncio.Task[Resource]) -> None:
        """Store the resource: as a callback, before any caller wakes, even if the task never ran."""
        if opening is not self._opening:
            return
        # Retrieving the exception also keeps asyncio from logging it if every caller is gone.
        if opening.cancelled() or opening.exception() is not None:
            self._opening = None
        else:
            self.resource = opening.result()

    def leave_to_parent(self) -> None:
        """Leave the resource to the parent process; a handle that was not used before the fork stays usable."""
        self._lock = Lock()  # another thread of the parent may hold it
        if self._loop is None:
            return
        _PARENT_RESOURCES.append((self, self.resource, self._away))
        self.resource = None
        self._loop = self._opening = self._closing = self._away = None
        self.in_flight.calls = 0
        self.forked = True

    async def close(self) -> None:
        """Refuse new calls, wait for those in flight, close the resource.

        Safe to call again, also concurrently; after a cancelled close the next one continues. Concurrent closes end at
        the earliest of their deadlines.
        """
        self.closed = True
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds_for(self._grace)
        await self._close_away()
        if not await self._closed_at_home(end - loop.time()):
            await self._close_here(end)

    async def _close_away(self) -> None:
        """Close the twin, and end its thread."""
        with self._lock:
            if self._away is None:
                return
            thread, twin = self._away
        with suppress(MemoryClosedError):
            await thread.run(twin.close)
        thread.stop()
        await thread.ended(_MIN_CLOSE_SECONDS)
        self._away = None

    async def _closed_at_home(self, seconds: float) -> bool:
        """Close the resource on the home loop, if that runs in another thread; return whether this succeeded.

        The home of a handle without one is the running loop, so that a first call elsewhere opens nothing any more.
        """
        if self.is_home() or self._loop is None or not self._loop.is_running():
            return False
        closed = await run_on(self._loop, self.close, max(seconds, 0.0) + 2 * _MIN_CLOSE_SECONDS)
        return not closed.cancelled() and closed.exception() is None

    async def _close_here(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        while not self._ended or self.resource is not None:
            closing = self._closing
            if closing is None or closing.done() or closing.get_loop() is not loop:
                self._close_by = end
                closing = self._closing = loop.create_task(self._close(end))
            elif end < self._close_by:
                closing.cancel()
                self._closing = None
                continue
            await asyncio.wait([closing])
            if not closing.cancelled():
                closing.result()

    async def _close(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(end):
                    # A call that is counted again during the wait continues one that was in flight before.
                    while self.in_flight.calls:
                        await self.in_flight.ended()
        if self._loop is loop and self._opening is not None:
            await asyncio.wait([self._opening], timeout=min(max(end - loop.time(), 0), _UNNEEDED_OPENING_SECONDS))
        self._ended = True
        if self._loop is loop and self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening], timeout=_MIN_CLOSE_SECONDS)
        if self.resource is not None:
            await self._close_resource(self.resource, max(end - loop.time(), _MIN_CLOSE_SECONDS))
            self.resource = self._opening = None
        if self._loop is loop:
            self.timer.stop()

    @property
    def is_in_use(self) -> bool:
        """Whether its caller must close the handle; a twin's caller is the handle that made it."""
        return not self.is_twin and (self.resource is not None or self._away is not None)

    def abandon(self) -> None:
        """Close the twin without waiting for it; called when the handle is collected."""
        if self._away is not None:
            thread, twin = self._away
            thread.stop_after(twin.close)


_LIFECYCLES: weakref.WeakSet[Lifecycle[Any]] = weakref.WeakSet()
_PARENT_RESOURCES: list[Any] = []
"""The parent process's resources; they are never destroyed here, which would shut down the parent's connections."""


def _leave_all_to_parent() -> None:
    for life in list(_LIFECYCLES):
        life.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)


def warn_never_closed(handle: object) -> None:
    """Warn, from a handle's `__del__`, that it was not closed."""
    message = f"{handle!r} was never closed; use 'async with' or close()"
    warnings.warn(message, ResourceWarning, stacklevel=3, source=handle)
