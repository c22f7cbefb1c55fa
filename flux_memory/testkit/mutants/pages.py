"""Memories that break clauses on pages of histories and of filtered lists."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any, ClassVar

from flux_memory.testkit.mutants.catalogue import Sound, caught_by


class _NumbersAllSessions(Sound):
    """Numbers the messages of all sessions with one sequence."""

    places: ClassVar[dict[tuple[Any, Any], int]] = {}

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(session_id, *args, **kwargs)
        self.places.setdefault((session_id, made), len(self.places))
        return made


@caught_by("FM-ORD-014")
class PagesBySequence(_NumbersAllSessions):
    """Takes as many numbers before the cursor as the limit says, some of which belong to other sessions."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, limit, before=before, **given)
        start = self.places.get((session_id, before), 0) - (limit or 0)
        return [row for row in rows if before is None or self.places[session_id, row["id"]] >= start]


@caught_by("FM-ORD-014")
class NewestOfAllSessions(_NumbersAllSessions):
    """Limits the rows of all sessions, and then selects those of one."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, limit, before=before, **given)
        start = 0 if limit is None or before is not None else len(self.places) - limit
        return [row for row in rows if self.places[session_id, row["id"]] >= start]


@caught_by("FM-ORD-014")
class CursorOfTheFirstSession(Sound):
    """Looks up the place of `before` without the session."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, **given)
        if before is None or before not in [row["id"] for row in rows]:
            return await super().get_history(session_id, limit, before=before, **given)
        for session in sorted(await super().get_sessions(None), key=lambda row: row["id"]):
            ids = [row["id"] for row in await super().get_history(session["id"], **given)]
            if before in ids:
                return rows[max(ids.index(before) - limit, 0) : ids.index(before)]
        return []


@caught_by("FM-ORD-015")
class OlderPagesWithoutMetadata(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, limit, before=before, **given)
        return rows if before is None else [{**row, "metadata": {}} for row in rows]


@caught_by("FM-ORD-015")
class LimitedPagesStrip(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, limit, before=before, **given)
        return rows if limit is None else [{**row, "content": row["content"].strip()} for row in rows]


@caught_by("FM-LIM-013")
class FullPagesLoseOne(Sound):
    """Takes the first row of a full page for a sign that there is another page."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, limit, before=before, **given)
        return rows[1:] if limit == len(rows) == 100 else rows


@caught_by("FM-LIM-013")
class FullPagesEnd(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, limit, before=before, **given)
        return rows[-50:] if len(rows) == 51 else rows


@caught_by("FM-LIM-013")
class FullBatchesLoseOne(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made = await super().add_messages(session_id, messages, **given)
        return made[:999] if len(made) == 1_000 else made


@caught_by("FM-LST-014")
class OwnListsHaveNoDefault(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, user_id: Any = None, **filters: Any) -> Any:
        cap = 51 if limit == 50 and user_id is not None else limit
        return await super().get_sessions(cap, offset, user_id=user_id, **filters)


@caught_by("FM-LST-014")
class FilteredZeroIsAll(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, metadata: Any = None, **filters: Any) -> Any:
        cap = (limit or None) if metadata else limit
        return await super().get_sessions(cap, offset, metadata=metadata, **filters)


@caught_by("FM-LST-014")
class FilteredByCreation(Sound):
    """Sorts only the list without a filter by activity."""

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, metadata: Any = None, **filters: Any) -> Any:
        if not metadata:
            return await super().get_sessions(limit, offset, **filters)
        rows = await super().get_sessions(None, metadata=metadata, **filters)
        rows.sort(key=lambda row: (row["created_at"], row["id"]), reverse=True)
        return rows[offset:] if limit is None else rows[offset : offset + limit]


@caught_by("FM-LST-014")
class OwnListsShowOldTitles(Sound):
    """Keeps a copy of each session in its user's list."""

    titles: ClassVar[dict[str, Any]] = {}

    async def create_session(self, title: Any = "", *args: Any, **kwargs: Any) -> Any:
        made = await super().create_session(title, *args, **kwargs)
        self.titles[made] = title
        return made

    async def get_sessions(self, *args: Any, user_id: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, user_id=user_id, **kwargs)
        return rows if user_id is None else [{**row, "title": self.titles[row["id"]]} for row in rows]


@caught_by("FM-LST-014")
class FilteredWithoutOffset(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, metadata: Any = None, **filters: Any) -> Any:
        start = 0 if metadata and limit is None else offset
        return await super().get_sessions(limit, start, metadata=metadata, **filters)


@caught_by("FM-LST-014")
class NoOwnerIsNoFilter(Sound):
    """Adds the condition on the user only if the user's id is truthy."""

    async def get_sessions(self, *args: Any, user_id: Any = None, metadata: Any = None, **kwargs: Any) -> Any:
        user = (user_id or None) if metadata else user_id
        return await super().get_sessions(*args, user_id=user, metadata=metadata, **kwargs)


@caught_by("FM-LST-014")
class FilteredOffsetsOf64Bits(Sound):
    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, metadata: Any = None, **filters: Any) -> Any:
        if metadata and offset >= 2**63:
            raise OverflowError("int too big to convert")
        return await super().get_sessions(limit, offset, metadata=metadata, **filters)


@caught_by("FM-LST-014")
class LastPlacesOf64Bits(Sound):
    """Computes the place of the last row of a page."""

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
        rows = await super().get_sessions(limit, offset, **filters)
        return [] if limit is not None and limit < 2**63 <= limit + offset and offset < 2**63 else rows
