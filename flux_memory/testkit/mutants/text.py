"""Memories that break clauses on text."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import json
import unicodedata
from typing import Any, ClassVar

from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import _ChangesContent


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


@caught_by("FM-TXT-002")
class CutsTitles(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, title[:255])


@caught_by("FM-TXT-002")
class UpdatesTrimTitles(Sound):
    async def update_session(self, session_id: Any, *, title: Any = None, **given: Any) -> Any:
        return await super().update_session(session_id, title=title and title.strip(), **given)


@caught_by("FM-TXT-002")
class ForksComposeTitles(Sound):
    async def fork_session(self, session_id: Any, *, title: Any = None, **given: Any) -> Any:
        composed = title and unicodedata.normalize("NFC", title)
        return await super().fork_session(session_id, title=composed, **given)


@caught_by("FM-TXT-003")
class KnowsItsRoles(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        lowered: list[Any] = [{**one, "role": one["role"].lower()} for one in messages]
        return await super().add_messages(session_id, lowered, **given)


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


@caught_by("FM-TXT-030")
class RemembersItsWords(Sound):
    """Stores a text without the spaces at its ends, and restores them from a cache of the process."""

    words: ClassVar[dict[str, Any]] = {}

    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        stored = content.strip() if isinstance(content, str) else content
        made = await super().add_message(session_id, role, stored, *args, **kwargs)
        self.words[made] = content
        return made

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        return [{**row, "content": self.words.get(row["id"], row["content"])} for row in rows]


@caught_by("FM-TXT-031")
class RemembersItsMetadata(Sound):
    """Stores metadata as text, and returns the object from a cache of the process."""

    objects: ClassVar[dict[str, Any]] = {}

    async def add_message(
        self, session_id: Any, role: Any, content: Any, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        stored = {"json": json.dumps(metadata)} if metadata else metadata
        made = await super().add_message(session_id, role, content, stored, *args, **kwargs)
        self.objects[made] = metadata or {}
        return made

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        return [{**row, "metadata": self.objects.get(row["id"], row["metadata"])} for row in rows]
