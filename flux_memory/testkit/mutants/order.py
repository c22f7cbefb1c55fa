"""Memories that break clauses on order and pages."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, ClassVar

from flux_memory.testkit.mutants.catalogue import Sound, caught_by


@caught_by("FM-ORD-001")
class NewestFirst(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return (await super().get_history(*args, **kwargs))[::-1]


@caught_by("FM-ORD-002")
class TiesById(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return sorted(await super().get_history(*args, **kwargs), key=lambda row: (row["created_at"], row["id"]))


@caught_by("FM-ORD-003")
class LimitTakesTheOldest(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        return (await super().get_history(session_id, before=before, **given))[:limit]


@caught_by("FM-ORD-004")
class LimitZeroIsAll(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        return await super().get_history(session_id, limit or None, before=before, **given)


@caught_by("FM-ORD-004")
class LimitOf64Bits(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        if limit is not None and limit >= 2**63:
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return await super().get_history(session_id, limit, before=before, **given)


@caught_by("FM-ORD-004")
class AllIsOneThousand(Sound):
    """Like a server that silently limits the rows of a result."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        return await super().get_history(session_id, 1_000 if limit is None else limit, before=before, **given)


@caught_by("FM-ORD-005")
class BoolIsALimit(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        return await super().get_history(
            session_id, int(limit) if isinstance(limit, bool) else limit, before=before, **given
        )


@caught_by("FM-ORD-006")
class BeforeIsInclusive(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, **given)
        ids = [row["id"] for row in rows]
        if before in ids:
            rows = rows[: ids.index(before) + 1]
            return rows if limit is None else rows[-limit:]
        return await super().get_history(session_id, limit, before=before, **given)


@caught_by("FM-ORD-007")
class PagesByOffsetFromTheEnd(Sound):
    """Remembers the distance from the end of the history instead of the position."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        if before is None or limit is None:
            self._paged = limit or 0
            return await super().get_history(session_id, limit, before=before, **given)
        rows = await super().get_history(session_id, **given)
        end = len(rows) - self._paged
        self._paged += limit
        return rows[max(end - limit, 0) : max(end, 0)]


@caught_by("FM-ORD-007")
class PagesInTwoReads(Sound):
    """Finds the distance of `before` from the end in one read, and cuts the page in another."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        if before is None or limit is None:
            return await super().get_history(session_id, limit, before=before, **given)
        older = await super().get_history(session_id, before=before, **given)
        from_end = len(await super().get_history(session_id, **given)) - len(older)
        await asyncio.sleep(0.02)  # as far as the server is
        rows = await super().get_history(session_id, **given)
        end = len(rows) - from_end
        return rows[max(end - limit, 0) : max(end, 0)]


@caught_by("FM-ORD-008")
class UnknownCursorStartsAgain(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        known = any(row["id"] == before for row in await super().get_history(session_id, **given))
        return await super().get_history(session_id, limit, before=before if known else None, **given)


@caught_by("FM-ORD-008")
class CursorOfAnySession(Sound):
    """Looks up `before` by message id without the session."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        for session in await super().get_sessions(None):
            ids = [row["id"] for row in await super().get_history(session["id"], **given)]
            if before in ids:
                rows = (await super().get_history(session_id, **given))[: ids.index(before)]
                return rows if limit is None else rows[-limit:]
        return await super().get_history(session_id, limit, before=before, **given)


@caught_by("FM-ORD-009", reference_only=True)
class OrderedByClock(Sound):
    times: ClassVar[dict[str, datetime]] = {}

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(*args, **kwargs)
        self.times[made] = datetime.now(UTC)
        return made

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        return sorted(rows, key=lambda row: self.times.get(row["id"], datetime.now(UTC)))


@caught_by("FM-ORD-010")
class OwnMessagesLast(Sound):
    """Like a client that appends its messages to a local copy of the history."""

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(*args, **kwargs)
        self.__dict__.setdefault("own", set()).add(made)
        return made

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__.get("own", set())
        return sorted(await super().get_history(*args, **kwargs), key=lambda row: row["id"] in own)


@caught_by("FM-ORD-011")
class NumbersInBlocks(Sound):
    """Reserves a block of numbers for each handle, so one handle's messages all come before another's."""

    writers: ClassVar[dict[int, int]] = {}
    blocks: ClassVar[dict[str, int]] = {}

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(*args, **kwargs)
        self.blocks[made] = self.writers.setdefault(id(self), len(self.writers))
        return made

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        return sorted(rows, key=lambda row: self.blocks.get(row["id"], 0))


@caught_by("FM-ORD-012")
class FailuresAreCounted(Sound):
    failures: ClassVar[int] = 0

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().add_message(*args, **kwargs)
        except Exception:
            type(self).failures += 1
            raise

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None:
            row["message_count"] += self.failures
        return row


@caught_by("FM-ORD-013")
class OneHistoryForAll(Sound):
    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_sessions(None)
        return [row for session in rows[::-1] for row in await super().get_history(session["id"], *args, **kwargs)]
