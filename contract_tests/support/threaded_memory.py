"""A `Memory` on `SyncMemory`, for the contract: a thread makes each call, and blocks in it as any caller does."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Self

from flux_memory import Memory
from flux_memory.sync import SyncMemory

THREADS: Final = 64
"""Calls of a handle that run at the same time; further ones wait."""


class ThreadedMemory:
    """The calls of a `SyncMemory` as coroutines. A cancelled call waits for its thread, which cannot be interrupted."""

    def __init__(self, memory: Memory) -> None:
        self._memory: Final = SyncMemory(memory)
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    async def close(self) -> None:
        """See `Memory`."""
        await self.run(self._memory.close)
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    @property
    def feedback(self) -> ThreadedFeedback:
        """See `Memory`."""
        return ThreadedFeedback(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def run(self, call: Callable[[], Any]) -> Any:
        """Make a call in a thread, with the deadline of this context."""
        if self._closed:
            return call()  # it raises at once, or does nothing
        self._threads = self._threads or ThreadPoolExecutor(THREADS)
        running = self._threads.submit(contextvars.copy_context().run, call)
        answer = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            # The next call on this handle must find the work done, or never to be done.
            await asyncio.wait({answer})
            raise


class ThreadedFeedback:
    """The calls of a `SyncFeedback` as coroutines."""

    def __init__(self, memory: ThreadedMemory) -> None:
        self._threaded: Final = memory

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            memory = self._threaded
            return await memory.run(lambda: getattr(memory._memory.feedback, name)(*args, **kwargs))

        return call


def _in_a_thread(name: str) -> Callable[..., Any]:
    async def call(self: ThreadedMemory, *args: Any, **kwargs: Any) -> Any:
        return await self.run(partial(getattr(self._memory, name), *args, **kwargs))

    return call


for _name, _method in inspect.getmembers(Memory, inspect.isfunction):
    if not _name.startswith("_") and _name != "close":
        setattr(ThreadedMemory, _name, _in_a_thread(_name))
