"""Memories that break text, or the limits of ids and sizes."""

from __future__ import annotations

import unicodedata
from typing import Any

from flux_memory import InvalidInputError, SessionNotFoundError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`


class _ChangesContent(Sound):
    def change(self, content: Any) -> Any:
        raise NotImplementedError

    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().add_message(session_id, role, self.change(content), *args, **kwargs)


@caught_by("FM-TXT-001")
class Strips(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content.strip()


@caught_by("FM-TXT-001")
class Normalises(_ChangesContent):
    def change(self, content: Any) -> Any:
        return unicodedata.normalize("NFC", content)


@caught_by("FM-TXT-001")
class UniversalNewlines(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content.replace("\r\n", "\n")


@caught_by("FM-TXT-001")
class DropsTheByteOrderMark(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content.removeprefix("\ufeff")


@caught_by("FM-TXT-007")
class StoresTheDisplayText(_ChangesContent):
    def change(self, content: Any) -> Any:
        return str(content) if isinstance(content, str) else content


@caught_by("FM-TXT-008")
class CutsAtNul(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content.split("\x00")[0] if isinstance(content, str) else content


@caught_by("FM-TXT-009")
class ReplacesSurrogates(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content.encode(errors="replace").decode() if isinstance(content, str) else content


@caught_by("FM-TXT-010")
class ConvertsToText(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content if isinstance(content, str) else str(content)


@caught_by("FM-LIM-003")
class CutsLongContent(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content[:65_535]


@caught_by("FM-LIM-004")
class CutsContentAtTheLimit(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content[: 16 * 1024 * 1024]


@caught_by("FM-TXT-002")
class CutsTitles(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, title[:255])


@caught_by("FM-TXT-003")
class KnowsItsRoles(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        lowered: list[Any] = [{**one, "role": one["role"].lower()} for one in messages]
        return await super().add_messages(session_id, lowered)


@caught_by("FM-TXT-004")
class FoldsUsers(Sound):
    async def get_sessions(self, *args: Any, user_id: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if user_id is None or row["user_id"].casefold() == user_id.casefold()]


@caught_by("FM-TXT-005")
class TrimsIds(Sound):
    async def get_session(self, session_id: Any) -> Any:
        return await super().get_session(session_id.strip())


@caught_by("FM-TXT-006")
class FoldsMessageIds(Sound):
    async def add_message(self, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        return await super().add_message(*args, message_id=message_id and message_id.lower(), **kwargs)


@caught_by("FM-TXT-011")
class ChoosesARole(Sound):
    async def add_message(self, session_id: Any, role: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().add_message(session_id, role or "user", *args, **kwargs)


@caught_by("FM-TXT-012")
class BumpsBeforeItChecks(Sound):
    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        if (row := await super().get_session(session_id)) is not None:
            await super().update_session_title(session_id, row["title"])
        return await super().add_message(session_id, *args, **kwargs)


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
