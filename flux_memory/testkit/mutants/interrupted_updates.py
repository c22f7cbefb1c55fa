"""Memories that break clauses on updates, and adds that create, whose caller gives up or whose network breaks."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from flux_memory import BackendUnavailableError, ConflictError
from flux_memory.testkit.mutants.cancellation import _LeaksALock
from flux_memory.testkit.mutants.catalogue import Client, Sound, caught_by
from flux_memory.testkit.mutants.network import _GivesUp
from flux_memory.testkit.mutants.shared import _WorksInATask
from flux_memory.testkit.mutants.updates import divide
from flux_memory.testkit.reference.rows import new_id

if TYPE_CHECKING:
    from flux_memory.testkit.reference.networked import Request


@caught_by("FM-CAN-030")
class AnUpdateLeaksALock(_LeaksALock):
    async def update_session(self, *args: Any, **given: Any) -> Any:
        return await self.locked(super().update_session(*args, **given))


@caught_by("FM-CAN-030")
class CancelledUpdatesAreHalf(Sound):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await super().update_session(session_id, **divide(given)[0])
            raise
        return await super().update_session(session_id, **given)


@caught_by("FM-CAN-031")
class CancelledCreationsAreEmpty(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await super().create_session(session_id=session_id)
            raise
        return await super().add_messages(session_id, messages, **given)


@caught_by("FM-CAN-031")
class ACreationLeaksALock(_LeaksALock):
    async def add_messages(self, *args: Any, **given: Any) -> Any:
        return await self.locked(super().add_messages(*args, **given))

    async def add_message(self, *args: Any, **given: Any) -> Any:
        return await self.locked(super().add_message(*args, **given))


@caught_by("FM-CON-030")
class ARefusedUpdateLeavesItsLock(Sound):
    locked: ClassVar[dict[str, Any]] = {}

    async def update_session(self, session_id: Any, **given: Any) -> Any:
        try:
            return await super().update_session(session_id, **given)
        except ConflictError:
            self.locked["holder"] = self
            raise

    async def add_message(self, *args: Any, **given: Any) -> Any:
        if self.locked.get("holder", self) is not self:
            raise BackendUnavailableError("the store stayed locked; nothing was stored")
        return await super().add_message(*args, **given)


@caught_by("FM-CON-030")
class ACancelledUpdateLeavesItsTransaction(Sound):
    """From then on, this handle reads its own snapshot."""

    async def update_session(self, *args: Any, **given: Any) -> Any:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.__dict__.setdefault("snapshot", {})
            raise
        return await super().update_session(*args, **given)

    async def get_history(self, session_id: Any, *args: Any, **given: Any) -> Any:
        found = await super().get_history(session_id, *args, **given)
        if "snapshot" not in self.__dict__:
            return found
        return self.__dict__["snapshot"].setdefault((session_id, args, tuple(given)), found)

    async def get_session(self, session_id: Any) -> Any:
        found = await super().get_session(session_id)
        return self.__dict__["snapshot"].setdefault(session_id, found) if "snapshot" in self.__dict__ else found

    async def add_message(self, session_id: Any, *args: Any, **given: Any) -> Any:
        if "snapshot" in self.__dict__:
            await self.get_history(session_id)
        return await super().add_message(session_id, *args, **given)


@caught_by("FM-DLN-030")
class MakesTheUpdatesItRefused(_WorksInATask):
    after_seconds = 0.003

    async def update_session(self, *args: Any, **given: Any) -> Any:
        return await self.in_a_task(super().update_session(*args, **given))


@caught_by("FM-DLN-030")
class CreatesWhatItRefused(_WorksInATask):
    after_seconds = 0.003

    async def add_message(self, *args: Any, **given: Any) -> Any:
        return await self.in_a_task(super().add_message(*args, **given))


@caught_by("FM-DLN-031")
class MakesUpdatesAfterTheOutage(_WorksInATask):
    async def update_session(self, *args: Any, **given: Any) -> Any:
        return await self.in_a_task(super().update_session(*args, **given))


@caught_by("FM-DLN-031")
class CreatesAfterTheOutage(_WorksInATask):
    async def add_message(self, *args: Any, **given: Any) -> Any:
        return await self.in_a_task(super().add_message(*args, **given))


@caught_by("FM-NET-030")
class UpdatesConflictWithThemselves(Client):
    def _again(self, request: Request) -> Request:
        return request | {"token": new_id()} if request["call"] == "update_session" else request


@caught_by("FM-NET-030")
class LostUpdatesAreAcknowledged(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        return {} if request["call"] == "update_session" else super()._made_of(request, error)


@caught_by("FM-NET-030")
class LostUpdatesAreRefused(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        if request["call"] == "update_session":
            raise BackendUnavailableError("the connection was lost; nothing was changed")
        raise error


@caught_by("FM-NET-030")
class SendsAnUpdateInParts(Client):
    async def update_session(self, session_id: Any, **given: Any) -> Any:
        own, messages = divide(given)
        made = await self.call("update_session", session_id, **own)
        return await self.call("update_session", session_id, **messages) if messages else made


@caught_by("FM-NET-031")
class LostCreationsAreAcknowledged(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        return [] if request["call"] == "add_messages" else super()._made_of(request, error)


@caught_by("FM-NET-031")
class SendsACreationFirst(Client):
    async def add_messages(self, session_id: Any, messages: Any, *, create: bool = False, user_id: str = "") -> Any:
        try:
            if create:
                await self.call("create_session", session_id=session_id, user_id=user_id)
        except ConflictError:
            pass
        return await self.call("add_messages", session_id, messages)
