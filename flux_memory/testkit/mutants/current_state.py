"""Memories that answer or act by what a handle has seen, or keep something of a deleted session."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any, ClassVar

from flux_memory import ConflictError, SessionNotFoundError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


class _Remembers(Sound):
    """Has a cache for each handle, which the handle's own changes empty."""

    async def _remembered(self, key: Any, read: Any) -> Any:
        cache = self.__dict__.setdefault("cache", {})
        if key not in cache:
            cache[key] = await read
        else:
            read.close()
        return cache[key]

    def _forget(self) -> None:
        self.__dict__["cache"] = {}

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return await super().create_session(*args, **kwargs)

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return await super().add_message(*args, **kwargs)

    async def add_messages(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return await super().add_messages(*args, **kwargs)

    async def update_session_title(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        await super().update_session_title(*args, **kwargs)

    async def delete_session(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        await super().delete_session(*args, **kwargs)

    async def clear_all(self) -> None:
        self._forget()
        await super().clear_all()


@caught_by("FM-SES-015")
class RemembersCounts(_Remembers):
    async def count_sessions(self, **given: Any) -> Any:
        return await self._remembered("count", super().count_sessions(**given))


@caught_by("FM-SES-015")
class RemembersSessions(_Remembers):
    async def get_session(self, session_id: Any) -> Any:
        return await self._remembered(session_id, super().get_session(session_id))


@caught_by("FM-SES-015")
class RemembersPages(_Remembers):
    """Takes older pages for immutable."""

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        read = super().get_history(session_id, limit, before=before, **given)
        return await read if before is None else await self._remembered((session_id, limit, before), read)


@caught_by("FM-SES-015")
class RemembersFilteredLists(_Remembers):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        read = super().get_sessions(*args, metadata=metadata, **kwargs)
        return await self._remembered(str(metadata), read) if metadata else await read


@caught_by("FM-SES-015")
class OwnDeletionsAreForgotten(Sound):
    """Does not empty its cache when it deletes."""

    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        cache = self.__dict__.setdefault("histories", {})
        rows = await super().get_history(session_id, *args, **kwargs)
        if args or kwargs:
            return rows
        cache[session_id] = rows or cache.get(session_id, [])
        return cache[session_id]


@caught_by("FM-SES-016")
class KnowsWhatExists(Sound):
    """Remembers that a session exists, and acknowledges adds to it."""

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        known = self.__dict__.setdefault("known", set())
        try:
            made = await super().add_message(session_id, *args, **kwargs)
        except SessionNotFoundError:
            if session_id not in known:
                raise
            return "lost"
        known.add(session_id)
        return made


@caught_by("FM-SES-016")
class KnowsWhatIsMissing(Sound):
    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        missing = self.__dict__.setdefault("missing", set())
        if session_id in missing:
            raise SessionNotFoundError(session_id)
        try:
            return await super().add_message(session_id, *args, **kwargs)
        except SessionNotFoundError:
            missing.add(session_id)
            raise


@caught_by("FM-SES-016")
class KnowsItsMessages(Sound):
    """Recognises retries of its own messages without asking the store."""

    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        own = self.__dict__.setdefault("own", set())
        if await super().get_session(session_id) is not None and (session_id, message_id, str(args)) in own:
            return message_id
        made = await super().add_message(session_id, *args, message_id=message_id, **kwargs)
        own.add((session_id, made, str(args)))
        return made


@caught_by("FM-SES-016")
class KnowsTakenIds(Sound):
    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        taken = self.__dict__.setdefault("taken", set())
        if session_id in taken:
            raise ConflictError(session_id)
        try:
            return await super().create_session(*args, session_id=session_id, **kwargs)
        except ConflictError:
            taken.add(session_id)
            raise


class _MarksAsDeleted(Sound):
    """Keeps deleted sessions, and uses them again."""

    gone: ClassVar[dict[str, Any]] = {}

    async def delete_session(self, session_id: Any, **given: Any) -> None:
        row = await super().get_session(session_id)
        await super().delete_session(session_id, **given)
        if row is not None:
            self.gone[session_id] = row

    async def clear_all(self) -> None:
        self.gone.update({row["id"]: row for row in await super().get_sessions(None)})
        await super().clear_all()


@caught_by("FM-SES-014")
class OldTitlesReturn(_MarksAsDeleted):
    async def create_session(self, title: Any = "", *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        old = self.gone.get(session_id, {"title": ""})["title"]
        return await super().create_session(title or old, *args, session_id=session_id, **kwargs)


@caught_by("FM-SES-014")
class OldOwnersReturn(_MarksAsDeleted):
    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "user_id": row["user_id"] or self.gone.get(session_id, row)["user_id"]}


@caught_by("FM-SES-014")
class OldCountsReturn(_MarksAsDeleted):
    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        old = self.gone.get(session_id, {"message_count": 0})["message_count"]
        return row and {**row, "message_count": row["message_count"] + old}


@caught_by("FM-SES-014")
class OldCursorsReturn(Sound):
    """Keeps the places of messages separately, and does not remove them."""

    places: ClassVar[set[tuple[Any, Any]]] = set()

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made = await super().add_messages(session_id, messages, **given)
        self.places.update((session_id, one) for one in made)
        return made

    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        rows = await super().get_history(session_id, limit, **given)
        gone = (session_id, before) in self.places and before not in [row["id"] for row in rows]
        return rows if gone else await super().get_history(session_id, limit, before=before, **given)


@caught_by("FM-SES-016")
class WritesBackTheTitle(Sound):
    """Keeps the row of a session from its first add, and stores it with each later one."""

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(session_id, *args, **kwargs)
        row = await super().get_session(session_id)
        title = self.__dict__.setdefault("titles", {}).setdefault(session_id, row and row["title"])
        if row is not None and row["title"] != title:
            await super().update_session_title(session_id, title)
        return made

    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, title)
        self.__dict__.setdefault("titles", {})[session_id] = title


@caught_by("FM-SES-017")
class CountsUsersMessages(Sound):
    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        said = [one for one in await super().get_history(session_id) if one["role"] == "user"]
        return row and {**row, "message_count": len(said)}


@caught_by("FM-SES-017")
class CountsTexts(Sound):
    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        said = [one for one in await super().get_history(session_id) if one["content"]]
        return row and {**row, "message_count": len(said)}


@caught_by("FM-SES-017")
class AnswersDoNotBump(Sound):
    before: ClassVar[dict[str, str]] = {}

    async def add_message(self, session_id: Any, role: Any, *args: Any, **kwargs: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None and role == "assistant":
            self.before[session_id] = row["updated_at"]
        return await super().add_message(session_id, role, *args, **kwargs)

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "updated_at": self.before.get(session_id, row["updated_at"])}


@caught_by("FM-SES-017")
class NamesItself(Sound):
    """Takes the first message as the title of a session that has none."""

    first: ClassVar[dict[str, str]] = {}

    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(session_id, role, content, *args, **kwargs)
        self.first.setdefault(session_id, content)
        return made

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "title": row["title"] or self.first.get(session_id, "")}


class _KeepsASnapshot(Sound):
    """Leaves a transaction open, in which the reads that follow see the first answer until the next write."""

    async def get_history(self, session_id: Any, limit: Any = None, **given: Any) -> Any:
        seen = self.__dict__.get("snapshot")
        if seen is None or given or limit is not None:
            return await super().get_history(session_id, limit, **given)
        if session_id not in seen:
            seen[session_id] = await super().get_history(session_id)
        return seen[session_id]

    async def add_message(self, *args: Any, **given: Any) -> Any:
        self.__dict__["snapshot"] = None
        return await super().add_message(*args, **given)

    def _begin(self) -> None:
        self.__dict__["snapshot"] = {}


@caught_by("FM-SES-018")
class ConflictsLeaveATransactionOpen(_KeepsASnapshot):
    async def add_message(self, *args: Any, **given: Any) -> Any:
        try:
            return await super().add_message(*args, **given)
        except ConflictError:
            self._begin()
            raise


@caught_by("FM-SES-018")
class RefusedUpdatesLeaveATransactionOpen(_KeepsASnapshot):
    async def update_session(self, *args: Any, **given: Any) -> Any:
        try:
            return await super().update_session(*args, **given)
        except ConflictError:
            self._begin()
            raise


@caught_by("FM-SES-018")
class FiltersLeaveATransactionOpen(_KeepsASnapshot):
    async def get_sessions(self, *args: Any, metadata: Any = None, **given: Any) -> Any:
        found = await super().get_sessions(*args, metadata=metadata, **given)
        if metadata:
            self._begin()
        return found


@caught_by("FM-SES-015")
class RemembersShortLists(Sound):
    async def get_sessions(self, *args: Any, with_metadata: Any = True, **given: Any) -> Any:
        found = await super().get_sessions(*args, with_metadata=with_metadata, **given)
        return self.__dict__.setdefault("short", found) if with_metadata is False else found


@caught_by("FM-SES-015")
class RemembersTheFirstPage(Sound):
    async def get_sessions(self, *args: Any, before: Any = None, **given: Any) -> Any:
        pages: dict[Any, Any] = self.__dict__.setdefault("pages", {})
        place = before and str(before)
        if place is None or place not in pages:
            pages[place] = await super().get_sessions(*args, before=before, **given)
        return pages[place]
