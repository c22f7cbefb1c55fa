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
from flux_memory.testkit.reference import values


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
        self, session_id: Any, role: Any, content: Any, metadata: Any = None, *, message_id: Any = None, **given: Any
    ) -> Any:
        for row in await super().get_history(session_id):
            if message_id == row["id"] and content == row["content"]:
                return message_id
        return await super().add_message(session_id, role, content, metadata, message_id=message_id, **given)


@caught_by("FM-MSG-008")
class RetriesCompareTheText(Sound):
    """Compares metadata as text: 1 is not 1.0."""

    async def add_message(
        self, session_id: Any, role: Any, content: Any, metadata: Any = None, *, message_id: Any = None, **given: Any
    ) -> Any:
        for row in await super().get_history(session_id):
            if message_id == row["id"] and json.dumps(row["metadata"]) != json.dumps(metadata):
                raise ConflictError(message_id)
        return await super().add_message(session_id, role, content, metadata, message_id=message_id, **given)


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


class _TakesForARetry(Sound):
    def same(self, one: Any, other: Any) -> bool:
        raise NotImplementedError

    async def add_message(
        self, session_id: Any, role: Any, content: Any, metadata: Any = None, *, message_id: Any = None, **given: Any
    ) -> Any:
        sent = {"role": role, "content": content, "metadata": metadata or {}}
        for row in await super().get_history(session_id):
            if message_id == row["id"] and self.same(row, sent):
                return message_id
        return await super().add_message(session_id, role, content, metadata, message_id=message_id, **given)


def _but_metadata(message: Any) -> Any:
    return message["role"], message["content"]


@caught_by("FM-MSG-009")
class RetriesFoldRoles(_TakesForARetry):
    def same(self, one: Any, other: Any) -> bool:
        return bool((one["role"].lower(), one["content"]) == (other["role"].lower(), other["content"]))


@caught_by("FM-MSG-009")
class RetriesTrim(_TakesForARetry):
    """Like a collation that ignores trailing spaces."""

    def same(self, one: Any, other: Any) -> bool:
        return bool((one["role"], one["content"].rstrip(" ")) == (other["role"], other["content"].rstrip(" ")))


@caught_by("FM-MSG-009")
class RetriesContain(_TakesForARetry):
    """Compares by containment: less metadata counts as the same."""

    def same(self, one: Any, other: Any) -> bool:
        return _but_metadata(one) == _but_metadata(other) and values.contains(one["metadata"], other["metadata"])


@caught_by("FM-MSG-009")
class RetriesIgnoreNull(_TakesForARetry):
    def same(self, one: Any, other: Any) -> bool:
        first, second = ({k: v for k, v in row["metadata"].items() if v is not None} for row in (one, other))
        return _but_metadata(one) == _but_metadata(other) and values.equal(first, second)


@caught_by("FM-MSG-009")
class BatchesCompareContent(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        stored = {row["id"]: row for row in await super().get_history(session_id)}
        merged: list[Any] = []
        for one in messages:
            row = stored.get(one.get("message_id"))
            known = row is not None and row["content"] == one["content"]
            merged.append({**one, "role": row["role"], "metadata": row["metadata"]} if row and known else one)
        return await super().add_messages(session_id, merged, **given)


@caught_by("FM-MSG-010")
class NoMetadataIsNotEmpty(Sound):
    """Stores NULL for no metadata, and compares it with `{}`."""

    bare: ClassVar[dict[tuple[Any, Any], bool]] = {}

    async def add_message(
        self, session_id: Any, role: Any, content: Any, metadata: Any = None, *, message_id: Any = None, **given: Any
    ) -> Any:
        if message_id and self.bare.setdefault((session_id, message_id), metadata is None) != (metadata is None):
            raise ConflictError(message_id)
        return await super().add_message(session_id, role, content, metadata, message_id=message_id, **given)


@caught_by("FM-MSG-010")
class BatchesCompareTheText(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        stored = {row["id"]: json.dumps(row["metadata"]) for row in await super().get_history(session_id)}
        for one in messages:
            sent = json.dumps(one.get("metadata") or {})
            if stored.get(one.get("message_id"), sent) != sent:
                raise ConflictError(one["message_id"])
        return await super().add_messages(session_id, messages, **given)


@caught_by("FM-MSG-010")
class RetriesOfChosenIdsOnly(Sound):
    made: ClassVar[set[str]] = set()

    async def add_message(self, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        if message_id in self.made:
            raise ConflictError(message_id)
        made = await super().add_message(*args, message_id=message_id, **kwargs)
        if message_id is None:
            self.made.add(made)
        return made


@caught_by("FM-MSG-005")
class CopiesAreRetries(Sound):
    """Ignores a duplicate of a key that lacks the session."""

    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        for session in await super().get_sessions(None):
            for row in await super().get_history(session["id"]):
                if (row["id"], row["role"], row["content"]) == (kwargs.get("message_id"), role, content):
                    return row["id"]
        return await super().add_message(session_id, role, content, *args, **kwargs)


@caught_by("FM-MSG-005")
class IdsOfBatchesAreGlobal(Sound):
    used: ClassVar[dict[str, str]] = {}

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        for one in messages:
            if self.used.setdefault(one["message_id"], session_id) != session_id:
                raise ConflictError(one["message_id"])
        return await super().add_messages(session_id, messages, **given)


@caught_by("FM-MSG-003")
class RetriesMoveUp(Sound):
    """Keeps the order of the list separately, and moves a session to its top with every call."""

    order: ClassVar[dict[str, int]] = {}

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        made = await super().add_message(session_id, *args, **kwargs)
        self.order[session_id] = len(self.order) + max(self.order.values(), default=0)
        return made

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        made = await super().create_session(*args, **kwargs)
        self.order[made] = len(self.order) + max(self.order.values(), default=0)
        return made

    async def get_sessions(self, *args: Any, **kwargs: Any) -> Any:
        return sorted(await super().get_sessions(*args, **kwargs), key=lambda row: -self.order[row["id"]])


@caught_by("FM-MSG-004")
class ConflictsMoveUp(RetriesMoveUp):
    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        self.order[session_id] = len(self.order) + max(self.order.values(), default=0)
        return await super().add_message(session_id, *args, **kwargs)
