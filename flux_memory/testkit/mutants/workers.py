"""Memories that break clauses on the calls of several workers."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from typing import Any

from flux_memory.testkit.mutants.cancellation import BatchHalfApplied
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.concurrency import StaleHandles
from flux_memory.testkit.mutants.durability import RetriesKnownHereOnly, WritesWhenItCloses


@caught_by("FM-CON-013")
class AcknowledgesBeforeTheCommit(Sound):
    """Acknowledges a write and stores it in the background."""

    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        if message_id is None:
            return await super().add_message(session_id, *args, **kwargs)
        behind = self.__dict__.setdefault("behind", [])
        behind.append(asyncio.ensure_future(super().add_message(session_id, *args, message_id=message_id, **kwargs)))
        return message_id

    async def close(self) -> None:
        await asyncio.gather(*self.__dict__.get("behind", []), return_exceptions=True)
        await super().close()


@caught_by("FM-CON-013")
class SecondHandleIsStale(StaleHandles):
    pass


@caught_by("FM-CON-013")
class RetriesByAnotherHandleDuplicate(Sound):
    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        own = self.__dict__.setdefault("own", set())
        known = message_id in [row["id"] for row in await super().get_history(session_id)]
        if known and message_id not in own:
            await super().add_message(session_id, *args, **kwargs)
            return message_id
        own.add(message_id)
        return await super().add_message(session_id, *args, message_id=message_id, **kwargs)


@caught_by("FM-CON-013")
class HalfABatchWhenCutOff(BatchHalfApplied):
    pass


@caught_by("FM-DUR-008")
class LosesWhatAKillInterrupts(WritesWhenItCloses):
    pass


@caught_by("FM-DUR-008")
class RetriesElsewhereDuplicate(RetriesKnownHereOnly):
    pass
