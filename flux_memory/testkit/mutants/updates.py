"""Memories that break clauses on updates: the parts, their order, and that all of them take effect or none."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final

from flux_memory import ConflictError, InvalidInputError, SessionNotFoundError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by

MESSAGES: Final = ("truncate_from", "truncate_all", "messages")
"""The parts of an update that change messages."""


def divide(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parts of an update that change the session, and those that change its messages."""
    return (
        {name: value for name, value in given.items() if name not in MESSAGES},
        {name: value for name, value in given.items() if name in MESSAGES},
    )


@caught_by("FM-UPD-001")
class ReturnsTheSessionAsItWas(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        before = await super().get_session(session_id)
        await super().update_session(session_id, **given)
        return before


@caught_by("FM-UPD-001")
class TitlesReplaceTheMetadata(Sound):
    """Writes the whole record, with the default for what is not given."""

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        row = await super().get_session(session_id)
        if row is not None and "title" in given:
            given["remove_metadata"] = [*given.get("remove_metadata", ()), *row["metadata"]]
        return await super().update_session(session_id, **given)


@caught_by("FM-UPD-001")
class UpdatesClearTheTitle(Sound):
    async def update_session(self, session_id: Any, *, title: Any = None, **given: Any) -> Any:
        return await super().update_session(session_id, title="" if title is None and given else title, **given)


@caught_by("FM-UPD-001")
class UpdatesIgnoreAnEmptyTitle(Sound):
    async def update_session(self, session_id: Any, *, title: Any = None, **given: Any) -> Any:
        if title == "":
            row = await super().get_session(session_id)
            title = row["title"] if row is not None else title
        return await super().update_session(session_id, title=title, **given)


@caught_by("FM-UPD-002")
class AppendsBeforeItTruncates(Sound):
    async def update_session(self, session_id: Any, *, messages: Any = (), **given: Any) -> Any:
        batch = list(messages)
        if not (batch and given):
            return await super().update_session(session_id, messages=batch, **given)
        await super().update_session(session_id, messages=batch)
        return await super().update_session(session_id, **given)


@caught_by("FM-UPD-003")
class UpdatesPartByPart(Sound):
    async def update_session(self, session_id: Any, *, expected_revision: Any = None, **given: Any) -> Any:
        parts = {name: value for name, value in given.items() if value}
        order = ("truncate_from", "truncate_all", "title", "merge_metadata", "remove_metadata", "messages")
        both = "truncate_from" in parts and "truncate_all" in parts
        if len(parts) < 2 or both or {"merge_metadata", "remove_metadata"} <= parts.keys():
            return await super().update_session(session_id, expected_revision=expected_revision, **given)
        made: Any = None
        for name in sorted(parts, key=order.index):
            made = await super().update_session(session_id, expected_revision=expected_revision, **{name: parts[name]})
            expected_revision = None if expected_revision is None else made["revision"]
        return made


@caught_by("FM-UPD-003")
class RefusedUpdatesKeepTheirTitle(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        try:
            return await super().update_session(session_id, **given)
        except ConflictError:
            if isinstance(given.get("title"), str):
                await super().update_session_title(session_id, given["title"])
            raise


@caught_by("FM-UPD-003")
class ConflictingMessagesAreLeftOut(Sound):
    """Appends the other messages of a batch."""

    async def update_session(self, session_id: Any, *, messages: Any = (), **given: Any) -> Any:
        batch = list(messages)
        try:
            return await super().update_session(session_id, messages=batch, **given)
        except ConflictError:
            for one in batch[:-1]:
                await super().update_session(session_id, messages=[one])
            raise


@caught_by("FM-UPD-004")
class UpdatesCreateSessions(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        try:
            return await super().update_session(session_id, **given)
        except SessionNotFoundError:
            if "title" not in given or session_id.strip() != session_id or not 0 < len(session_id) < 100:
                raise
            await super().create_session(given["title"], session_id=session_id)
            return await super().get_session(session_id)


@caught_by("FM-UPD-004")
class MissingSessionsConflict(Sound):
    """Cannot tell a missing session from one with another revision, as no row is updated."""

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        try:
            return await super().update_session(session_id, **given)
        except SessionNotFoundError as error:
            if given.get("expected_revision") is None:
                raise
            raise ConflictError("another revision") from error


@caught_by("FM-UPD-005")
class AnEmptyUpdateIsARead(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        if not any(value for name, value in given.items() if name != "expected_revision"):
            return await super().get_session(session_id)
        return await super().update_session(session_id, **given)


@caught_by("FM-UPD-005")
class ATextIsKeys(Sound):
    async def update_session(self, session_id: Any, *, remove_metadata: Any = (), **given: Any) -> Any:
        keys = list(remove_metadata) if isinstance(remove_metadata, str) else remove_metadata
        return await super().update_session(session_id, remove_metadata=keys, **given)


@caught_by("FM-UPD-005")
class TheLargerTruncationWins(Sound):
    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        first = None if given.get("truncate_all") is True else truncate_from
        return await super().update_session(session_id, truncate_from=first, **given)


@caught_by("FM-UPD-005")
class AnyTruthTruncates(Sound):
    async def update_session(self, session_id: Any, *, truncate_all: Any = False, **given: Any) -> Any:
        return await super().update_session(session_id, truncate_all=bool(truncate_all), **given)


@caught_by("FM-UPD-005")
class LooksForTheSessionFirst(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        if await super().get_session(session_id) is None:
            raise SessionNotFoundError(f"session {session_id!r} does not exist")
        return await super().update_session(session_id, **given)


@caught_by("FM-UPD-006")
class ChecksBeforeItLooksWhetherItIsClosed(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        if not isinstance(given.get("title", ""), str):
            raise InvalidInputError("title must be a str")
        return await super().update_session(session_id, **given)


@caught_by("FM-UPD-007")
class UpdatesInTwoSteps(Sound):
    """Undoes the first step if the second one fails, but others see it meanwhile."""

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        own, messages = divide(given)
        if not (own.get("title") and messages.get("truncate_all") is True):
            return await super().update_session(session_id, **given)
        await super().update_session(session_id, **own)
        await asyncio.sleep(0)
        return await super().update_session(session_id, **messages)


@caught_by("FM-UPD-007")
class ReadsARecordInTwoSteps(Sound):
    changing: ClassVar[dict[str, bool]] = {}

    async def update_session(self, *args: Any, **given: Any) -> Any:
        await asyncio.sleep(0)
        return await super().update_session(*args, **given)

    async def get_session(self, session_id: Any) -> Any:
        row = await super().get_session(session_id)
        await asyncio.sleep(0)
        return row and {**row, "message_count": len(await super().get_history(session_id))}


@caught_by("FM-UPD-008", reference_only=True)
class TruncatesByMessageIdAlone(Sound):
    async def update_session(self, session_id: Any, *, truncate_from: Any = None, **given: Any) -> Any:
        made = await super().update_session(session_id, truncate_from=truncate_from, **given)
        with self._store.writing() as sessions:
            for state in sessions.values():
                state["messages"] = [one for one in state["messages"] if one["id"] != truncate_from]
        return made


@caught_by("FM-UPD-008", reference_only=True)
class TruncatesEveryHistory(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        made = await super().update_session(session_id, **given)
        with self._store.writing() as sessions:
            for state in sessions.values() if given.get("truncate_all") is True else ():
                if state["id"] != session_id:
                    state["messages"] = []
        return made
