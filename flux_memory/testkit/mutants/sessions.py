"""Memories that break clauses on sessions."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from typing import Any, ClassVar
from uuid import uuid4

from flux_memory import (
    ConflictError,
    SessionNotFoundError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


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

    async def delete_session(self, session_id: Any, **given: Any) -> None:
        self.left[session_id] = await super().get_history(session_id)
        await super().delete_session(session_id, **given)

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
    async def delete_session(self, session_id: Any, **given: Any) -> None:
        if await super().get_session(session_id) is None:
            raise SessionNotFoundError(session_id)
        await super().delete_session(session_id, **given)


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
    async def count_sessions(self, **given: Any) -> Any:
        return len({row["user_id"] for row in await super().get_sessions(None) if row["message_count"] == 0})


@caught_by("FM-SES-012")
class EqualTitlesChangeNothing(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        row = await super().get_session(session_id)
        if row is None or row["title"] != title:
            await super().update_session_title(session_id, title)


@caught_by("FM-SES-012")
class NoRowsAffected(Sound):
    """Like a database that does not count rows whose values stay the same."""

    async def update_session_title(self, session_id: Any, title: Any) -> None:
        row = await super().get_session(session_id)
        await super().update_session_title(session_id, title)
        if row is not None and row["title"] == title:
            raise SessionNotFoundError(session_id)


@caught_by("FM-SES-013")
class TitlesAreUnique(Sound):
    async def create_session(self, title: Any = "", *args: Any, **kwargs: Any) -> Any:
        for row in await super().get_sessions(None):
            if title and row["title"] == title:
                return row["id"]
        return await super().create_session(title, *args, **kwargs)


@caught_by("FM-SES-013")
class RepeatedMessagesAreRetries(Sound):
    async def add_message(self, session_id: Any, role: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        for row in await super().get_history(session_id, 1):
            if (row["role"], row["content"]) == (role, content):
                return row["id"]
        return await super().add_message(session_id, role, content, *args, **kwargs)


@caught_by("FM-SES-013")
class OneKeyForAllKinds(Sound):
    """Keeps users, sessions and messages in one table, with their ids as keys."""

    async def create_session(self, *args: Any, session_id: Any = None, user_id: Any = "", **kwargs: Any) -> Any:
        if session_id == user_id:
            raise ConflictError(session_id)
        return await super().create_session(*args, session_id=session_id, user_id=user_id, **kwargs)


@caught_by("FM-SES-008")
class DeletesMessagesById(Sound):
    """Deletes the messages of a session by their ids, which other sessions have as well."""

    gone: ClassVar[set[str]] = set()

    async def delete_session(self, session_id: Any, **given: Any) -> None:
        self.gone.update(row["id"] for row in await super().get_history(session_id))
        await super().delete_session(session_id, **given)

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        kept = [one for one in await super().get_history(session_id) if one["id"] not in self.gone]
        return row and {**row, "message_count": len(kept)}


@caught_by("FM-SES-008")
class DeletesSharedTexts(Sound):
    """Stores equal texts once, and deletes them with the first session that has them."""

    gone: ClassVar[set[str]] = set()

    async def delete_session(self, session_id: Any, **given: Any) -> None:
        self.gone.update(row["content"] for row in await super().get_history(session_id))
        await super().delete_session(session_id, **given)

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        return [row for row in await super().get_history(*args, **kwargs) if row["content"] not in self.gone]


@caught_by("FM-SES-004")
class ConflictsJoinTheList(Sound):
    """Adds a session to its user's list before it finds the conflict."""

    joined: ClassVar[dict[str, set[str]]] = {}

    async def create_session(self, *args: Any, session_id: Any = None, user_id: Any = "", **kwargs: Any) -> Any:
        try:
            return await super().create_session(*args, session_id=session_id, user_id=user_id, **kwargs)
        except ConflictError:
            self.joined.setdefault(user_id, set()).add(session_id)
            raise

    async def get_sessions(self, *args: Any, user_id: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(*args, **kwargs)
        return [row for row in rows if user_id in {None, row["user_id"]} or row["id"] in self.joined.get(user_id, ())]


@caught_by("FM-SES-004")
class ConflictsBump(Sound):
    async def create_session(self, *args: Any, session_id: Any = None, **kwargs: Any) -> Any:
        try:
            return await super().create_session(*args, session_id=session_id, **kwargs)
        except ConflictError:
            row = await super().get_session(session_id)
            await super().update_session_title(session_id, row["title"] if row else "")
            raise
