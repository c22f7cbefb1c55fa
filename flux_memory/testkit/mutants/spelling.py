"""Memories that break clauses on texts and ids that look like others."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import base64
import html
import json
import re
import unicodedata
import urllib.parse
from typing import Any

from flux_memory import ConflictError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import _ChangesContent


@caught_by("FM-TXT-013")
class ParsesDates(_ChangesContent):
    def change(self, content: Any) -> Any:
        return f"{content}T00:00:00" if re.fullmatch(r"\d{4}-\d\d-\d\d", content) else content


@caught_by("FM-TXT-013")
class ParsesNumbers(_ChangesContent):
    def change(self, content: Any) -> Any:
        return str(float(content)) if re.fullmatch(r"\d+(e\d+|\.\d+)", content) else content


@caught_by("FM-TXT-013")
class ReformatsJson(_ChangesContent):
    def change(self, content: Any) -> Any:
        try:
            return json.dumps(json.loads(content)) if content.startswith("{") else content
        except ValueError:
            return content


@caught_by("FM-TXT-013")
class DecodesBase64(_ChangesContent):
    def change(self, content: Any) -> Any:
        return base64.b64decode(content).decode() if re.fullmatch(r"[A-Za-z0-9+/]{7}=", content) else content


@caught_by("FM-TXT-013")
class UnescapesMarkup(_ChangesContent):
    def change(self, content: Any) -> Any:
        return html.unescape(content)


@caught_by("FM-TXT-013")
class DropsTheInvisible(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content.replace("\u200b", "").replace("\u00ad", "")


@caught_by("FM-TXT-013")
class NullIsNothingInBatches(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        changed: list[Any] = [
            {**one, "content": "" if one["content"] == "null" else one["content"]} for one in messages
        ]
        return await super().add_messages(session_id, changed, **given)


class _ChangesRoles(Sound):
    def change(self, role: Any) -> Any:
        raise NotImplementedError

    async def add_message(self, session_id: Any, role: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().add_message(session_id, self.change(role), *args, **kwargs)

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        changed: list[Any] = [{**one, "role": self.change(one["role"])} for one in messages]
        return await super().add_messages(session_id, changed, **given)


@caught_by("FM-TXT-003")
class CorrectsRoles(_ChangesRoles):
    def change(self, role: Any) -> Any:
        return role.lower() if role.lower() in {"user", "assistant", "system", "tool"} else role


@caught_by("FM-TXT-003")
class TranslatesRoles(_ChangesRoles):
    def change(self, role: Any) -> Any:
        return {"human": "user", "ai": "assistant"}.get(role, role)


@caught_by("FM-TXT-003")
class HidesSystemPrompts(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return [row for row in await super().get_history(*args, **kwargs) if row["role"] != "system"]


@caught_by("FM-TXT-003")
class SystemPromptsFirst(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return sorted(await super().get_history(*args, **kwargs), key=lambda row: row["role"] != "system")


def _folded(text: Any) -> Any:
    """Return a text as a case-insensitive collation that ignores trailing spaces compares it."""
    return text.casefold().rstrip(" ")


class _FindsSimilar(Sound):
    """Finds a session by a similar id if there is none with that id."""

    async def _similar(self, session_id: Any) -> Any:
        ids = [row["id"] for row in await super().get_sessions(None)]
        if session_id in ids:
            return session_id
        return next((one for one in ids if _folded(one) == _folded(session_id)), session_id)


@caught_by("FM-TXT-014")
class AddsToASimilarSession(_FindsSimilar):
    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().add_message(await self._similar(session_id), *args, **kwargs)


@caught_by("FM-TXT-014")
class ReadsASimilarSession(_FindsSimilar):
    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().get_history(await self._similar(session_id), *args, **kwargs)


@caught_by("FM-TXT-014")
class FindsASimilarSession(_FindsSimilar):
    async def get_session(self, session_id: Any) -> Any:
        return await super().get_session(await self._similar(session_id))


@caught_by("FM-TXT-014")
class RenamesASimilarSession(_FindsSimilar):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(await self._similar(session_id), title)


@caught_by("FM-TXT-014")
class UpdatesASimilarSession(_FindsSimilar):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        return await super().update_session(await self._similar(session_id), **given)


@caught_by("FM-TXT-014")
class ForksASimilarSession(_FindsSimilar):
    async def fork_session(self, session_id: Any, **given: Any) -> Any:
        return await super().fork_session(await self._similar(session_id), **given)


@caught_by("FM-TXT-014")
class PopsFromASimilarSession(_FindsSimilar):
    async def pop_message(self, session_id: Any) -> Any:
        return await super().pop_message(await self._similar(session_id))


@caught_by("FM-TXT-014")
class DeletesSimilarSessions(Sound):
    async def delete_session(self, session_id: Any, **given: Any) -> None:
        for row in await super().get_sessions(None):
            if _folded(row["id"]) == _folded(session_id):
                await super().delete_session(row["id"], **given)


@caught_by("FM-TXT-014")
class DeletesByPrefix(Sound):
    async def delete_session(self, session_id: Any, **given: Any) -> None:
        for row in await super().get_sessions(None):
            if row["id"].startswith(session_id):
                await super().delete_session(row["id"], **given)


@caught_by("FM-TXT-015")
class EmojiAreEqual(Sound):
    """Like a collation that has no weights beyond the basic plane."""

    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        for row in await super().get_sessions(None):
            if session_id and _in_the_basic_plane(session_id) == _in_the_basic_plane(row["id"]):
                raise ConflictError(session_id)
        return await super().create_session(*args, session_id=session_id, **kwargs)


def _in_the_basic_plane(text: str) -> str:
    return re.sub("[\U00010000-\U0010ffff]", "\ufffd", text)


@caught_by("FM-TXT-015")
class DecodesIdsOfUrls(Sound):
    async def get_session(self, session_id: Any) -> Any:
        return await super().get_session(urllib.parse.unquote(session_id))


@caught_by("FM-TXT-015")
class RoutesHideSessions(Sound):
    """Like an HTTP service in which `/sessions/count` is not a session."""

    async def get_session(self, session_id: Any) -> Any:
        return None if session_id in {"count", "search"} else await super().get_session(session_id)


@caught_by("FM-TXT-016")
class BatchesFoldMessageIds(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        seen: dict[str, Any] = {}
        for one in messages:
            seen.setdefault(_folded(one["message_id"]), one)
        return await super().add_messages(session_id, list(seen.values()), **given)


@caught_by("FM-TXT-016")
class NormalisesUuids(Sound):
    """Like a column of the type UUID."""

    async def add_message(self, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        is_uuid = message_id is not None and re.fullmatch(
            r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", message_id
        )
        return await super().add_message(*args, message_id=str(message_id).lower() if is_uuid else message_id, **kwargs)


@caught_by("FM-TXT-016")
class CursorsAreNormalised(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        ids = [row["id"] for row in await super().get_history(session_id, **given)]
        similar = [one for one in ids if before and _composed(one) == _composed(before)]
        return await super().get_history(session_id, limit, before=similar[0] if similar else before, **given)


@caught_by("FM-TXT-016")
class FollowsASimilarMessage(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, after: Any = None, **given: Any) -> Any:
        ids = [row["id"] for row in await super().get_history(session_id)]
        similar = [one for one in ids if after and after not in ids and _folded(one) == _folded(after)]
        return await super().get_history(session_id, limit, after=similar[0] if similar else after, **given)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@caught_by("FM-TXT-004")
class UsersByPattern(Sound):
    async def get_sessions(self, *args: Any, user_id: Any = None, **kwargs: Any) -> Any:
        return await super().get_sessions(*args, user_id=None if user_id == "*" else user_id, **kwargs)


@caught_by("FM-TXT-004")
class NoOwnerIsNull(Sound):
    async def create_session(self, *args: Any, user_id: Any = "", **kwargs: Any) -> Any:
        return await super().create_session(*args, user_id="" if user_id == "null" else user_id, **kwargs)


@caught_by("FM-TXT-001")
class BatchesStrip(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        changed: list[Any] = [{**one, "content": one["content"].strip()} for one in messages]
        return await super().add_messages(session_id, changed, **given)


@caught_by("FM-TXT-002")
class ListsNormaliseTitles(Sound):
    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        return [{**row, "title": _composed(row["title"])} for row in await super().get_sessions(*args, **kwargs)]


@caught_by("FM-TXT-003")
class SingleRolesAreLowered(Sound):
    async def add_message(self, session_id: Any, role: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().add_message(session_id, role.lower(), *args, **kwargs)


@caught_by("FM-TXT-017")
class KeysRunTogether(Sound):
    """Keeps a session under `session` and its messages under `session:messages`."""

    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        if session_id in [f"{row['id']}:messages" for row in await super().get_sessions(None)]:
            raise ConflictError(session_id)
        return await super().create_session(*args, session_id=session_id, **kwargs)


@caught_by("FM-TXT-017")
class SuffixesAreReserved(Sound):
    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        return [] if session_id.endswith("#meta") else await super().get_history(session_id, *args, **kwargs)


@caught_by("FM-TXT-007")
class CursorsByDisplayText(Sound):
    async def get_history(self, session_id: Any, limit: Any = None, *, before: Any = None, **given: Any) -> Any:
        return await super().get_history(session_id, limit, before=before and str(before), **given)


@caught_by("FM-TXT-007")
class UsersByDisplayText(Sound):
    async def get_sessions(self, *args: Any, user_id: Any = None, **kwargs: Any) -> Any:
        return await super().get_sessions(*args, user_id=user_id and str(user_id), **kwargs)
