"""Memories that break clauses on adds that create their session or name its owner."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from flux_memory import ConflictError, InvalidInputError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by

PAGE = 1_000
"""Messages that fit one statement or request."""


class _BothAdds(Sound):
    """Treats both kinds of adds alike."""

    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        raise NotImplementedError

    async def add_message(self, session_id: Any, *args: Any, **given: Any) -> Any:
        add = super().add_message
        return await self.added(lambda key, **options: add(key, *args, **options), session_id, given)

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        add = super().add_messages
        return await self.added(lambda key, **options: add(key, messages, **options), session_id, given)

    async def is_missing(self, session_id: Any) -> bool:
        return isinstance(session_id, str) and await super().get_session(session_id) is None


@caught_by("FM-CRE-001")
class CreatedSessionsHaveNoOwner(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        if given.get("create") is True and await self.is_missing(session_id):
            given = {**given, "user_id": ""}
        return await add(session_id, **given)


@caught_by("FM-CRE-001")
class CreatingAddsLoseMetadata(Sound):
    async def add_message(self, *args: Any, create: Any = False, **given: Any) -> Any:
        return await super().add_message(*(args[:3] if create is True else args), create=create, **given)


@caught_by("FM-CRE-001")
class CreatedSessionsAreNamed(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        missing = given.get("create") is True and await self.is_missing(session_id)
        made = await add(session_id, **given)
        if missing and made:
            await self.update_session_title(session_id, "New conversation")
        return made


@caught_by("FM-CRE-001")
class CreatesUnderAnIdOfItsOwn(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        made = await add(session_id, **given)
        if given.get("create") is True and made == "":
            return made
        if session_id == "batch":
            await self.delete_session(session_id)
            await self.create_session(user_id=given.get("user_id", ""))
        return made


@caught_by("FM-CRE-002")
class CreateReplacesTheSession(_BothAdds):
    """Inserts the session, or replaces it."""

    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        row = await self.get_session(session_id) if isinstance(session_id, str) else None
        if row is not None and given.get("create") is True and given.get("user_id", "") in {"", row["user_id"]}:
            await self.update_session_title(session_id, "")
        return await add(session_id, **given)


@caught_by("FM-CRE-002")
class OwnedSessionsNeedTheirOwner(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        row = await self.get_session(session_id) if isinstance(session_id, str) else None
        if row is not None and row["user_id"] != given.get("user_id", "") and given.get("create") is True:
            raise ConflictError("the session belongs to another user")
        return await add(session_id, **given)


class _IgnoresTheOwner(_BothAdds):
    """Leaves the owner out where the session exists and `forgives` says so."""

    def forgives(self, owner: str, given: dict[str, Any]) -> bool:
        raise NotImplementedError

    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        row = await self.get_session(session_id) if isinstance(session_id, str) else None
        if row is not None and isinstance(given.get("user_id"), str) and self.forgives(row["user_id"], given):
            given = {key: value for key, value in given.items() if key != "user_id"}
        return await add(session_id, **given)


@caught_by("FM-CRE-003")
class TakesOverSessions(_IgnoresTheOwner):
    def forgives(self, owner: str, given: dict[str, Any]) -> bool:
        return given.get("create") is True


@caught_by("FM-CRE-003")
class OnlyCreateChecksTheOwner(_IgnoresTheOwner):
    def forgives(self, owner: str, given: dict[str, Any]) -> bool:
        return not given.get("create")


@caught_by("FM-CRE-003")
class OwnersHaveNoCase(_IgnoresTheOwner):
    def forgives(self, owner: str, given: dict[str, Any]) -> bool:
        return owner.lower() == str(given["user_id"]).lower()


@caught_by("FM-CRE-003")
class OwnersAreStripped(_IgnoresTheOwner):
    def forgives(self, owner: str, given: dict[str, Any]) -> bool:
        return owner == str(given["user_id"]).strip()


@caught_by("FM-CRE-003")
class UnownedSessionsAreForAll(_IgnoresTheOwner):
    def forgives(self, owner: str, given: dict[str, Any]) -> bool:
        return not owner


@caught_by("FM-CRE-004")
class CreatesBeforeItChecks(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        if given.get("create") is True and session_id == "s" and await self.is_missing(session_id):
            try:
                return await add(session_id, **given)
            except (ConflictError, InvalidInputError):
                await self.create_session(session_id=session_id)
                raise
        return await add(session_id, **given)


@caught_by("FM-CRE-004")
class ConflictsLeaveAnEmptySession(_BothAdds):
    """Creates the session in a transaction of its own."""

    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        try:
            return await add(session_id, **given)
        except ConflictError:
            if given.get("create") is True and await self.is_missing(session_id):
                await self.create_session(session_id=session_id)
            raise


@caught_by("FM-CRE-005")
class SecondCreatorsConflict(_BothAdds):
    """Looks whether the session exists, and creates it if it does not."""

    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        missing = given.get("create") is True and await self.is_missing(session_id)
        await asyncio.sleep(0)
        if missing and not await self.is_missing(session_id):
            raise ConflictError(f"session {session_id!r} exists")
        return await add(session_id, **given)


@caught_by("FM-CRE-005")
class RacingCreatorsDoNotCompareOwners(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        missing = given.get("create") is True and await self.is_missing(session_id)
        await asyncio.sleep(0)
        if missing and not await self.is_missing(session_id):
            given = {key: value for key, value in given.items() if key != "user_id"}
        return await add(session_id, **given)


@caught_by("FM-CRE-006")
class EmptyBatchesCreate(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        batch: Any = messages if isinstance(messages, str | bytes | dict) else list(messages)
        if not batch and given.get("create") is True and await super().get_session(session_id) is None:
            await super().create_session(session_id=session_id, user_id=given.get("user_id", ""))
        return await super().add_messages(session_id, batch, **given)


@caught_by("FM-CRE-006")
class EmptyBatchesForNowhereAreNothing(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        batch = list(messages)
        return await super().add_messages(session_id, batch, **given) if batch or not given else []


@caught_by("FM-CRE-007")
class CreatesUnderACutId(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        if given.get("create") is True and isinstance(session_id, str):
            session_id = session_id[:200]
        return await add(session_id, **given)


@caught_by("FM-CRE-007")
class UnstorableIdsAreNotFound(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        unstorable = isinstance(session_id, str) and (not session_id or "\x00" in session_id)
        return await add(session_id, **({} if unstorable else given))


@caught_by("FM-CRE-007")
class AnyTruthCreates(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        return await add(session_id, **{**given, "create": bool(given.get("create"))})


@caught_by("FM-CRE-007")
class ChecksTheOwnerOfNewSessionsOnly(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        if given.get("create") is not True and "\x00" in str(given.get("user_id")):
            given = {}
        return await add(session_id, **given)


@caught_by("FM-CRE-008")
class CreatesInTwoSteps(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        if given.get("create") is True and str(session_id).startswith("s ") and await self.is_missing(session_id):
            await self.create_session(session_id=session_id, user_id=given.get("user_id", ""))
            await asyncio.sleep(0)
        return await add(session_id, **given)


@caught_by("FM-CRE-008")
class CreatesForOneMessageInTwoSteps(Sound):
    async def add_message(self, session_id: Any, *args: Any, create: Any = False, **given: Any) -> Any:
        if create is True and await super().get_session(session_id) is None:
            with suppress(ConflictError):
                await super().create_session(session_id=session_id, user_id=given.get("user_id", ""))
            await asyncio.sleep(0)
        return await super().add_message(session_id, *args, create=create, **given)


@caught_by("FM-CRE-008")
class CreatesWithTheFirstMessage(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        batch: Any = messages if isinstance(messages, str | bytes | dict) else list(messages)
        if not given.get("create") or len(batch) < 2:
            return await super().add_messages(session_id, batch, **given)
        made = await super().add_messages(session_id, batch[:1], **given)
        await asyncio.sleep(0)
        return made + await super().add_messages(session_id, batch[1:], **given)


@caught_by("FM-CRE-009")
class RetriedCreationsConflict(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        if given.get("create") is True and given.get("message_id") and not await self.is_missing(session_id):
            raise ConflictError(f"session {session_id!r} exists")
        return await add(session_id, **given)


@caught_by("FM-CRE-009")
class KnowsWhatItHasCreated(_BothAdds):
    """Creates a session once, and adds to it from then on."""

    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        known = self.__dict__.setdefault("created", set())
        options = given if session_id not in known else {**given, "create": False}
        made = await add(session_id, **options)
        known.update([session_id] if made and given.get("create") is True else [])
        return made


@caught_by("FM-CRE-010")
class CreatedIdsAreStripped(_BothAdds):
    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        if given.get("create") is True and isinstance(session_id, str) and session_id.strip():
            session_id = session_id.strip()
        return await add(session_id, **given)


@caught_by("FM-CRE-010")
class CreatesWithAPage(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        cut = messages[:PAGE] if given.get("create") is True and isinstance(messages, list) else messages
        return await super().add_messages(session_id, cut, **given)


@caught_by("FM-CRE-011")
class AddsToWhatItHasFound(_BothAdds):
    """Creates the session only if it was missing a moment ago."""

    async def added(self, add: Any, session_id: Any, given: dict[str, Any]) -> Any:
        if given.get("create") is True and not await self.is_missing(session_id):
            await asyncio.sleep(0)
            given = {**given, "create": False}
        return await add(session_id, **given)
