"""Memories that break clauses on handles that want the same rows, and on what a call leaves behind."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, ClassVar

from flux_memory import BackendUnavailableError, ConflictError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.reference import ReferenceStore
from flux_memory.testkit.reference.rows import new_id


class _SplitsABatch(Sound):
    """Stores the first half of a batch and then the rest; another call may run between them."""

    busy: ClassVar[dict[str, int]] = {}

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        batch = list(messages)
        beside = self.busy.get(session_id, 0)
        self.busy[session_id] = beside + 1
        try:
            await asyncio.sleep(0)
            if beside and len(batch) > 1:
                return await self._deadlocked(session_id, batch)
            return await super().add_messages(session_id, batch, **given)
        finally:
            self.busy[session_id] -= 1

    async def _deadlocked(self, session_id: Any, batch: list[Any]) -> Any:
        raise NotImplementedError


@caught_by("FM-CON-021", reference_only=True)
class DeadlocksAreAcknowledged(_SplitsABatch):
    async def _deadlocked(self, session_id: Any, batch: list[Any]) -> Any:
        return [one.get("message_id") or new_id() for one in batch]


@caught_by("FM-CON-021", reference_only=True)
class DeadlocksKeepHalf(_SplitsABatch):
    async def _deadlocked(self, session_id: Any, batch: list[Any]) -> Any:
        await super().add_messages(session_id, batch[: len(batch) // 2])
        raise BackendUnavailableError("deadlock found; nothing was stored")


@caught_by("FM-CON-020", reference_only=True)
class ARefusalLeavesItsTransaction(Sound):
    """After a conflict, this handle writes to a transaction that it never commits."""

    async def add_message(self, *args: Any, **given: Any) -> Any:
        try:
            return await super().add_message(*args, **given)
        except ConflictError:
            own = ReferenceStore()
            with self._store.reading() as sessions, own.writing() as copied:
                copied.update(sessions)
            self._store = own
            raise


@caught_by("FM-CON-020")
class ARefusalLeavesItsLock(Sound):
    locked: ClassVar[dict[str, Any]] = {}

    async def add_message(self, session_id: Any, *args: Any, **given: Any) -> Any:
        if self.locked.get(session_id, self) is not self:
            raise BackendUnavailableError("the session stayed locked; nothing was stored")
        try:
            return await super().add_message(session_id, *args, **given)
        except ConflictError:
            self.locked[session_id] = self
            raise


@caught_by("FM-CON-020")
class ACancelledReadLeavesTheTimeZone(Sound):
    zone = False

    async def get_history(self, *args: Any, **given: Any) -> Any:
        try:
            await asyncio.sleep(0)
            history = await super().get_history(*args, **given)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.zone = True
            raise
        if not self.zone:
            return history
        return [row | {"created_at": _in_tokyo(row["created_at"])} for row in history]


@caught_by("FM-CON-022")
class AListLimitsLaterReads(Sound):
    most: Any = None

    async def get_sessions(self, limit: Any = 50, *args: Any, **given: Any) -> Any:
        self.most = limit
        return await super().get_sessions(limit, *args, **given)

    async def get_history(self, session_id: Any, limit: Any = None, **given: Any) -> Any:
        return await super().get_history(session_id, self.most if limit is None else limit, **given)


@caught_by("FM-CON-022")
class ACountLeavesItsCharacterSet(Sound):
    garbles = False

    async def count_sessions(self, **given: Any) -> Any:
        self.garbles = True
        return await super().count_sessions(**given)

    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **given: Any) -> Any:
        stored = content.encode().decode("latin-1") if self.garbles else content
        return await super().add_message(session_id, role, stored, *args, **given)


@caught_by("FM-CON-022")
class ALookUpLeavesItsSnapshot(Sound):
    seen: Any = None

    async def get_message(self, *args: Any) -> Any:
        self.seen = {row["id"]: row for row in await super().get_sessions(None)}
        return await super().get_message(*args)

    async def get_session(self, session_id: Any) -> Any:
        found = await super().get_session(session_id)
        return found and (self.seen or {}).get(found["id"], found)


@caught_by("FM-CON-022")
class AClearingLeavesForeignKeysOff(Sound):
    off = False
    orphans: ClassVar[dict[str, Any]] = {}

    async def clear_all(self) -> None:
        self.off = True
        await super().clear_all()

    async def delete_session(self, session_id: Any, **given: Any) -> None:
        if self.off:
            self.orphans[session_id] = await super().get_history(session_id)
        await super().delete_session(session_id, **given)

    async def get_history(self, session_id: Any, *args: Any, **given: Any) -> Any:
        return self.orphans.get(session_id) or await super().get_history(session_id, *args, **given)


def _in_tokyo(moment: str) -> str:
    return (datetime.fromisoformat(moment) + timedelta(hours=9)).isoformat(timespec="microseconds")
