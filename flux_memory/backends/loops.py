"""An event loop in a thread of its own, for calls from other event loops and from threads without one."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from flux_memory.errors import BackendUnavailableError, FluxMemoryError, MemoryClosedError

Result = TypeVar("Result")
Main = Callable[[], Awaitable[Result]]

CLOSED: Final = "this memory is closed; open another one"
FORKED: Final = "this memory was opened before the process forked, and belongs to the parent; create one in the child"
NO_LOOP: Final = "no event loop of asyncio runs here; under trio call flux_memory.sync in a thread"

_LOOK_SECONDS: Final = 0.05
"""Seconds between two looks at whether another thread's event loop still runs."""


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of asyncio, or of uvloop, that runs in this thread.

    Raises:
        FluxMemoryError: None runs.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise FluxMemoryError(NO_LOOP) from error


class LoopThread:
    """An event loop in a daemon thread, which starts at once.

    A call runs in the context of its caller, so `flux_memory.deadline()` holds for it.

    Raises:
        BackendUnavailableError: The process has no thread or no file descriptor left.
    """

    def __init__(self) -> None:
        self._visits: set[_Visit[Any]] | None = set()
        """The calls that have no outcome yet; `None` once the loop has ended."""
        self._pid = os.getpid()
        self._end: Future[None] = Future()
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="flux-memory-loop", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise BackendUnavailableError(
                f"the thread of an event loop cannot be started: {error}; raise the process's limit of threads"
            ) from error
        try:
            self._loop, self._stop = started.result()
        except OSError as error:
            raise BackendUnavailableError(
                f"an event loop cannot be opened: {error}; raise the process's limit of open files"
            ) from error

    @property
    def has_ended(self) -> bool:
        """Whether the loop takes no more calls; that of a parent process never does."""
        return self._visits is None or os.getpid() != self._pid

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return threading.current_thread() is self._thread

    async def run(self, main: Main[Result]) -> Result:
        """Run a coroutine function on the loop. If the caller is cancelled, it waits until the call has ended, too.

        Raises:
            MemoryClosedError: The loop ended before the call did.
            FluxMemoryError: The process is a fork of the one that started the thread.
        """
        visit = self._send(main)
        answer = asyncio.wrap_future(visit.outcome)
        try:
            await asyncio.wait([answer])
        except asyncio.CancelledError:
            self._call_soon(visit.cancel)
            # Some libraries cancel a task again and again until it ends.
            while not answer.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([answer])
            raise
        if answer.cancelled():
            raise MemoryClosedError(CLOSED)
        return answer.result()

    def call(self, main: Main[Result]) -> Result:
        """Run a coroutine function on the loop, and block this thread until it has ended. Ctrl-C cancels it.

        Raises:
            MemoryClosedError: The loop ended before the call did.
            FluxMemoryError: The process is a fork of the one that started the thread, or this is the loop's thread.
        """
        if self.is_current:
            raise FluxMemoryError("the thread of this memory cannot wait for its own call; call from another thread")
        # Unlike a wait for the outcome itself, this holds no lock that the loop needs while a signal handler runs.
        answers: SimpleQueue[Future[Result]] = SimpleQueue()
        visits = self._accepted()
        visit = _Visit(main, self._finish)
        visit.outcome.add_done_callback(answers.put)
        try:
            self._begin(visit, visits)
            answers.get()
        except BaseException:
            # A signal such as Ctrl-C interrupts this thread.
            if not visit.outcome.done():
                self._call_soon(visit.cancel)
                answers.get()
            raise
        if visit.outcome.cancelled():
            raise MemoryClosedError(CLOSED)
        return visit.outcome.result()

    def stop(self) -> None:
        """Cancel the calls that still run and end the loop, from any thread."""
        self._call_soon(self._stop.set)

    def stop_after(self, main: Main[None]) -> None:
        """Run a coroutine function on the loop, then end the loop; do not wait for either."""
        with suppress(MemoryClosedError):
            self._send(main).outcome.add_done_callback(lambda _: self.stop())

    async def ended(self, seconds: float) -> None:
        """Wait for the end of the loop, for a number of seconds at most."""
        if (await asyncio.wait([asyncio.wrap_future(self._end)], timeout=seconds))[0]:
            self._thread.join(seconds)  # at once: the end is the last thing that the thread does

    def join(self, seconds: float) -> None:
        """Block until the thread has ended, for a number of seconds at most."""
        self._thread.join(seconds)

    def _send(self, main: Main[Result]) -> _Visit[Result]:
        visits = self._accepted()
        visit = _Visit(main, self._finish)
        self._begin(visit, visits)
        return visit

    def _accepted(self) -> set[_Visit[Any]]:
        if os.getpid() != self._pid:
            raise FluxMemoryError(FORKED)
        if (visits := self._visits) is None:
            raise MemoryClosedError(CLOSED)
        return visits

    def _begin(self, visit: _Visit[Any], visits: set[_Visit[Any]]) -> None:
        # Without a lock, which a signal handler or a finalizer that calls could wait for in its own thread.
        visits.add(visit)
        if self.has_ended:
            visit.outcome.cancel()
        self._call_soon(visit.begin)

    def _call_soon(self, function: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and `_run` answers every call
            self._loop.call_soon_threadsafe(function)

    def _finish(self, visit: _Visit[Any]) -> None:
        if (visits := self._visits) is not None:
            visits.discard(visit)

    def _run(self, started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        async def serve() -> None:
            stop = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

        try:
            with asyncio.Runner() as runner:
                runner.get_loop()
                runner.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)
        finally:
            visits, self._visits = self._visits or set(), None
            for visit in list(visits):
                visit.outcome.cancel()
            self._end.set_result(None)


async def run_on(
    loop: asyncio.AbstractEventLoop, main: Main[Result], seconds: float = math.inf
) -> asyncio.Future[Result]:
    """Run a coroutine function on an event loop of another thread.

    Args:
        loop: The event loop.
        main: The coroutine function.
        seconds: The longest time to wait.

    Returns:
        The outcome. It is cancelled if the loop ended or the time passed before the call ended.
    """
    visit = _Visit(main, lambda _: None)
    answer = asyncio.wrap_future(visit.outcome)
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(visit.begin)
    ends = time.monotonic() + seconds
    # A loop that stops does not answer the calls that it has not begun.
    while not answer.done() and loop.is_running() and (left := ends - time.monotonic()) > 0:
        await asyncio.wait([answer], timeout=min(left, _LOOK_SECONDS))
    if not answer.done():
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(visit.cancel)
        answer.cancel()
    return answer


class _Visit(Generic[Result]):
    """One call on the thread's loop."""

    def __init__(self, main: Main[Result], finish: Callable[[_Visit[Any]], None]) -> None:
        self.outcome: Future[Result] = Future()
        self._main = main
        self._finish = finish
        self._task: asyncio.Task[Result] | None = None
        self._exit: BaseException | None = None

    def begin(self) -> None:
        if self.outcome.cancelled():
            return
        self._task = asyncio.get_running_loop().create_task(self._drive())
        self._task.add_done_callback(self._answer)

    async def _drive(self) -> Result:
        try:
            return await self._main()
        except (SystemExit, KeyboardInterrupt) as error:
            # For the caller; out of a task it would end the loop.
            self._exit = error
            raise asyncio.CancelledError from error

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:
            # Ctrl-C came before the call was sent.
            self._finish(self)
            self.outcome.cancel()

    def _answer(self, task: asyncio.Task[Result]) -> None:
        self._finish(self)
        if self._exit is not None and not self.outcome.cancelled():
            self.outcome.set_exception(self._exit)
        elif task.cancelled() or self.outcome.cancelled():
            self.outcome.cancel()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())
