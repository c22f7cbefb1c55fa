"""Memories that break clauses on shutdown."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from flux_memory import (
    BackendUnavailableError,
    FluxMemoryError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import LOCK_SECONDS


@caught_by("FM-CAN-008")
class OpensOnce(Sound):
    opening = False

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        return await self._opened(super().create_session(*args, **kwargs))

    async def get_session(self, session_id: Any) -> Any:
        return await self._opened(super().get_session(session_id))

    async def _opened(self, call: Awaitable[Any]) -> Any:
        if self.opening:
            call.close()  # type: ignore[attr-defined]  # it is a coroutine
            raise BackendUnavailableError("the memory was never opened completely")
        self.opening = True
        await asyncio.sleep(0)
        self.opening = False
        return await call


@caught_by("FM-CAN-011")
class LeaksConnections(Sound):
    """A pool of ten connections that loses one with every cancelled call."""

    free = 10

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        return await self._pooled(super().create_session(*args, **kwargs))

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        return await self._pooled(super().add_message(*args, **kwargs))

    async def _pooled(self, call: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(LOCK_SECONDS):
                while self.free == 0:  # noqa: ASYNC110 - a pool without events is part of the break
                    await asyncio.sleep(0)
        except TimeoutError:
            call.close()  # type: ignore[attr-defined]  # it is a coroutine
            raise BackendUnavailableError("the pool is exhausted") from None
        self.free -= 1
        await asyncio.sleep(0)
        try:
            result = await call
        except Exception:
            self.free += 1
            raise
        self.free += 1
        return result


@caught_by("FM-CAN-012")
class ClosesOnce(Sound):
    closing = False

    async def close(self) -> None:
        if self.closing:
            raise BackendUnavailableError("close() was started but never finished")
        self.closing = True
        await asyncio.sleep(0)
        await super().close()
        self.closing = False


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
