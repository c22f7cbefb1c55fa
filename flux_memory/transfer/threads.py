"""Runs blocking work in a thread that always ends before the call returns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVar

Result = TypeVar("Result")
Stopped = Callable[[], bool]
"""Returns whether the work was cancelled."""

_AGAIN_SECONDS: Final = 0.05
"""Pause between two attempts to stop the work."""


async def run_in_thread(
    work: Callable[[], Result], stop: Callable[[], object], undo: Callable[[], object] | None = None
) -> Result:
    """Run blocking work on a thread, and end only after the thread has ended.

    The caller may therefore close what the work uses, such as a SQLite connection; closing it under a running thread
    crashes the process. This holds however often the call is cancelled. The thread is not a task, so cancelling every
    task of the event loop does not end the wait for it.

    Args:
        work: Blocks.
        stop: Makes the work end soon, by any error. Called from the event loop's thread after a cancellation, and
            repeatedly, since an interrupt that arrives between two statements stops neither.
        undo: Takes back the work if it succeeds although the call was cancelled.
    """
    loop = asyncio.get_running_loop()
    outcome: Future[Result] = Future()
    ended = loop.create_future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised by the call
            outcome.set_exception(error)
        # The loop may be closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set_result, None)

    cancelled: asyncio.CancelledError | None = None
    thread = threading.Thread(target=run, name="flux-memory-transfer")
    thread.start()
    try:
        while not outcome.done():
            try:
                await asyncio.wait([ended], timeout=_AGAIN_SECONDS if cancelled else None)
            except asyncio.CancelledError as error:
                cancelled = error
            if cancelled and not outcome.done():
                stop()
    finally:
        # The thread is still at work only if the loop was abandoned, where nothing can be awaited any more.
        while thread.is_alive():
            if not outcome.done():
                stop()
            thread.join(_AGAIN_SECONDS)
    if cancelled is None:
        return outcome.result()
    if undo is not None and outcome.exception() is None:
        undo()
    raise cancelled


async def run_stoppable(work: Callable[[Stopped], Result]) -> Result:
    """Run blocking work on a thread as `run_in_thread` does; the work is given a function that says when to end."""
    stopped = threading.Event()
    return await run_in_thread(lambda: work(stopped.is_set), stopped.set)
