"""Memories, and clients, that break clauses on pops, forks, deletions and look-ups that are interrupted."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flux_memory import BackendUnavailableError, FluxMemoryError, OutcomeUnknownError, deadline
from flux_memory.backends.deadlines import seconds_for
from flux_memory.testkit.mutants.cancellation import _LeaksALock
from flux_memory.testkit.mutants.catalogue import Client, Sound, caught_by
from flux_memory.testkit.mutants.forks import _ForksInSteps
from flux_memory.testkit.mutants.network import _GivesUp
from flux_memory.testkit.mutants.shared import LONG_SECONDS
from flux_memory.testkit.reference.rows import new_id

if TYPE_CHECKING:
    from flux_memory.testkit.reference.networked import Request


@caught_by("FM-CAN-040")
class PopsLeakALock(_LeaksALock):
    async def pop_message(self, *args: Any) -> Any:
        return await self.locked(super().pop_message(*args))


@caught_by("FM-CAN-040")
class RepeatsCancelledPops(Sound):
    """Takes a cancellation for a lost connection."""

    async def pop_message(self, *args: Any) -> Any:
        popped = await super().pop_message(*args)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await super().pop_message(*args)
            raise
        return popped


@caught_by("FM-CAN-041")
class CancelledForksAreEmpty(_ForksInSteps):
    pass


@caught_by("FM-CAN-041")
class ForksLeakALock(_LeaksALock):
    async def fork_session(self, *args: Any, **kwargs: Any) -> Any:
        return await self.locked(super().fork_session(*args, **kwargs))


@caught_by("FM-CAN-042")
class EmptiesSessionsFirst(Sound):
    async def delete_sessions(self, *, user_id: Any = None, **kwargs: Any) -> Any:
        for row in await super().get_sessions(None, user_id=user_id):
            await super().pop_message(row["id"])
            await asyncio.sleep(0)
        return await super().delete_sessions(user_id=user_id, **kwargs)


@caught_by("FM-CAN-042")
class DeletionsAreCountedOnce(Sound):
    """Leaves a session to the next call if it is slow."""

    async def delete_sessions(self, *, user_id: Any = None, **kwargs: Any) -> Any:
        rows = await super().get_sessions(1, user_id=user_id)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return len(rows)
        return await super().delete_sessions(user_id=user_id, **kwargs)


@caught_by("FM-CAN-043")
class LookUpsAnswerTheCallBefore(Sound):
    async def get_message(self, *args: Any) -> Any:
        answers: list[Any] = self.__dict__.setdefault("answers", [])
        answers.append(await super().get_message(*args))
        await asyncio.sleep(0)
        return answers.pop(0)


class _RefusesLate(Sound):
    """Works, and then fails if the deadline has passed meanwhile."""

    async def late(self, call: Awaitable[Any]) -> Any:
        before, seconds = time.monotonic(), seconds_for(LONG_SECONDS)
        with deadline(LONG_SECONDS):
            found = await call
        await asyncio.sleep(0.001)
        if time.monotonic() - before > seconds:
            raise BackendUnavailableError("not within the deadline; nothing was changed")
        return found


@caught_by("FM-DLN-040")
class RefusedPopsAreDone(_RefusesLate):
    async def pop_message(self, *args: Any) -> Any:
        return await self.late(super().pop_message(*args))


@caught_by("FM-DLN-040")
class RefusedForksAreMade(_RefusesLate):
    async def fork_session(self, *args: Any, **kwargs: Any) -> Any:
        return await self.late(super().fork_session(*args, **kwargs))


class _WaitsForTheStore(Sound):
    """Works in a task that ignores the caller's deadline."""

    async def waited(self, call: Any) -> Any:
        with deadline(LONG_SECONDS):
            work = asyncio.ensure_future(call)
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.__dict__.setdefault("works", []).append(work)
        try:
            async with asyncio.timeout(seconds_for(LONG_SECONDS)):
                return await asyncio.shield(work)
        except TimeoutError:
            raise BackendUnavailableError("not within the deadline; nothing was changed") from None

    async def close(self) -> None:
        with suppress(FluxMemoryError):
            await asyncio.gather(*self.__dict__.get("works", ()))
        await super().close()


@caught_by("FM-DLN-041")
class PopsForCallersThatAreGone(_WaitsForTheStore):
    async def pop_message(self, *args: Any) -> Any:
        return await self.waited(super().pop_message(*args))


@caught_by("FM-DLN-041")
class ForksForCallersThatAreGone(_WaitsForTheStore):
    async def fork_session(self, *args: Any, **kwargs: Any) -> Any:
        return await self.waited(super().fork_session(*args, **kwargs))


@caught_by("FM-DLN-041")
class DeletesForCallersThatAreGone(_WaitsForTheStore):
    async def delete_sessions(self, **kwargs: Any) -> Any:
        return await self.waited(super().delete_sessions(**kwargs))


class _RepeatsAsNew(Client):
    """Sends a call again as if it was another one."""

    repeated = ""

    def _again(self, request: Request) -> Request:
        return request | {"token": new_id()} if request["call"] == self.repeated else request


class _MakesUpReplies(_GivesUp):
    """Returns something for a reply of one method that was lost."""

    method = ""
    reply: Any = None

    def _made_of(self, request: Request, error: Exception) -> Any:
        return self.reply if request["call"] == self.method else super()._made_of(request, error)


@caught_by("FM-NET-040")
class RepeatsPops(_RepeatsAsNew):
    repeated = "pop_message"


@caught_by("FM-NET-040")
class LostPopsFoundNothing(_MakesUpReplies):
    method = "pop_message"


@caught_by("FM-NET-040")
class LostPopsAreRefused(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        raise BackendUnavailableError("the connection was lost; nothing was changed")


@caught_by("FM-NET-041")
class OwnForksConflict(_RepeatsAsNew):
    repeated = "fork_session"


@caught_by("FM-NET-041")
class LostForksAreAcknowledged(_MakesUpReplies):
    method, reply = "fork_session", "made"


@caught_by("FM-NET-041")
class ForksAreSentInParts(Client):
    async def fork_session(self, session_id: Any, *, new_session_id: Any = None, **given: Any) -> Any:
        del given
        made = await self.create_session(session_id=new_session_id)
        for row in await self.get_history(session_id):
            await self.add_message(made, row["role"], row["content"], message_id=row["id"])
        return made


@caught_by("FM-NET-042")
class RepeatedDeletionsCountTheRest(_RepeatsAsNew):
    repeated = "delete_sessions"


@caught_by("FM-NET-042")
class LostBulkDeletionsAreAcknowledged(_MakesUpReplies):
    method, reply = "delete_sessions", 3


@caught_by("FM-NET-042")
class LostBulkDeletionsAreRefused(_GivesUp):
    def _made_of(self, request: Request, error: Exception) -> Any:
        if request["call"] != "delete_sessions":
            raise OutcomeUnknownError("the connection was lost; the call may have taken effect")
        raise BackendUnavailableError("the connection was lost; nothing was removed")


@caught_by("FM-NET-043")
class LostMessagesAreNone(_MakesUpReplies):
    method = "get_message"


@caught_by("FM-NET-043")
class LostPagesAreTheEnd(_MakesUpReplies):
    method, reply = "get_history", ()

    async def get_history(self, *args: Any, **given: Any) -> Any:
        return list(await super().get_history(*args, **given))


@caught_by("FM-NET-043")
class LostCountsOfUsersAreZero(_MakesUpReplies):
    method, reply = "count_sessions", 0
