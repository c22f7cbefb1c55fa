"""Memories that break clauses on conditional and bulk deletions."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from flux_memory import BackendUnavailableError, ConflictError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


@caught_by("FM-DEL-001")
class DeletionsDoNotCompare(Sound):
    async def delete_session(self, session_id: Any, *, expected_revision: Any = None) -> None:
        del expected_revision
        await super().delete_session(session_id)


@caught_by("FM-DEL-001")
class DeletionsOfNothingConflict(Sound):
    async def delete_session(self, session_id: Any, *, expected_revision: Any = None) -> None:
        if expected_revision is not None and await super().get_session(session_id) is None:
            raise ConflictError(session_id)
        await super().delete_session(session_id, expected_revision=expected_revision)


@caught_by("FM-DEL-001")
class DeletionsTakeOldRevisions(Sound):
    """Accepts each revision that the session, or one with its id, has had."""

    had: ClassVar[dict[Any, set[Any]]] = {}

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None:
            self.had.setdefault(session_id, set()).add(row["revision"])
        return row

    async def delete_session(self, session_id: Any, *, expected_revision: Any = None) -> None:
        known = isinstance(expected_revision, str) and expected_revision in self.had.get(session_id, ())
        await super().delete_session(session_id, expected_revision=None if known else expected_revision)


@caught_by("FM-DEL-001")
class RefusedDeletionsTakeTheMessages(Sound):
    async def delete_session(self, session_id: Any, *, expected_revision: Any = None) -> None:
        try:
            await super().delete_session(session_id, expected_revision=expected_revision)
        except ConflictError:
            await super().pop_message(session_id)
            raise


@caught_by("FM-DEL-002")
class ComparesAndThenDeletes(Sound):
    async def delete_session(self, session_id: Any, *, expected_revision: Any = None) -> None:
        row = await super().get_session(session_id)
        if row is not None and expected_revision not in {None, row["revision"]}:
            raise ConflictError(session_id)
        await asyncio.sleep(0)
        await super().delete_session(session_id)


class _DeletesByCode(Sound):
    """Deletes sessions one by one, by a condition of its own."""

    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> Any:
        if (user_id is None and inactive_since is None) or (inactive_since and inactive_since.utcoffset() is None):
            return await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)
        rows = [row for row in await super().get_sessions(None) if self.matches(row, user_id, inactive_since)]
        await asyncio.sleep(0)
        for row in rows:
            await super().delete_session(row["id"])
        return len(rows)

    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        return user_id in {None, row["user_id"]} and (since is None or _time(row["updated_at"]) < since)


@caught_by("FM-DEL-010")
class DeletesSimilarUsers(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        user = None if user_id is None else user_id.casefold()
        return super().matches({**row, "user_id": row["user_id"].casefold()}, user, since)


@caught_by("FM-DEL-010")
class DeletesTrimmedUsers(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        return super().matches(row, user_id and user_id.strip(), since)


@caught_by("FM-DEL-010")
class DeletesUsersByPattern(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        if user_id is not None and user_id.endswith("%"):
            user_id = row["user_id"] if row["user_id"].startswith(user_id[:-1]) else user_id
        return super().matches(row, user_id, since)


@caught_by("FM-DEL-010")
class NoOwnerIsEveryOwner(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        return super().matches(row, user_id or None, since)


@caught_by("FM-DEL-010")
class CountsDeletedMessages(Sound):
    async def delete_sessions(self, *, user_id: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(None, user_id=user_id) if isinstance(user_id, str) else []
        deleted = await super().delete_sessions(user_id=user_id, **kwargs)
        return deleted + sum(row["message_count"] for row in rows)


@caught_by("FM-DEL-010", reference_only=True)
class DeletionsLeaveTheMessages(Sound):
    """Keeps the messages of deleted sessions, which only a history shows."""

    left: ClassVar[dict[Any, Any]] = {}

    async def delete_sessions(self, **kwargs: Any) -> Any:
        before = {}
        for row in await super().get_sessions(None):
            before[row["id"]] = await super().get_history(row["id"])
        deleted = await super().delete_sessions(**kwargs)
        gone = before.keys() - {row["id"] for row in await super().get_sessions(None)}
        self.left.update({session: before[session] for session in gone})
        return deleted

    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        return self.left.get(session_id) or await super().get_history(session_id, *args, **kwargs)


@caught_by("FM-DEL-011")
class InactiveSinceIsInclusive(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        return super().matches(row, user_id, since and since + timedelta(microseconds=1))


@caught_by("FM-DEL-011")
class InactiveSinceInSeconds(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        return super().matches(row, user_id, since and since.replace(microsecond=0))


@caught_by("FM-DEL-011")
class DeletesByCreation(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        return super().matches({**row, "updated_at": row["created_at"]}, user_id, since)


@caught_by("FM-DEL-011")
class DropsTheTimeZone(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        return super().matches(row, user_id, since and since.replace(tzinfo=UTC))


@caught_by("FM-DEL-011")
class OneCriterionIsEnough(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        of_user, old = row["user_id"] == user_id, since is not None and _time(row["updated_at"]) < since
        return of_user or old


@caught_by("FM-DEL-011")
class SessionsWithoutOwnerAreAll(_DeletesByCode):
    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        return super().matches(row, user_id or None, since) if since else super().matches(row, user_id, since)


@caught_by("FM-DEL-012")
class NoCriterionIsAll(Sound):
    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> Any:
        if user_id is None and inactive_since is None:
            inactive_since = datetime.max.replace(tzinfo=UTC)
        return await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)


@caught_by("FM-DEL-012")
class NaiveTimesAreUtc(Sound):
    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> Any:
        if isinstance(inactive_since, datetime) and inactive_since.tzinfo is None:
            inactive_since = inactive_since.replace(tzinfo=UTC)
        return await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)


@caught_by("FM-DEL-013")
class DeletesOneBatch(Sound):
    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> Any:
        rows = await super().get_sessions(101, user_id=user_id) if isinstance(user_id, str) else []
        if len(rows) <= 100:
            return await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)
        for row in rows[:100]:
            await super().delete_session(row["id"])
        return 100


@caught_by("FM-DEL-013")
class CountsTheLastBatch(Sound):
    async def delete_sessions(self, **kwargs: Any) -> Any:
        return await super().delete_sessions(**kwargs) % 100


@caught_by("FM-DEL-014")
class ListsAndThenDeletes(_DeletesByCode):
    """Deletes the sessions that were inactive when it looked."""


@caught_by("FM-CON-041")
class SkipsBusySessions(_DeletesByCode):
    """Leaves the sessions that are locked by a writer."""

    busy: ClassVar[dict[Any, int]] = {}

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        self.busy[session_id] = self.busy.get(session_id, 0) + 1
        try:
            await asyncio.sleep(0)
            return await super().add_message(session_id, *args, **kwargs)
        finally:
            self.busy[session_id] -= 1

    def matches(self, row: Any, user_id: Any, since: Any) -> bool:
        return not self.busy.get(row["id"]) and super().matches(row, user_id, since)


@caught_by("FM-CON-040")
class DeadlocksEscape(Sound):
    """Raises the driver's error if another deletion is under way."""

    busy: ClassVar[dict[str, int]] = {}

    async def delete_sessions(self, **kwargs: Any) -> Any:
        beside = self.busy.get("deletions", 0)
        self.busy["deletions"] = beside + 1
        await asyncio.sleep(0)
        self.busy["deletions"] -= 1
        if beside:
            raise RuntimeError("deadlock detected")
        return await super().delete_sessions(**kwargs)


@caught_by("FM-CON-040", reference_only=True)
class DeadlockedPopsTakeTheOldest(Sound):
    """Has changed something before it gives way to another pop of the session."""

    busy: ClassVar[dict[Any, int]] = {}

    async def pop_message(self, session_id: Any) -> Any:
        beside = self.busy.get(session_id, 0)
        self.busy[session_id] = beside + 1
        await asyncio.sleep(0)
        self.busy[session_id] -= 1
        if not beside:
            return await super().pop_message(session_id)
        with self._store.writing() as sessions:
            if session_id in sessions:
                del sessions[session_id]["messages"][:1]
        raise BackendUnavailableError("deadlock found; nothing was removed")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


@caught_by("FM-DEL-013")
class BulkDeletionsReturnTheLastBatch(Sound):
    async def delete_sessions(self, **given: Any) -> Any:
        deleted = await super().delete_sessions(**given)
        return deleted % 1_000 if deleted > 1_000 else deleted
