"""Memories that break clauses on reading a history forwards."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from flux_memory import SessionNotFoundError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


class _ReadsForwards(Sound):
    """Returns the page after a message by code of its own; other pages are sound."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, after: Any = None) -> Any:
        found = await super().get_history(session_id, limit, before=before, after=after)
        return found if after is None else await self.page(session_id, limit, after, found)

    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        raise NotImplementedError

    async def read(self, session_id: Any, limit: Any = None, after: Any = None) -> list[Any]:
        """Return what the sound memory returns."""
        rows: list[Any] = await super().get_history(session_id, limit, after=after)
        return rows


@caught_by("FM-ORD-030")
class AfterIsInclusive(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        return [row for row in await self.read(session_id) if row["id"] == after or row in found][:limit]


@caught_by("FM-ORD-030")
class AfterTakesTheNewest(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        following = await self.read(session_id, after=after)
        return following if limit is None else following[max(len(following) - limit, 0) :]


@caught_by("FM-ORD-030")
class AfterIsNewestFirst(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        return found[::-1]


@caught_by("FM-ORD-030")
class AfterSkipsOne(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        following = await self.read(session_id, after=after)
        return following if limit is None or len(following) <= limit else following[1 : limit + 1]


@caught_by("FM-ORD-031")
class ZeroAfterIsAll(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        return found if limit else await self.read(session_id, after=after)


@caught_by("FM-ORD-031")
class AllAfterIsOneThousand(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        return found[:1_000]


@caught_by("FM-ORD-031")
class LimitsAfterHave64Bits(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        if limit is not None and limit >= 2**63:
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return found


@caught_by("FM-ORD-032")
class AfterInTwoReads(_ReadsForwards):
    """Finds how far the cursor is from the end in one read, and cuts the page in another."""

    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        from_end = len(await self.read(session_id, after=after))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rows = await self.read(session_id)
        return rows[len(rows) - from_end :][:limit]


@caught_by("FM-ORD-032")
class FollowersSeeTheirLastPageOnly(_ReadsForwards):
    """Keeps the newest message that its handle has read, and returns what came after it."""

    newest: Any = None

    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        ids = [row["id"] for row in await self.read(session_id)]
        if self.newest in ids and after in ids and ids.index(self.newest) > ids.index(after):
            found = await self.read(session_id, limit, after=self.newest)
        self.newest = found[-1]["id"] if found else self.newest
        return found


@caught_by("FM-ORD-033")
class AfterSkipsTies(_ReadsForwards):
    """Returns what has a later time than the cursor's message."""

    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        rows = await self.read(session_id)
        times = [row["created_at"] for row in rows if row["id"] == after]
        return [row for row in rows if times and row["created_at"] > times[0]][:limit]


@caught_by("FM-ORD-033")
class AfterRepeatsTies(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        rows = await self.read(session_id)
        times = [row["created_at"] for row in rows if row["id"] == after]
        return [row for row in rows if times and row["created_at"] >= times[0] and row["id"] != after][:limit]


@caught_by("FM-ORD-033")
class AfterComparesIds(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        rows = await self.read(session_id)
        times = [row["created_at"] for row in rows if row["id"] == after]
        return [row for row in rows if times and (row["created_at"], row["id"]) > (times[0], after)][:limit]


@caught_by("FM-ORD-033")
class AfterCountsAllSessions(_ReadsForwards):
    """Numbers the messages of all sessions with one sequence, and returns those of the next numbers."""

    places: ClassVar[dict[tuple[Any, Any], int]] = {}

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(session_id, *args, **kwargs)
        self.places.setdefault((session_id, made), len(self.places))
        return made

    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        end = self.places.get((session_id, after), 0) + (limit or 10**9)
        return [row for row in found if self.places.get((session_id, row["id"]), 0) <= end]


@caught_by("FM-ORD-034")
class UnknownAfterStartsAgain(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        rows = await self.read(session_id)
        return found if after in [row["id"] for row in rows] else rows[:limit]


@caught_by("FM-ORD-034")
class UnknownAfterIsAnError(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        if after not in [row["id"] for row in await self.read(session_id)]:
            raise SessionNotFoundError(after)
        return found


@caught_by("FM-ORD-034")
class AfterOfAnySession(_ReadsForwards):
    """Looks up the time of `after` without the session."""

    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        rows = await self.read(session_id)
        for session in await super().get_sessions(None):
            for row in await self.read(session["id"]):
                if row["id"] == after and session["id"] != session_id:
                    return [one for one in rows if one["created_at"] >= row["created_at"]][:limit]
        return found


@caught_by("FM-ORD-034")
class BeforeWins(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, after: Any = None) -> Any:
        after = None if before is not None else after
        return await super().get_history(session_id, limit, before=before, after=after)


@caught_by("FM-ORD-034")
class PoppedCursorsAreTheEnd(Sound):
    """Keeps the place of a popped message, and reads on from there."""

    popped: ClassVar[dict[Any, Any]] = {}

    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        if popped is not None:
            self.popped[popped["id"]] = next((row["id"] for row in await super().get_history(session_id, 1)), None)
        return popped

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, after: Any = None) -> Any:
        if isinstance(after, str):
            after = self.popped.get(after, after)
        return await super().get_history(session_id, limit, before=before, after=after)


@caught_by("FM-ORD-035")
class FollowingRowsAreBare(_ReadsForwards):
    async def page(self, session_id: Any, limit: Any, after: Any, found: list[Any]) -> list[Any]:
        return [{**row, "metadata": {}} for row in found]
