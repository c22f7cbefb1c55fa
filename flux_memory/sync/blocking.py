"""Runs a memory's calls on an event loop in a thread of its own; each call blocks its caller until it has ended."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

from flux_memory.backends.lifecycle import warn_never_closed
from flux_memory.backends.loops import CLOSED, LoopThread
from flux_memory.backends.pool_stats import PoolStats
from flux_memory.errors import InvalidTypeError, MemoryClosedError
from flux_memory.protocol import Memory, not_supported

Result = TypeVar("Result")

_EXIT_SECONDS: Final = 1.0
"""Seconds that closing waits for the thread after the memory is closed."""


class BlockingCalls:
    """A memory and the thread that runs its calls, from the first call on.

    Args:
        memory: The memory to call.

    Raises:
        InvalidTypeError: `memory` is not a `Memory`.
    """

    def __init__(self, memory: Memory) -> None:
        if isinstance(memory, BlockingCalls) or not callable(getattr(memory, "add_message", None)):
            raise InvalidTypeError(
                f"memory must be a Memory, not {type(memory).__name__}; flux_memory.create_memory() makes one"
            )
        self._memory: Final = memory
        self._lock: Final = threading.Lock()
        self._thread: LoopThread | None = None

    def ping(self) -> float:
        """Return the seconds of a round trip to the store, on the way that every call takes.

        Raises:
            BackendUnavailableError: The store did not answer within the deadline.
            InvalidInputError: The memory is not one of this library's, and has no `ping()`.
        """
        ping: Callable[[], Awaitable[float]] = self._own_method("ping")
        return self._call(lambda _: ping())

    def pool_stats(self) -> PoolStats:
        """Return the figures of the memory's connections; see `ConversationMemory` and `PostgresConversationMemory`.

        Raises:
            InvalidInputError: The memory is not one of this library's, and has no `pool_stats()`.
        """
        stats: PoolStats = self._own_method("pool_stats")()
        return stats

    def _own_method(self, name: str) -> Callable[[], Any]:
        """Return a method that this library's memories have beside those of `Memory`."""
        method: Callable[[], Any] | None = getattr(self._memory, name, None)
        if method is None:
            raise not_supported(name)
        return method

    def __enter__(self) -> Self:
        """Return the memory itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the memory."""
        self._close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, '_memory', 'not opened')!r})"

    def __del__(self) -> None:
        thread: LoopThread | None = getattr(self, "_thread", None)
        if thread is not None and not thread.has_ended:
            warn_never_closed(self)
            thread.stop_after(self._memory.close)

    def _call(self, call: Callable[[Memory], Awaitable[Result]]) -> Result:
        return self._started().call(lambda: call(self._memory))

    def _check_open(self) -> None:
        """Refuse a call on a closed handle before the call looks at its arguments."""
        if self._started().has_ended:
            raise MemoryClosedError(CLOSED)

    def _close(self) -> None:
        thread = self._started()
        if thread.is_current:  # a finalizer; waiting would be for ever
            thread.stop_after(self._memory.close)
        elif not thread.has_ended:
            with suppress(MemoryClosedError):  # another thread has just closed it
                thread.call(self._memory.close)
            thread.stop()
            thread.join(_EXIT_SECONDS)

    def _started(self) -> LoopThread:
        if self._thread is None:
            with self._lock:
                self._thread = self._thread or LoopThread()
        return self._thread
