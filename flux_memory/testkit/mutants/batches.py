"""Memories that break clauses on batches."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from flux_memory import (
    ConflictError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


@caught_by("FM-BAT-001")
class BatchBackwards(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        return (await super().add_messages(session_id, list(messages)[::-1], **given))[::-1]


@caught_by("FM-BAT-002")
class BatchWithoutMetadata(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        bare: list[Any] = [{key: value for key, value in one.items() if key != "metadata"} for one in messages]
        return await super().add_messages(session_id, bare, **given)


@caught_by("FM-BAT-003")
class BatchUntilTheFirstError(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        listed = list(messages)
        try:
            return await super().add_messages(session_id, listed, **given)
        except ValueError:
            await super().add_messages(session_id, listed[:2], **given)
            raise


@caught_by("FM-BAT-003")
class BatchIgnoresUnknownKeys(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        known = {"role", "content", "metadata", "message_id"}
        kept: list[Any] = [{key: value for key, value in one.items() if key in known} for one in messages]
        return await super().add_messages(session_id, kept, **given)


@caught_by("FM-BAT-004")
class BatchIsALoop(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        return [
            await super(BatchIsALoop, self).add_message(
                session_id, one["role"], one["content"], one.get("metadata"), message_id=one.get("message_id")
            )
            for one in messages
        ]


@caught_by("FM-BAT-004")
class LongBatchesInParts(Sound):
    """Splits batches that exceed the limit of a statement, a script or a request."""

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        if not isinstance(messages, list) or len(messages) <= 1_000:
            return await super().add_messages(session_id, messages, **given)
        parts = [messages[at : at + 1_000] for at in range(0, len(messages), 1_000)]
        return [
            made
            for part in parts
            for made in await super(LongBatchesInParts, self).add_messages(session_id, part, **given)
        ]


@caught_by("FM-BAT-005")
class EmptyBatchIsNothing(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        listed = list(messages)
        return await super().add_messages(session_id, listed, **given) if listed else []


@caught_by("FM-BAT-006")
class EmptyBatchBumps(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made = await super().add_messages(session_id, messages, **given)
        row = await super().get_session(session_id)
        await super().update_session_title(session_id, row["title"] if row else "")
        return made


@caught_by("FM-BAT-007")
class TakesAMappingForAList(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        return await super().add_messages(
            session_id, list(messages) if isinstance(messages, Mapping) else messages, **given
        )


@caught_by("FM-BAT-008")
class RetriedBatchConflicts(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        listed = list(messages)
        known = {row["id"] for row in await super().get_history(session_id)}
        if known & {one.get("message_id") for one in listed}:
            raise ConflictError("there already")
        return await super().add_messages(session_id, listed, **given)


@caught_by("FM-BAT-009")
class LastOfABatchWins(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        listed = list(messages)
        last = {one.get("message_id", at): one for at, one in enumerate(listed)}
        await super().add_messages(session_id, last.values(), **given)
        return [one.get("message_id", "") for one in listed]


@caught_by("FM-BAT-010")
class BatchMessageByMessage(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made = []
        for one in messages:
            made += await super().add_messages(session_id, [one], **given)
            await asyncio.sleep(0)
        return made


@caught_by("FM-BAT-008")
class StoredIdsFirst(Sound):
    """Returns the ids of messages that are already stored before those of new ones."""

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        known = {row["id"] for row in await super().get_history(session_id)}
        return sorted(await super().add_messages(session_id, messages, **given), key=lambda made: made not in known)


@caught_by("FM-BAT-011")
class ColumnsOfTheFirst(Sound):
    """Builds the statement from the keys of the first message."""

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        alike: list[Any] = [
            {key: value for key, value in one.items() if key in {*messages[0], "message_id"}} for one in messages
        ]
        return await super().add_messages(session_id, alike, **given)


@caught_by("FM-BAT-011")
class RoleOfTheFirst(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        alike: list[Any] = [{**one, "role": messages[0]["role"]} for one in messages]
        return await super().add_messages(session_id, alike, **given)


@caught_by("FM-BAT-011")
class MetadataOfTheOneBefore(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        filled: list[Any] = []
        last: Any = None
        for one in messages:
            last = one.get("metadata", last)
            filled.append({**one, "metadata": last})
        return await super().add_messages(session_id, filled, **given)


@caught_by("FM-BAT-011")
class BatchesOfOneAreBare(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        if len(messages) == 1:
            one = messages[0]
            made = await super().add_message(session_id, one["role"], one["content"], message_id=one.get("message_id"))
            return [made]
        return await super().add_messages(session_id, messages, **given)


@caught_by("FM-BAT-012")
class RejectedIdsAreKnown(Sound):
    """Records the ids of a batch before it stores the messages, and does not roll that back."""

    known: ClassVar[set[tuple[Any, Any]]] = set()

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        stored = {row["id"] for row in await super().get_history(session_id)}
        new = [one for one in messages if (session_id, one.get("message_id")) not in self.known]
        self.known.update(
            (session_id, one["message_id"]) for one in new if one.get("message_id") and one["message_id"] not in stored
        )
        await super().add_messages(session_id, new, **given)
        return [one.get("message_id") for one in messages]
