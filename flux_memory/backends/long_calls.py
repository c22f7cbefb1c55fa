"""Checks long arguments and builds long results in a thread, so that they do not block the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final, TypeVar

from flux_memory.backends.lifecycle import Lifecycle
from flux_memory.errors import BackendUnavailableError, InvalidInputError
from flux_memory.records.metadata import TooLongError

Result = TypeVar("Result")

INLINE_PARTS: Final = 4_000
"""Parts of JSON, two for each member or element, up to which encoding stays on the event loop: two milliseconds.

Switching to a thread takes 0.1 ms.
"""
INLINE_CHARACTERS: Final = 100_000
"""Characters of JSON up to which decoding stays on the event loop: one millisecond."""
_MAX_THREADS: Final = 4
"""Threads for long work; more would only compete for the interpreter."""


class LongCalls:
    """Keeps the order of a session's writes, also while the arguments of one are checked in a thread.

    Args:
        life: Counts the calls whose arguments are being checked, so that `close()` waits for them.
    """

    def __init__(self, life: Lifecycle[Any]) -> None:
        self._life = life
        self._last: dict[object, asyncio.Future[None]] = {}
        """For each session with such writes: a future that is done once the latest of them has been queued."""

    async def check_in_order(
        self, session_id: object, seconds: float, check: Callable[..., Result]
    ) -> tuple[Result, float]:
        """Return the checked arguments of a write, and the seconds that are left for the write itself.

        The caller queues the write before it awaits anything else, so that later calls to the session follow it.

        Args:
            session_id: The session.
            seconds: The deadline of the call.
            check: Checks the arguments. With `most=`, it raises `TooLongError` for more parts of JSON than that.

        Raises:
            BackendUnavailableError: The deadline passed.
        """
        # A session without a caller's id is in no other call.
        key = session_id if isinstance(session_id, str) else object()
        earlier = self._last.get(key) if self._last else None
        try:
            result = check(most=INLINE_PARTS)
            if earlier is None:
                return result, seconds
            is_long = False
        except TooLongError:
            is_long = True
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        with self._life.in_flight:
            turn = self._last[key] = loop.create_future()
            try:
                async with asyncio.timeout_at(ends):
                    if is_long:
                        result = await loop.run_in_executor(_threads(), _check_in_thread, check)
                    if earlier is not None:
                        await asyncio.wait([earlier])
            except TimeoutError as error:
                raise BackendUnavailableError(
                    f"the arguments, or those of an earlier call to the session, were not encoded within {seconds:g} "
                    "s, and nothing was stored; store less at once, or raise timeout="
                ) from error
            finally:
                if earlier is None or earlier.done():
                    loop.call_soon(self._end_turn, key, turn)
                else:
                    earlier.add_done_callback(lambda _: self._end_turn(key, turn))
        # Bound by the thread where it is not by the first check, which pyright does not see.
        return result, max(ends - loop.time(), 0.0)  # pyright: ignore[reportReturnType]

    def _end_turn(self, key: object, turn: asyncio.Future[None]) -> None:
        turn.set_result(None)
        if self._last.get(key) is turn:
            del self._last[key]


async def build_off_loop(build: Callable[..., Result]) -> Result:
    """Return the records of a read, built in a thread if they are long.

    Args:
        build: Builds them. With `most=`, it raises `TooLongError` if they have more characters of JSON than that.
    """
    try:
        return build(most=INLINE_CHARACTERS)
    except TooLongError:
        return await asyncio.get_running_loop().run_in_executor(_threads(), build)


@cache
def _threads() -> ThreadPoolExecutor:
    """Return threads of our own: all of the event loop's may be waiting for calls like these."""
    return ThreadPoolExecutor(_MAX_THREADS, "flux-memory")


if hasattr(os, "register_at_fork"):
    # The threads are the parent's.
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _check_in_thread(check: Callable[[], Result]) -> Result:
    """Check arguments that the caller's code may change meanwhile; iterating them then raises `RuntimeError`."""
    try:
        return check()
    except RuntimeError as error:
        if isinstance(error, RecursionError):
            raise
        raise InvalidInputError(f"an argument was changed during the call: {error}; change it afterwards") from error
