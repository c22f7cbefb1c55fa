"""Memories that break clauses on limits and lookups."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

from typing import Any

from flux_memory import (
    MAX_CONTENT_BYTES,
    InvalidInputError,
    SessionNotFoundError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import KIB, MIB, _ChangesContent, cut_text


@caught_by("FM-LIM-003")
class CutsContentAtSixteenMegabytes(Sound):
    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().add_message(session_id, role, cut_text(content, 16 * MIB), *args, **kwargs)


@caught_by("FM-LIM-003")
class CutsLongRoles(Sound):
    async def add_message(self, session_id: Any, role: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().add_message(session_id, cut_text(role, 64 * KIB), *args, **kwargs)


@caught_by("FM-LIM-003")
class CutsChangedTitles(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, cut_text(title, 64 * KIB))


@caught_by("FM-LIM-003")
class CutsListedTitles(Sound):
    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        return [{**row, "title": row["title"][:255]} for row in await super().get_sessions(*args, **kwargs)]


@caught_by("FM-LIM-003")
class CutsLongContent(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content[:65_535]


@caught_by("FM-LIM-004")
class CutsContentAtTheLimit(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content[: 16 * 1024 * 1024]


@caught_by("FM-LIM-020")
class TheLimitIsExclusive(Sound):
    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            isinstance(content, str)
            and len(content) * 4 > MAX_CONTENT_BYTES
            and len(content.encode()) >= MAX_CONTENT_BYTES
        ):
            raise InvalidInputError("content is too large")
        return await super().add_message(session_id, role, content, *args, **kwargs)


@caught_by("FM-LIM-021")
class CutsTitlesToTheLimit(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        if isinstance(title, str) and len(title) * 4 > MAX_CONTENT_BYTES:
            title = title.encode()[:MAX_CONTENT_BYTES].decode(errors="ignore")
        await super().update_session_title(session_id, title)


@caught_by("FM-LIM-001")
class CutsIds(Sound):
    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        return await super().create_session(*args, session_id=session_id and session_id[:36], **kwargs)


@caught_by("FM-LIM-001")
class IdsByBytes(Sound):
    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        if session_id and len(session_id.encode()) > 36:
            raise InvalidInputError("session_id is too long")
        return await super().create_session(*args, session_id=session_id, **kwargs)


@caught_by("FM-LIM-002")
class CutsUserIds(Sound):
    async def create_session(self, *args: Any, user_id: Any = "", **kwargs: Any) -> Any:
        return await super().create_session(*args, user_id=user_id[:255], **kwargs)


@caught_by("FM-LIM-005")
class DropsLargeMetadata(Sound):
    async def create_session(self, title: Any = "", metadata: Any = None, **kwargs: Any) -> Any:
        return await super().create_session(title, None if len(str(metadata)) > 1_000_000 else metadata, **kwargs)


@caught_by("FM-LIM-006")
class UnknownIsAnError(Sound):
    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        if await super().get_session(session_id) is None:
            raise SessionNotFoundError(session_id)
        return await super().get_history(session_id, *args, **kwargs)


@caught_by("FM-LIM-007")
class LongIdsAreInvalid(Sound):
    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        if len(session_id) > 36:
            raise InvalidInputError("value too long for type character varying(36)")
        return await super().add_message(session_id, *args, **kwargs)


@caught_by("FM-LIM-008")
class AnythingIsAnId(Sound):
    async def get_session(self, session_id: Any) -> Any:
        return await super().get_session(str(session_id))


@caught_by("FM-LIM-009")
class FiltersByTheFirstMembers(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        some = dict(list(metadata.items())[:100]) if isinstance(metadata, dict) else metadata
        return await super().get_sessions(*args, metadata=some, **kwargs)


@caught_by("FM-LIM-009")
class CutsArraysOfTheFilter(Sound):
    async def get_sessions(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        if isinstance(metadata, dict):
            metadata = {key: item[:16] if isinstance(item, list | tuple) else item for key, item in metadata.items()}
        return await super().get_sessions(*args, metadata=metadata, **kwargs)
