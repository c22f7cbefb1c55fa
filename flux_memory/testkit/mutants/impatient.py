"""Memories that break if calls have deadlines, all tasks are cancelled, or the store is unreachable."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from flux_memory import BackendUnavailableError, FluxMemoryError, deadline
from flux_memory.backends.deadlines import seconds_for
from flux_memory.testkit.mutants.catalogue import Sound, caught_by

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

LONG_SECONDS = 30.0
"""The deadline of a call without one."""


class _WorksInATask(Sound):
    """Works in a task that ignores the caller's deadline and cancellation."""

    after_seconds = 0.0

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        work = asyncio.ensure_future(self._work(super().add_message(*args, **kwargs)))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(seconds_for(LONG_SECONDS)):
                return await asyncio.shield(work)
        except TimeoutError:
            raise BackendUnavailableError("not within the deadline; nothing was stored") from None

    async def _work(self, call: Any) -> Any:
        await asyncio.sleep(self.after_seconds)
        with deadline(LONG_SECONDS):
            return await call


@caught_by("FM-DLN-001")
class StoresWhatItRefused(_WorksInATask):
    after_seconds = 0.003


@caught_by("FM-DLN-001")
class RefusedBatchesAreStored(Sound):
    async def add_messages(self, *args: Any, **kwargs: Any) -> Any:
        before, seconds = time.monotonic(), seconds_for(LONG_SECONDS)
        with deadline(LONG_SECONDS):
            made = await super().add_messages(*args, **kwargs)
        await asyncio.sleep(0.001)
        if time.monotonic() - before > seconds:
            raise BackendUnavailableError("not within the deadline; nothing was stored")
        return made


@caught_by("FM-DLN-002")
class LooksAtTheClockLast(Sound):
    """Stores, and then fails if the deadline has passed meanwhile."""

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        before, seconds = time.monotonic(), seconds_for(LONG_SECONDS)
        with deadline(LONG_SECONDS):
            made = await super().add_message(*args, **kwargs)
        await asyncio.sleep(0)
        if time.monotonic() - before > seconds:
            raise BackendUnavailableError("not within the deadline; nothing was stored")
        return made


@caught_by("FM-DLN-003")
class SendsForCallersThatAreGone(_WorksInATask):
    """Sends waiting writes once the store is back, although their callers got an error."""


@caught_by("FM-DLN-004")
class WaitsAsLongAsItsNeighbours(Sound):
    """Gives each call the longest deadline of all calls in flight."""

    until = 0.0

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        self.until = max(self.until, now + seconds_for(LONG_SECONDS))
        with deadline(self.until - now):
            return await super().add_message(*args, **kwargs)


@caught_by("FM-DLN-005")
class OneCallAtATime(Sound):
    """Blocks every session while a call of one session waits."""

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        lock = self.__dict__.setdefault("one_at_a_time", asyncio.Lock())
        try:
            async with asyncio.timeout(seconds_for(LONG_SECONDS)):
                await lock.acquire()
        except TimeoutError:
            raise BackendUnavailableError("no connection was free") from None
        try:
            return await super().add_message(*args, **kwargs)
        finally:
            lock.release()


@caught_by("FM-DLN-006")
class SendsWhatWasCancelled(Sound):
    """Ends at the caller's deadline, but ignores cancellation."""

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        with deadline(LONG_SECONDS):
            work = asyncio.ensure_future(super().add_message(*args, **kwargs))
        try:
            async with asyncio.timeout(seconds_for(LONG_SECONDS)) as timer:
                return await asyncio.shield(work)
        except (TimeoutError, asyncio.CancelledError):
            if not timer.expired():
                raise
            work.cancel()
            raise BackendUnavailableError("not within the deadline; nothing was stored") from None


@caught_by("FM-CAN-013")
class BeginsBeforeItIsAwaited(Sound):
    """A plain method instead of a coroutine: the work starts before the caller awaits it."""

    def add_message(self, *args: Any, **kwargs: Any) -> Any:
        return asyncio.shield(asyncio.ensure_future(super().add_message(*args, **kwargs)))


@caught_by("FM-CAN-014")
class OneTaskDoesAllTheWork(Sound):
    """A single task takes calls from a queue; after it is cancelled, no call is answered."""

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        queue = self.__dict__.setdefault("queue", asyncio.Queue())
        if "worker" not in self.__dict__:
            self.__dict__["worker"] = asyncio.ensure_future(self._serve(queue))
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.__dict__["worker"].done():
            raise BackendUnavailableError("the writer is gone")
        queue.put_nowait((super().add_message(*args, **kwargs), answer))
        return await answer

    async def _serve(self, queue: Any) -> None:
        while True:
            call, answer = await queue.get()
            try:
                answer.set_result(await call)
            except FluxMemoryError as error:
                answer.set_exception(error)


@caught_by("FM-CAN-014")
class CountsCallsInATask(Sound):
    """Limits the calls in flight; a call that is cancelled in its first step stays counted."""

    under_way = 0

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        if self.under_way >= 6:
            raise BackendUnavailableError("no connection was free")
        self.under_way += 1
        work = asyncio.ensure_future(self._counted(super().add_message(*args, **kwargs)))
        return await work

    async def _counted(self, call: Any) -> Any:
        try:
            return await call
        finally:
            self.under_way -= 1


class _OpensInATask(Sound):
    """Opens in a task that every caller awaits, and keeps the task even if it was cancelled."""

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        await self._opened()
        return await super().create_session(*args, **kwargs)

    async def _opened(self) -> None:
        if "opening" not in self.__dict__:
            self.__dict__["opening"] = asyncio.ensure_future(asyncio.sleep(0))
        try:
            await asyncio.shield(self.__dict__["opening"])
        except asyncio.CancelledError:
            if self.__dict__["opening"].cancelled():
                raise BackendUnavailableError("this memory is closed") from None
            raise


@caught_by("FM-CAN-015")
class OpensOnceAtMost(_OpensInATask):
    pass


@caught_by("FM-CAN-016")
class ClosesInATaskThatMayDie(Sound):
    """Closes in a task, and considers the memory closed even if the task was cancelled."""

    async def close(self) -> None:
        if "closing" not in self.__dict__:
            self.__dict__["closing"] = asyncio.ensure_future(self._close_later())
        if not self.__dict__["closing"].done():
            await asyncio.shield(self.__dict__["closing"])

    async def _close_later(self) -> None:
        await asyncio.sleep(0)
        await super().close()


@caught_by("FM-CAP-004")
class BrokenByAnOutage(Sound):
    """Never reconnects after an outage."""

    broken = False

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        if self.broken:
            raise BackendUnavailableError("the connection is closed")
        try:
            return await super().add_message(*args, **kwargs)
        except BackendUnavailableError:
            self.broken = True
            raise


@caught_by("FM-CAP-004")
class DriverErrorsInAnOutage(Sound):
    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().add_message(*args, **kwargs)
        except BackendUnavailableError as error:
            raise ConnectionResetError from error
