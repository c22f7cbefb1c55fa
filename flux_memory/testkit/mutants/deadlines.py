"""Memories that break clauses on deadlines and outages."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from flux_memory import (
    BackendUnavailableError,
    FluxMemoryError,
    deadline,
)
from flux_memory.backends.deadlines import seconds_for
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import LONG_SECONDS, _WorksInATask


class _AddsInATask(_WorksInATask):
    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        return await self.in_a_task(super().add_message(*args, **kwargs))


@caught_by("FM-DLN-001")
class StoresWhatItRefused(_AddsInATask):
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


@caught_by("FM-DLN-007")
class TakesItsTimeToClose(Sound):
    """Waits for the store before it closes, regardless of the caller's deadline."""

    async def close(self) -> None:
        with deadline(LONG_SECONDS), suppress(FluxMemoryError):
            await self.delete_session("no session")
        await super().close()


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
class SendsForCallersThatAreGone(_AddsInATask):
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
