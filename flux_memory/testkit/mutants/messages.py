"""Memories that break clauses on single messages and retries."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

from flux_memory import (
    ConflictError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


@caught_by("FM-MSG-001")
class NoNormalRow(Sound):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return [type("Row", (dict,), {})(row) for row in await super().get_history(*args, **kwargs)]


@caught_by("FM-MSG-002")
class RetriesDuplicate(Sound):
    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        if message_id in [row["id"] for row in await super().get_history(session_id)]:
            await super().add_message(session_id, *args, **kwargs)
            return message_id
        return await super().add_message(session_id, *args, message_id=message_id, **kwargs)


@caught_by("FM-MSG-002")
class RetriesConflict(Sound):
    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        if message_id is not None and message_id in [row["id"] for row in await super().get_history(session_id)]:
            raise ConflictError(message_id)
        return await super().add_message(session_id, *args, message_id=message_id, **kwargs)


@caught_by("FM-MSG-003")
class RetriesBump(Sound):
    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        known = message_id in [row["id"] for row in await super().get_history(session_id)]
        made = await super().add_message(session_id, *args, message_id=message_id, **kwargs)
        row = await super().get_session(session_id)
        if known and row is not None:
            await super().update_session_title(session_id, row["title"])
        return made


@caught_by("FM-MSG-004")
class FirstContentWins(Sound):
    async def add_message(self, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        try:
            return await super().add_message(*args, message_id=message_id, **kwargs)
        except ConflictError:
            return message_id


@caught_by("FM-MSG-004")
class RetriesCompareContentOnly(Sound):
    async def add_message(
        self, session_id: Any, role: Any, content: Any, metadata: Any = None, *, message_id: Any = None
    ) -> Any:
        for row in await super().get_history(session_id):
            if message_id == row["id"] and content == row["content"]:
                return message_id
        return await super().add_message(session_id, role, content, metadata, message_id=message_id)


@caught_by("FM-MSG-008")
class RetriesCompareTheText(Sound):
    """Compares metadata as text: 1 is not 1.0."""

    async def add_message(
        self, session_id: Any, role: Any, content: Any, metadata: Any = None, *, message_id: Any = None
    ) -> Any:
        for row in await super().get_history(session_id):
            if message_id == row["id"] and json.dumps(row["metadata"]) != json.dumps(metadata):
                raise ConflictError(message_id)
        return await super().add_message(session_id, role, content, metadata, message_id=message_id)


@caught_by("FM-MSG-005")
class MessageIdsAreGlobal(Sound):
    used: ClassVar[dict[str, str]] = {}

    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        if message_id is not None and self.used.setdefault(message_id, session_id) != session_id:
            raise ConflictError(message_id)
        return await super().add_message(session_id, *args, message_id=message_id, **kwargs)


@caught_by("FM-MSG-005")
class IdsRunTogether(Sound):
    """Keeps the known message ids under the key `session:message`."""

    known: ClassVar[dict[str, str]] = {}

    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        key = f"{session_id}:{message_id}"
        if message_id is not None and self.known.setdefault(key, session_id) != session_id:
            raise ConflictError(message_id)
        return await super().add_message(session_id, *args, message_id=message_id, **kwargs)


class _ChecksThenInserts(Sound):
    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        known = [row["id"] for row in await super().get_history(session_id)]
        await asyncio.sleep(0)
        if message_id in known:
            return message_id
        await self.insert(session_id, args, message_id, kwargs)
        return message_id

    async def insert(self, session_id: Any, args: Any, message_id: Any, kwargs: Any) -> None:
        raise NotImplementedError


@caught_by("FM-MSG-006")
class RacingRetriesDuplicate(_ChecksThenInserts):
    async def insert(self, session_id: Any, args: Any, message_id: Any, kwargs: Any) -> None:
        await super().add_messages(session_id, [{"role": args[0], "content": args[1]}])


@caught_by("FM-MSG-007")
class RacingContentsAreDropped(_ChecksThenInserts):
    async def insert(self, session_id: Any, args: Any, message_id: Any, kwargs: Any) -> None:
        one: Any = {"role": args[0], "content": args[1], "message_id": message_id}
        try:
            await super().add_messages(session_id, [one])
        except ConflictError:
            return
