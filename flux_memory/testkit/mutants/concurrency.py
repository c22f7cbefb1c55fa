"""Memories that break clauses on concurrent calls."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import copy
import sqlite3
from typing import Any, ClassVar

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    FluxMemoryError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import _WritesBackWhatItRead


class _CreatesTablesOnce(Sound):
    made = False
    making = False

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        await self._create_tables()
        return await super().create_session(*args, **kwargs)

    async def _create_tables(self) -> None:
        owner: Any = self.owner()
        if owner.making and not owner.made:
            raise BackendUnavailableError("table sessions already exists")
        owner.making = True
        await asyncio.sleep(0)
        owner.made = True

    def owner(self) -> Any:
        return self


@caught_by("FM-CON-001")
class TasksRaceToCreateTables(_CreatesTablesOnce):
    pass


@caught_by("FM-CON-002")
class HandlesRaceToCreateTables(_CreatesTablesOnce):
    def owner(self) -> Any:
        return type(self)


@caught_by("FM-CON-003", reference_only=True)
class AddsWriteBackWhatTheyRead(_WritesBackWhatItRead):
    pass


@caught_by("FM-CON-004", reference_only=True)
class HandlesWriteBackWhatTheyRead(_WritesBackWhatItRead):
    """Correct within one handle, where adds are serialised."""

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        lock = self.__dict__.setdefault("lock", asyncio.Lock())
        async with lock:
            return await super().add_message(*args, **kwargs)


@caught_by("FM-CON-005")
class StaleHandles(Sound):
    """Caches a history until this handle adds to it."""

    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        cache = self.__dict__.setdefault("cache", {})
        key = (session_id, args, tuple(kwargs.items()))
        if key not in cache:
            cache[key] = await super().get_history(session_id, *args, **kwargs)
        return copy.deepcopy(cache[key])

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.pop("cache", None)
        return await super().add_message(*args, **kwargs)


@caught_by("FM-CON-006", reference_only=True)
class RollbackTakesNeighbours(Sound):
    """One open transaction for all calls: a failing call rolls back what others added since."""

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        with self._store.reading() as sessions:
            before = copy.deepcopy(sessions)
        await asyncio.sleep(0)
        try:
            return await super().add_message(session_id, *args, **kwargs)
        except ConflictError:
            with self._store.writing() as sessions:
                sessions.clear()
                sessions.update(before)
            raise


@caught_by("FM-CON-007")
class CreationsOverwrite(Sound):
    """Correct for sequential creations; of concurrent ones, the last overwrites the others."""

    creating: ClassVar[dict[str, int]] = {}

    async def create_session(self, title: Any = "", *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        key = str(session_id)
        beside = self.creating.get(key, 0)
        self.creating[key] = beside + 1
        try:
            await asyncio.sleep(0)
            return await super().create_session(title, *args, session_id=session_id, **kwargs)
        except ConflictError:
            if not beside:
                raise
            await super().update_session_title(key, title)
            return session_id
        finally:
            self.creating[key] -= 1


@caught_by("FM-CON-008")
class DeletesWhatItSaw(Sound):
    """Messages added during a deletion stay, and appear in the next session with that id."""

    adding: ClassVar[dict[str, int]] = {}
    left: ClassVar[dict[str, int]] = {}

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        key = str(session_id)
        self.adding[key] = self.adding.get(key, 0) + 1
        try:
            await asyncio.sleep(0)
            return await super().add_message(session_id, *args, **kwargs)
        finally:
            self.adding[key] -= 1

    async def delete_session(self, session_id: Any, **given: Any) -> None:
        key = str(session_id)
        self.left[key] = self.left.get(key, 0) + self.adding.get(key, 0)
        await super().delete_session(session_id, **given)

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        session = await super().create_session(*args, **kwargs)
        for _ in range(self.left.pop(session, 0)):
            await super().add_message(session, "user", "from a deleted session")
        return session


@caught_by("FM-CON-008")
class ListsWhatIsGone(Sound):
    """Reads the ids of the sessions first, and then each session."""

    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        await asyncio.sleep(0)
        return [await super(ListsWhatIsGone, self).get_session(row["id"]) for row in rows]


@caught_by("FM-CON-009")
class ClearingDeadlocks(Sound):
    """TRUNCATE waits for the locks of adds, and adds wait for its lock."""

    adding: ClassVar[int] = 0

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        type(self).adding += 1
        try:
            await asyncio.sleep(0)
            return await super().add_message(*args, **kwargs)
        finally:
            type(self).adding -= 1

    async def clear_all(self) -> None:
        if self.adding:
            raise BackendUnavailableError("deadlock detected")
        await super().clear_all()


@caught_by("FM-CON-010")
class BusyIsAnError(Sound):
    busy: ClassVar[bool] = False

    async def add_messages(self, *args: Any, **kwargs: Any) -> Any:
        if self.busy:
            raise BackendUnavailableError("database is locked")
        type(self).busy = True
        try:
            await asyncio.sleep(0)
            return await super().add_messages(*args, **kwargs)
        finally:
            type(self).busy = False


@caught_by("FM-CON-011")
class DriverErrorsEscape(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        if type(limit) is int and limit >= 2**63:
            raise sqlite3.OperationalError("Python int too large to convert to SQLite INTEGER")
        return await super().get_history(session_id, limit, before=before, **given)


@caught_by("FM-CON-012")
class PoisonedByAnError(Sound):
    poisoned = False

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().create_session(*args, **kwargs)
        except ConflictError:
            self.poisoned = True
            raise

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        if self.poisoned:
            raise FluxMemoryError("current transaction is aborted, commands ignored until end of transaction block")
        return await super().add_message(*args, **kwargs)


@caught_by("FM-CON-011")
class ForeignErrors(Sound):
    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().create_session(*args, **kwargs)
        except FluxMemoryError as error:
            raise RuntimeError("UNIQUE constraint failed: sessions.id") from error
