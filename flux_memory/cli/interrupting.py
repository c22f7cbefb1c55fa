"""Runs the work of a command so that SIGINT and SIGTERM cancel it, which lets it clean up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restore the handlers of signals at the end."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def interruptible(work: Coroutine[Any, Any, Result]) -> Result:
    """Cancel the work on SIGTERM as on SIGINT, unless it is done."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end(*_: object) -> None:
        if task is not None and not task.done():
            loop.call_soon_threadsafe(task.cancel)

    # Not the event loop's handlers, which end with the loop, before the verdict is shown.
    for number in _ENDING:
        signal.signal(number, end)
    try:
        return await work
    except asyncio.CancelledError:
        # asyncpg leaves a future behind if its connecting is cancelled; the loop would report it on the terminal.
        loop.set_exception_handler(lambda *_: None)
        raise
