"""Memories that break sessions, messages, batches or retries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import uuid4

from flux_memory import ConflictError, FluxMemoryError, SessionNotFoundError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`


@caught_by("FM-SES-001")
class ForgetsTheUser(Sound):
    async def create_session(self, *args: Any, user_id: Any = "", **kwargs: Any) -> Any:
        return await super().create_session(*args, **kwargs)


@caught_by("FM-SES-002")
class ShowsItsColumns(Sound):
    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return row and {**row, "seq": row["message_count"]}


@caught_by("FM-SES-003")
class RandomIds(Sound):
    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        return await super().create_session(*args, session_id=session_id or str(uuid4()), **kwargs)


@caught_by("FM-SES-004")
class InsertOrReplace(Sound):
    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        if session_id is not None:
            await super().delete_session(session_id)
        return await super().create_session(*args, session_id=session_id, **kwargs)


@caught_by("FM-SES-004")
class InsertOrIgnore(Sound):
    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().create_session(*args, **kwargs)
        except ConflictError:
            return kwargs["session_id"]


@caught_by("FM-SES-005")
class CreatesMissingSessions(Sound):
    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().add_message(session_id, *args, **kwargs)
        except SessionNotFoundError:
            await super().create_session(session_id=session_id)
            return await super().add_message(session_id, *args, **kwargs)


@caught_by("FM-SES-005")
class AcceptsOrphans(Sound):
    orphans: ClassVar[dict[str, list[tuple[Any, Any]]]] = {}

    async def add_message(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().add_message(session_id, *args, **kwargs)
        except SessionNotFoundError:
            self.orphans.setdefault(session_id, []).append((args, kwargs))
            raise

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        session = await super().create_session(*args, **kwargs)
        for orphan, options in self.orphans.pop(session, []):
            await super().add_message(session, *orphan, **options)
        return session


@caught_by("FM-SES-006")
class RenamesNothingQuietly(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        if await super().get_session(session_id) is not None:
            await super().update_session_title(session_id, title)


@caught_by("FM-SES-006")
class RenamingBringsBack(Sound):
    """Checks that the session exists, and then writes without checking again."""

    async def update_session_title(self, session_id: Any, title: Any) -> None:
        found = await super().get_session(session_id)
        await asyncio.sleep(0)
        try:
            await super().update_session_title(session_id, title)
        except SessionNotFoundError:
            if found is None:
                raise
            await super().create_session(title, session_id=session_id)


@caught_by("FM-SES-007")
class RenamingLosesMetadata(Sound):
    renamed: ClassVar[set[str]] = set()

    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, title)
        self.renamed.add(session_id)

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        return {**row, "metadata": {}} if row is not None and session_id in self.renamed else row


@caught_by("FM-SES-008")
class DeletesTheSessionOnly(Sound):
    """Like SQLite on a connection with foreign keys off."""

    left: ClassVar[dict[str, Any]] = {}

    async def delete_session(self, session_id: Any) -> None:
        self.left[session_id] = await super().get_history(session_id)
        await super().delete_session(session_id)

    async def get_history(self, session_id: Any, *args: Any, **kwargs: Any) -> Any:
        rows = await super().get_history(session_id, *args, **kwargs)
        return [*self.left.get(session_id, []), *rows]


@caught_by("FM-SES-008")
class OwnersStayListed(Sound):
    """Keeps the list of a user's sessions separately, and does not update it on deletion."""

    owners: ClassVar[dict[str, set[str]]] = {}

    async def create_session(self, *args: Any, user_id: Any = "", **kwargs: Any) -> Any:
        made = await super().create_session(*args, user_id=user_id, **kwargs)
        self.owners.setdefault(user_id, set()).add(made)
        return made

    async def get_sessions(self, *args: Any, user_id: Any = None, **kwargs: Any) -> Any:
        if user_id is None:
            return await super().get_sessions(*args, **kwargs)
        own = self.owners.get(user_id, set())
        return [row for row in await super().get_sessions(*args, **kwargs) if row["id"] in own]


@caught_by("FM-SES-009")
class DeletingNothingFails(Sound):
    async def delete_session(self, session_id: Any) -> None:
        if await super().get_session(session_id) is None:
            raise SessionNotFoundError(session_id)
        await super().delete_session(session_id)


@caught_by("FM-SES-010")
class ClearsOnePage(Sound):
    async def clear_all(self) -> None:
        for row in await super().get_sessions(2):
            await super().delete_session(row["id"])


@caught_by("FM-SES-010")
class IdsOutliveClearing(Sound):
    """Keeps the known message ids separately, and does not remove them on `clear_all`."""

    known: ClassVar[set[tuple[str, str]]] = set()

    async def add_message(self, session_id: Any, *args: Any, message_id: Any = None, **kwargs: Any) -> Any:
        if (session_id, message_id) in self.known:
            return message_id
        made = await super().add_message(session_id, *args, message_id=message_id, **kwargs)
        self.known.add((session_id, made))
        return made


@caught_by("FM-SES-011")
class CountsUsers(Sound):
    async def count_sessions(self) -> Any:
        return len({row["user_id"] for row in await super().get_sessions(None) if row["message_count"] == 0})


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


@caught_by("FM-BAT-001")
class BatchBackwards(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        return (await super().add_messages(session_id, list(messages)[::-1]))[::-1]


@caught_by("FM-BAT-002")
class BatchWithoutMetadata(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        bare: list[Any] = [{key: value for key, value in one.items() if key != "metadata"} for one in messages]
        return await super().add_messages(session_id, bare)


@caught_by("FM-BAT-003")
class BatchUntilTheFirstError(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        listed = list(messages)
        try:
            return await super().add_messages(session_id, listed)
        except ValueError:
            await super().add_messages(session_id, listed[:2])
            raise


@caught_by("FM-BAT-003")
class BatchIgnoresUnknownKeys(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        known = {"role", "content", "metadata", "message_id"}
        kept: list[Any] = [{key: value for key, value in one.items() if key in known} for one in messages]
        return await super().add_messages(session_id, kept)


@caught_by("FM-BAT-004")
class BatchIsALoop(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        return [
            await super(BatchIsALoop, self).add_message(
                session_id, one["role"], one["content"], one.get("metadata"), message_id=one.get("message_id")
            )
            for one in messages
        ]


@caught_by("FM-BAT-004")
class LongBatchesInParts(Sound):
    """Splits batches that exceed the limit of a statement, a script or a request."""

    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        if not isinstance(messages, list) or len(messages) <= 1_000:
            return await super().add_messages(session_id, messages)
        parts = [messages[at : at + 1_000] for at in range(0, len(messages), 1_000)]
        return [made for part in parts for made in await super(LongBatchesInParts, self).add_messages(session_id, part)]


@caught_by("FM-BAT-005")
class EmptyBatchIsNothing(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        listed = list(messages)
        return await super().add_messages(session_id, listed) if listed else []


@caught_by("FM-BAT-006")
class EmptyBatchBumps(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        made = await super().add_messages(session_id, messages)
        row = await super().get_session(session_id)
        await super().update_session_title(session_id, row["title"] if row else "")
        return made


@caught_by("FM-BAT-007")
class TakesAMappingForAList(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        return await super().add_messages(session_id, list(messages) if isinstance(messages, Mapping) else messages)


@caught_by("FM-BAT-008")
class RetriedBatchConflicts(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        listed = list(messages)
        known = {row["id"] for row in await super().get_history(session_id)}
        if known & {one.get("message_id") for one in listed}:
            raise ConflictError("there already")
        return await super().add_messages(session_id, listed)


@caught_by("FM-BAT-009")
class LastOfABatchWins(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        listed = list(messages)
        last = {one.get("message_id", at): one for at, one in enumerate(listed)}
        await super().add_messages(session_id, last.values())
        return [one.get("message_id", "") for one in listed]


@caught_by("FM-BAT-010")
class BatchMessageByMessage(Sound):
    async def add_messages(self, session_id: Any, messages: Any) -> Any:
        made = []
        for one in messages:
            made += await super().add_messages(session_id, [one])
            await asyncio.sleep(0)
        return made


@caught_by("FM-CON-011")
class ForeignErrors(Sound):
    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().create_session(*args, **kwargs)
        except FluxMemoryError as error:
            raise RuntimeError("UNIQUE constraint failed: sessions.id") from error
