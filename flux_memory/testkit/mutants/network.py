"""Memories that break clauses on a network: clients of the networked reference model."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from flux_memory import BackendUnavailableError, ConflictError, FluxMemoryError, OutcomeUnknownError
from flux_memory.testkit.mutants.catalogue import Client, caught_by
from flux_memory.testkit.reference import ReferenceMemory
from flux_memory.testkit.reference.networked import LOCK_SECONDS
from flux_memory.testkit.reference.rows import new_id

if TYPE_CHECKING:
    from flux_memory.testkit.reference.networked import Request
    from flux_memory.testkit.reference.wire import Wire


@caught_by("FM-NET-001")
class KeepsItsDataAtHome(Client):
    async def call(self, method: str, *args: Any, **given: Any) -> Any:
        return await getattr(ReferenceMemory, method)(self, *args, **given)


@caught_by("FM-NET-001")
class RefusedConnectionsAreUnknown(Client):
    def _late(self, request: Request, sent: list[Wire]) -> FluxMemoryError:
        del request, sent
        return OutcomeUnknownError("no reply within the deadline")


@caught_by("FM-NET-002")
class RetriesBlindly(Client):
    def _again(self, request: Request) -> Request:
        return request | {"token": new_id()}


class _GivesUp(Client):
    """Makes something of a lost reply instead of a retry."""

    async def _use(self, wire: Wire, request: Request) -> Any:
        try:
            return await super()._use(wire, request)
        except FluxMemoryError:
            raise
        except (OSError, EOFError) as error:
            return self._made_of(request, error)

    def _made_of(self, request: Request, error: Exception) -> Any:
        del request
        raise error


@caught_by("FM-NET-002")
class LostRepliesAreAcknowledged(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        return new_id() if request["call"] == "add_message" else super()._made_of(request, error)


@caught_by("FM-NET-002")
class LostRepliesAreRefusals(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        raise BackendUnavailableError("the connection was lost; nothing was stored")


@caught_by("FM-NET-003")
class BatchesAreSentOneByOne(Client):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        return [await self.add_message(session_id, one["role"], one["content"]) for one in messages]


@caught_by("FM-NET-003")
class LargeBatchesAreSentInParts(Client):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        batch = list(messages)
        parts = [batch[at : at + 500] for at in range(0, len(batch), 500)]
        return [made for part in parts for made in await self.call("add_messages", session_id, part)]


@caught_by("FM-NET-003")
class HalfABatchIsUnknown(_GivesUp):
    """Commits what was sent before the connection was lost."""

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        return [await self.add_message(session_id, one["role"], one["content"]) for one in messages]

    def _made_of(self, request: Request, error: Exception) -> Any:
        raise OutcomeUnknownError("the connection was lost; the batch may be stored")


@caught_by("FM-NET-004")
class RetriesForgetTheirIds(Client):
    def _again(self, request: Request) -> Request:
        given = {name: value for name, value in request["given"].items() if name != "message_id"}
        return request | {"given": given, "token": new_id()}


@caught_by("FM-NET-004")
class RepeatedAddsConflict(_GivesUp):
    async def add_message(self, session_id: Any, role: Any, content: Any, metadata: Any = None, **given: Any) -> Any:
        tried: set[Any] = self.__dict__.setdefault("tried", set())
        if given.get("message_id") in tried:
            raise ConflictError("the session has this message")
        tried.add(given.get("message_id"))
        return await super().add_message(session_id, role, content, metadata, **given)

    def _made_of(self, request: Request, error: Exception) -> Any:
        raise OutcomeUnknownError("the connection was lost; the call may have taken effect")


@caught_by("FM-NET-005")
class OwnCreationsConflict(Client):
    def _again(self, request: Request) -> Request:
        return request | {"token": new_id()} if request["call"] == "create_session" else request


@caught_by("FM-NET-005")
class LostTitlesAreAcknowledged(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        return None if request["call"] == "update_session_title" else super()._made_of(request, error)


@caught_by("FM-NET-005")
class LostDeletionsAreAcknowledged(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        return None if request["call"] == "delete_session" else super()._made_of(request, error)


@caught_by("FM-NET-005")
class LostClearingsAreAcknowledged(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        return None if request["call"] == "clear_all" else super()._made_of(request, error)


@caught_by("FM-NET-006")
class LostHistoriesAreEmpty(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        return [] if request["call"] == "get_history" else super()._made_of(request, error)


@caught_by("FM-NET-006")
class LostRecordsAreNone(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        return None if request["call"] == "get_session" else super()._made_of(request, error)


@caught_by("FM-NET-005")
class UnansweredClearingsAreRefused(Client):
    def _late(self, request: Request, sent: list[Wire]) -> FluxMemoryError:
        if request["call"] != "clear_all":
            return super()._late(request, sent)
        return BackendUnavailableError("no reply within the deadline; nothing was removed")


@caught_by("FM-NET-006")
class LostCountsAreZero(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        return 0 if request["call"] == "count_sessions" else super()._made_of(request, error)


@caught_by("FM-NET-006")
class TheEndOfAReplyIsItsLastRow(Client):
    async def _read(self, wire: Wire, rows: list[Any]) -> Any:
        try:
            return await super()._read(wire, rows)
        except (OSError, EOFError):
            if not rows:
                raise
            return {"count": len(rows)}


@caught_by("FM-NET-007")
class TrustsIdleConnections(_GivesUp):
    async def _take(self) -> Wire:
        return self._idle.pop() if self._idle else await super()._take()

    def _made_of(self, request: Request, error: Exception) -> Any:
        raise OutcomeUnknownError("the connection was lost; the call may have taken effect")


@caught_by("FM-NET-007")
class ChecksOneIdleConnection(_GivesUp):
    """Replaces the first lost connection that it finds, and trusts the others."""

    async def _take(self) -> Wire:
        if self._idle and self._idle[0].lost:
            self._idle.pop(0).drop()
        return self._idle.pop() if self._idle else await super()._take()

    def _made_of(self, request: Request, error: Exception) -> Any:
        raise OutcomeUnknownError("the connection was lost; the call may have taken effect")


@caught_by("FM-NET-008")
class GivesUpOnceRefused(Client):
    refused = False

    async def _take(self) -> Wire:
        if self.refused:
            raise BackendUnavailableError("the server is down")
        try:
            return await super()._take()
        except OSError:
            self.refused = True
            raise


@caught_by("FM-NET-009")
class LateRepliesGoToTheNextCall(Client):
    def _interrupted(self, wire: Wire) -> None:
        self._idle.append(wire)


class Chatty(Client):
    """Makes some calls in several exchanges on one connection, whose settings it changes before and after."""

    methods: tuple[str, ...] = ("add_messages",)
    setting = "transaction"
    within: object = True
    after: object = False
    lock_seconds = LOCK_SECONDS

    async def _exchange(self, wire: Wire, request: Request) -> Any:
        if request["call"] not in self.methods:
            return await super()._exchange(wire, request)
        await self._set(wire, self.within)
        found = await super()._exchange(wire, request)
        await self._set(wire, self.after)
        return found

    async def _set(self, wire: Wire, value: object) -> None:
        given = {self.setting: value, "lock_seconds": self.lock_seconds}
        await super()._exchange(wire, {"call": "set", "args": [], "given": given})


class _LeavesItBehind(Chatty):
    """Waits for the reply of a call that was given up, and uses the connection again."""

    def _interrupted(self, wire: Wire) -> None:
        tasks: set[Any] = self.__dict__.setdefault("tasks", set())
        task = asyncio.ensure_future(self._drain(wire))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _drain(self, wire: Wire) -> None:
        try:
            while "row" in await self._read(wire, []):
                pass
        except (OSError, EOFError):
            wire.drop()
        else:
            self._idle.append(wire)

    async def close(self) -> None:
        for task in self.__dict__.get("tasks", ()):
            task.cancel()
        await super().close()


@caught_by("FM-NET-010")
class LeavesATransactionOpen(_LeavesItBehind):
    pass


@caught_by("FM-NET-010")
class LeavesATimeZone(_LeavesItBehind):
    methods, setting, within, after = ("add_messages", "update_session_title"), "hours", 9, 0


@caught_by("FM-NET-010")
class LeavesAConnectionReadOnly(_LeavesItBehind):
    methods, setting = ("get_history", "get_sessions"), "read_only"


@caught_by("FM-NET-011")
class LockTimeoutsAreAcknowledged(Chatty):
    lock_seconds = 1.0

    async def _exchange(self, wire: Wire, request: Request) -> Any:
        try:
            return await super()._exchange(wire, request)
        except BackendUnavailableError:
            await self._set(wire, self.after)
            return [new_id() for _ in request["args"][1]]


@caught_by("FM-NET-012")
class ReadersSeeHalfABatch(Client):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        batch = list(messages)
        first = await self.call("add_messages", session_id, batch[: len(batch) // 2])
        return first + await self.call("add_messages", session_id, batch[len(batch) // 2 :])


@caught_by("FM-NET-012")
class ReadersSeeAnotherCounter(Client):
    """Counts the messages of a batch in an exchange of its own."""

    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        made = await self.call("add_messages", session_id, list(messages))
        self.__dict__.setdefault("counted", set()).add(session_id)
        return made

    async def get_session(self, session_id: Any) -> Any:
        found = await self.call("get_session", session_id)
        counted = session_id in self.__dict__.get("counted", ())
        return found if counted or not found else found | {"message_count": min(found["message_count"], 1)}
