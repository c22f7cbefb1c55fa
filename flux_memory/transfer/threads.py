"""Work that blocks, on a thread: a cancellation ends it, and waits until it has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

Result = TypeVar("Result")

_AGAIN: Final = 0.05
"""Seconds after which work that goes on is stopped again."""


async def on_thread(work: Callable[[], Result], stop: Callable[[], object]) -> Result:
    """Run work on a thread.

    Whoever lets go of what the work uses, such as a SQLite connection, while it runs, crashes the process. So a
    cancellation is passed on only when the work has ended.

    Args:
        work: What blocks.
        stop: Makes it end soon, by whatever error; called from the event loop's thread, again and again, since what
            comes between two statements stops neither.
    """
    begun = threading.Event()

    def begin() -> Result:
        begun.set()
        return work()

    working = asyncio.ensure_future(asyncio.to_thread(begin))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            stop()
            if not begun.is_set():
                # Others keep all threads busy.
                working.cancel()
            await asyncio.wait([working], timeout=_AGAIN)
        with suppress(BaseException):
            working.result()
        raise
