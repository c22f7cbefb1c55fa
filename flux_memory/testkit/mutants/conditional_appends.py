"""Memories that break clauses on updates that append messages on the condition of a revision."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from typing import Any

from flux_memory import ConflictError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


class _AppendsByCode(Sound):
    """Has a path of its own for updates with a revision and messages alone."""

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        if given.keys() != {"expected_revision", "messages"} or given["expected_revision"] is None:
            return await super().update_session(session_id, **given)
        return await self.append(session_id, given["expected_revision"], list(given["messages"]))

    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        return await super().update_session(session_id, expected_revision=expected, messages=batch)


@caught_by("FM-REV-060")
class AppendsTheFirstOfATurn(_AppendsByCode):
    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        return await super().append(session_id, expected, batch[:1])


@caught_by("FM-REV-060")
class AppendsATurnBackwards(_AppendsByCode):
    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        return await super().append(session_id, expected, batch[::-1])


@caught_by("FM-REV-060")
class ATurnHasOneMetadata(_AppendsByCode):
    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        return await super().append(session_id, expected, [{**batch[0], **one, **_metadata(batch)} for one in batch])


@caught_by("FM-REV-060")
class AppendsCountOneMessage(_AppendsByCode):
    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        made = await super().append(session_id, expected, batch)
        return {**made, "message_count": made["message_count"] - len(batch) + 1}


@caught_by("FM-REV-061")
class TurnsDoNotCompare(_AppendsByCode):
    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        if len(batch) < 2:
            return await super().append(session_id, expected, batch)
        row = await super().get_session(session_id)
        return await super().append(session_id, row["revision"] if row else expected, batch)


@caught_by("FM-REV-061")
class TakenIdsOfATurnAreLeftOut(_AppendsByCode):
    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        known = [row["id"] for row in await super().get_history(session_id)]
        fresh = [one for one in batch if one.get("message_id") not in known]
        return await super().append(session_id, expected, fresh or batch)


@caught_by("FM-REV-061")
class StoredMessagesOfATurnConflict(_AppendsByCode):
    """Inserts the whole batch, so that a retried message violates the key."""

    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        known = [row["id"] for row in await super().get_history(session_id)]
        if any(one.get("message_id") in known for one in batch):
            raise ConflictError("a message is stored already")
        return await super().append(session_id, expected, batch)


@caught_by("FM-REV-062")
class ComparesAndThenAppends(_AppendsByCode):
    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        row = await super().get_session(session_id)
        if row is not None and row["revision"] != expected:
            raise ConflictError(session_id)
        await asyncio.sleep(0)
        row = await super().get_session(session_id)
        return await super().append(session_id, row["revision"] if row else expected, batch)


@caught_by("FM-REV-062")
class AppendsATurnOneByOne(_AppendsByCode):
    async def append(self, session_id: Any, expected: Any, batch: list[Any]) -> Any:
        made = await super().append(session_id, expected, batch[:1])
        for one in batch[1:]:
            await asyncio.sleep(0)
            await super().add_messages(session_id, [one])
        return {**made, "message_count": made["message_count"] + len(batch) - 1}


def _metadata(batch: list[Any]) -> dict[str, Any]:
    return {"metadata": batch[0].get("metadata")}
