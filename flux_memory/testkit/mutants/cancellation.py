"""Memories that break clauses on single cancelled calls."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of `Memory`

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, ClassVar, Final

from flux_memory import (
    BackendUnavailableError,
)
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import LOCK_SECONDS
from flux_memory.testkit.reference import ReferenceMemory

LATE_SECONDS: Final = 0.1
"""When a message of a cancelled call arrives: after its handle is closed, and before the clause looks."""


class _LeaksALock(Sound):
    """Locks the whole store, and releases the lock only if the call is not interrupted."""

    taken: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.taken = False

    async def locked(self, call: Awaitable[Any]) -> Any:
        kind = type(self)
        for _ in range(500):
            if not kind.taken:
                break
            await asyncio.sleep(LOCK_SECONDS / 500)
        else:
            call.close()  # type: ignore[attr-defined]  # it is a coroutine
            raise BackendUnavailableError("database is locked")
        kind.taken = True
        await asyncio.sleep(0)
        try:
            result = await call
        except Exception:
            kind.taken = False
            raise
        kind.taken = False
        return result


@caught_by("FM-CAN-001")
class AddLeaksALock(_LeaksALock):
    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        return await self.locked(super().add_message(*args, **kwargs))


@caught_by("FM-CAN-002")
class BatchHalfApplied(Sound):
    async def add_messages(self, session_id: Any, messages: Any, **given: Any) -> Any:
        listed = list(messages)
        made = await super().add_messages(session_id, listed[:1], **given)
        await asyncio.sleep(0)
        return made + await super().add_messages(session_id, listed[1:], **given)


@caught_by("FM-CAN-003")
class CreatesThenFillsIn(Sound):
    async def create_session(self, title: Any = "", metadata: Any = None, **kwargs: Any) -> Any:
        session = await super().create_session("", metadata, **kwargs)
        await asyncio.sleep(0)
        await super().update_session_title(session, title)
        return session


@caught_by("FM-CAN-004", reference_only=True)
class DeletesMessagesFirst(Sound):
    async def delete_session(self, session_id: Any, **given: Any) -> None:
        with self._store.writing() as sessions:
            if session_id in sessions:
                sessions[session_id]["messages"].clear()
        await asyncio.sleep(0)
        await super().delete_session(session_id, **given)


@caught_by("FM-CAN-005")
class ClearsTheTitleFirst(Sound):
    async def update_session_title(self, session_id: Any, title: Any) -> None:
        await super().update_session_title(session_id, "")
        await asyncio.sleep(0)
        await super().update_session_title(session_id, title)


@caught_by("FM-CAN-006")
class AnswersTheCallBefore(Sound):
    """Reads answers from one queue: after a cancelled call, each caller gets the previous call's answer."""

    def _answers(self) -> Any:
        return self.__dict__.setdefault("answers", [])

    async def get_session(self, session_id: Any) -> Any:
        return await self._queued(super().get_session(session_id))

    async def count_sessions(self, **given: Any) -> Any:
        return await self._queued(super().count_sessions(**given))

    async def _queued(self, call: Awaitable[Any]) -> Any:
        self._answers().append(await call)
        await asyncio.sleep(0)
        return self._answers().pop(0)


@caught_by("FM-CAN-007")
class ClearsOneByOne(Sound):
    async def clear_all(self) -> None:
        for row in await super().get_sessions(None):
            await super().delete_session(row["id"])
            await asyncio.sleep(0)


@caught_by("FM-CAN-007")
class ClearsMessagesFirst(Sound):
    async def clear_all(self) -> None:
        for row in await super().get_sessions(None):
            await super().delete_session(row["id"])
            await super().create_session(row["title"], session_id=row["id"])
            await asyncio.sleep(0)
        await super().clear_all()


@caught_by("FM-CAN-020", reference_only=True)
class SendsAfterItsClose(Sound):
    """Leaves the message of a cancelled add to a task that `close()` does not wait for."""

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.__dict__["late"] = asyncio.ensure_future(self._send(*args))
            raise
        return await super().add_message(*args, **kwargs)

    async def _send(self, *args: Any) -> None:
        await asyncio.sleep(LATE_SECONDS)
        later = ReferenceMemory(self._store)
        await later.add_message(*args)
        await later.close()


@caught_by("FM-CAN-009")
class CancelsItsNeighbours(Sound):
    """Runs concurrent adds in one task, which every caller awaits and can therefore cancel."""

    gathered: asyncio.Task[None] | None = None

    async def add_message(self, *args: Any, **kwargs: Any) -> Any:
        queue = self.__dict__.setdefault("queue", [])
        answer: dict[str, Any] = {}
        queue.append((args, kwargs, answer))
        if self.gathered is None:
            self.gathered = asyncio.ensure_future(self._flush(queue))
        await self.gathered
        return answer["id"]

    async def _flush(self, queue: list[Any]) -> None:
        try:
            await asyncio.sleep(0)
            while queue:
                args, kwargs, answer = queue.pop(0)
                answer["id"] = await super().add_message(*args, **kwargs)
                await asyncio.sleep(0)
        finally:
            self.gathered = None
            queue.clear()


@caught_by("FM-CAN-010")
class ForgetsTheIdWhenCancelled(Sound):
    async def add_message(self, session_id: Any, role: Any, content: Any, metadata: Any = None, **kwargs: Any) -> Any:
        try:
            await asyncio.sleep(0)
            return await super().add_message(session_id, role, content, metadata, **kwargs)
        except asyncio.CancelledError:
            await super().add_message(session_id, role, content, metadata)
            raise
