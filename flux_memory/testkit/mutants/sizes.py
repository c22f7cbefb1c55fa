"""Memories that break clauses on sizes."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import json
from typing import Any

from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import KIB, MIB, _ChangesContent, cut_text


@caught_by("FM-LIM-012")
class HistoryOfSixteenMegabytes(Sound):
    """Like a client that refuses a larger response, and is asked for less."""

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        while sum(len(row["content"]) for row in rows) > 16 * MIB:
            rows = rows[1:]
        return rows


@caught_by("FM-LIM-012")
class BatchOfSixteenMegabytes(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        if isinstance(messages, list) and all(isinstance(one, dict) for one in messages):
            while sum(len(str(one.get("content"))) for one in messages) > 16 * MIB:
                messages = messages[:-1]
        return await super().add_messages(session_id, messages, **given)


@caught_by("FM-AMT-003")
class CutsBytesAtOneMegabyte(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content.encode()[:MIB].decode(errors="ignore")


@caught_by("FM-AMT-003")
class LengthOfTwoBytes(_ChangesContent):
    """Writes the length of a text into two bytes: one size comes back empty."""

    def change(self, content: Any) -> Any:
        return "" if len(content.encode()) == 64 * KIB else content


@caught_by("FM-AMT-004")
class HistoryOf64Megabytes(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        while sum(len(row["content"]) for row in rows) > 64 * MIB:
            rows = rows[1:]
        return rows


@caught_by("FM-AMT-004")
class OnlyItsWriterReadsLargeContent(Sound):
    """Keeps large contents in a cache of the handle, and stores a part of them."""

    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(session_id, role, cut_text(content, 16 * MIB), *args, **kwargs)
        self._cached = {**getattr(self, "_cached", {}), made: content}
        return made

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        cached = getattr(self, "_cached", {})
        rows = await super().get_history(*args, **kwargs)
        return [{**row, "content": cached.get(row["id"], row["content"])} for row in rows]


@caught_by("FM-AMT-005")
class CutsMetadataAtFourMegabytes(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        for row in rows:
            row["metadata"] = {key: cut_text(item, 4 * MIB) for key, item in row["metadata"].items()}
        return rows


@caught_by("FM-AMT-005")
class ListsNoLargeMetadata(Sound):
    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [{**row, "metadata": {} if len(str(row["metadata"])) > 8 * MIB else row["metadata"]} for row in rows]


@caught_by("FM-AMT-009")
class CutsTitlesOfUpdates(Sound):
    async def update_session(self, session_id: Any, *, title: Any = None, **given: Any) -> Any:
        return await super().update_session(session_id, title=cut_text(title, 64 * KIB), **given)


@caught_by("FM-AMT-009")
class CutsMessagesOfUpdates(Sound):
    async def update_session(self, session_id: Any, *, messages: Any = (), **given: Any) -> Any:
        if isinstance(messages, list):
            messages = [{**each, "content": cut_text(each["content"], MIB)} for each in messages]
        return await super().update_session(session_id, messages=messages, **given)


@caught_by("FM-AMT-009")
class CutsTitlesOfForks(Sound):
    async def fork_session(self, session_id: Any, *, title: Any = None, **given: Any) -> Any:
        return await super().fork_session(session_id, title=cut_text(title, 64 * KIB), **given)


@caught_by("FM-AMT-009")
class CutsPoppedMessages(Sound):
    async def pop_message(self, session_id: Any) -> Any:
        popped = await super().pop_message(session_id)
        return popped and {**popped, "content": cut_text(popped["content"], 16 * MIB)}


@caught_by("FM-AMT-009")
class CutsLookedUpMessages(Sound):
    async def get_message(self, *args: Any) -> Any:
        found = await super().get_message(*args)
        return found and {**found, "content": cut_text(found["content"], MIB)}


@caught_by("FM-AMT-006")
class CutsContentAt32Megabytes(_ChangesContent):
    def change(self, content: Any) -> Any:
        return content[: 32 * MIB]


@caught_by("FM-AMT-006")
class LosesContentOf512Bytes(_ChangesContent):
    def change(self, content: Any) -> Any:
        return "" if len(content.encode()) == 512 else content


@caught_by("FM-AMT-007")
class CutsTitlesAtEightKilobytes(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, cut_text(title, 8 * KIB))


@caught_by("FM-AMT-007")
class LosesMetadataOfFourKilobytes(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(*args, **kwargs)
        return [{**row, "metadata": {} if _bytes_of(row["metadata"]) == 4 * KIB else row["metadata"]} for row in rows]


def _bytes_of(metadata: Any) -> int:
    return len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode())
