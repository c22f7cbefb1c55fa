"""Memories that break clauses on durability."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import random
from typing import Any, ClassVar
from uuid import UUID

from flux_memory import (
    BackendUnavailableError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import _WritesBackWhatItRead


class _WritesLater(Sound):
    """Acknowledges immediately, and writes on the next read."""

    def _queue(self) -> Any:
        return self.__dict__.setdefault("queue", [])

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        made = kwargs.pop("message_id", None) or str(UUID(int=random.getrandbits(128), version=4))
        self._queue().append((session_id, args, {**kwargs, "message_id": made}))
        return made

    async def write(self) -> None:
        while self._queue():
            session_id, args, kwargs = self._queue().pop(0)
            await super().add_message(session_id, *args, **kwargs)

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        await self.write()
        return await super().get_history(*args, **kwargs)


@caught_by("FM-DUR-001")
class ForgetsWhatItDidNotWrite(_WritesLater):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return await super(_WritesLater, self).get_history(*args, **kwargs)


@caught_by("FM-DUR-003")
class WritesWhenItCloses(_WritesLater):
    async def close(self) -> None:
        await self.write()
        await super().close()


@caught_by("FM-DUR-002")
class KeepsToItsProcess(Sound):
    """A cache that ignores writes of other processes."""

    written: ClassVar[set[str]] = set()

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(*args, **kwargs)
        self.written.add(made)
        return made

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return [row for row in await super().get_history(*args, **kwargs) if row["id"] in self.written]


@caught_by("FM-DUR-004")
class ProcessesRaceToCreateTables(Sound):
    """Creates the tables if the store is empty, and fails if another process did so meanwhile."""

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        empty = await super().count_sessions() == 0
        if empty:
            await asyncio.sleep(0.5)
        made = await super().create_session(*args, **kwargs)
        if empty and await super().count_sessions() > 1:
            raise BackendUnavailableError("table sessions already exists")
        return made


@caught_by("FM-DUR-006")
class IdsFromTheForksSeed(Sound):
    source: ClassVar[random.Random] = random.Random(7)  # noqa: S311 - that is the break

    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        made = str(UUID(int=self.source.getrandbits(128), version=4))
        return await super().create_session(*args, session_id=session_id or made, **kwargs)


@caught_by("FM-DUR-007")
class RetriesKnownHereOnly(Sound):
    known: ClassVar[set[str]] = set()

    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        if message_id is not None and message_id not in self.known:
            self.known.add(message_id)
            await super().add_message(session_id, *args, **kwargs)
            return message_id
        return await super().add_message(session_id, *args, message_id=message_id, **kwargs)


@caught_by("FM-DUR-005", reference_only=True)
class ProcessesOverwriteEachOther(_WritesBackWhatItRead):
    pass
