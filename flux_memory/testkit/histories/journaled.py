"""A memory that keeps a journal of the calls made on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, Self
from uuid import uuid4

from flux_memory import FluxMemoryError, Memory, Message, Metadata, NewMessage, OutcomeUnknownError, Session
from flux_memory.testkit.histories.journal import Journal, Operation, Sent
from flux_memory.testkit.reference.values import plain_json

UNKNOWN: Final[tuple[type[BaseException], ...]] = (asyncio.CancelledError, OutcomeUnknownError)
"""Errors after which a write may or may not be stored. A plain `BackendUnavailableError` means that it is not."""


class Recorder:
    """A `Memory` that records its writes and its reads of complete histories.

    The recorder generates missing ids of messages and sessions, to recognise what a call sent that never returned.
    Arguments must be valid.

    Args:
        memory: The memory to call.
        journal: The journal to write to; recorders of one process may share it.
        worker: The name of the caller, for reports.
        unknown: Errors after which a write may or may not be stored; after any other library error it must not be.
            Add `BackendUnavailableError` for a backend that cannot distinguish the two.
    """

    def __init__(
        self,
        memory: Memory,
        journal: Journal,
        worker: str,
        *,
        unknown: tuple[type[BaseException], ...] = UNKNOWN,
    ) -> None:
        self._memory = memory
        self._journal = journal
        self._worker = worker
        self._unknown = unknown

    async def create_session(
        self,
        title: str = "",
        metadata: Metadata | None = None,
        *,
        session_id: str | None = None,
        user_id: str = "",
    ) -> str:
        """See `Memory`."""
        made = session_id or str(uuid4())
        fields = {"title": title, "metadata": plain_json(metadata or {}), "user_id": user_id}
        async with self._recorded("create_session", made, fields=fields):
            return await self._memory.create_session(title, metadata, session_id=made, user_id=user_id)

    async def add_message(
        self,
        session_id: str,
        role: str,
        content: str,
        metadata: Metadata | None = None,
        *,
        message_id: str | None = None,
    ) -> str:
        """See `Memory`."""
        sent = Sent(message_id or str(uuid4()), role, content, plain_json(metadata or {}))
        async with self._recorded("add_message", session_id, messages=(sent,)):
            return await self._memory.add_message(session_id, role, content, metadata, message_id=sent.id)

    async def add_messages(self, session_id: str, messages: Iterable[NewMessage]) -> list[str]:
        """See `Memory`."""
        batch: list[NewMessage] = [
            {**message, "message_id": message.get("message_id") or str(uuid4())} for message in messages
        ]
        sent = tuple(
            Sent(str(one.get("message_id")), one["role"], one["content"], plain_json(one.get("metadata") or {}))
            for one in batch
        )
        async with self._recorded("add_messages", session_id, messages=sent):
            return await self._memory.add_messages(session_id, batch)

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[Message]:
        """See `Memory`."""
        if limit is not None or before is not None:
            return await self._memory.get_history(session_id, limit, before=before)
        async with self._recorded("get_history", session_id) as ended:
            history = await self._memory.get_history(session_id)
            ended["seen"] = [message["id"] for message in history]
            return history

    async def get_sessions(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        user_id: str | None = None,
        metadata: Metadata | None = None,
    ) -> list[Session]:
        """See `Memory`."""
        return await self._memory.get_sessions(limit, offset, user_id=user_id, metadata=metadata)

    async def get_session(self, session_id: str) -> Session | None:
        """See `Memory`."""
        return await self._memory.get_session(session_id)

    async def count_sessions(self) -> int:
        """See `Memory`."""
        return await self._memory.count_sessions()

    async def update_session_title(self, session_id: str, title: str) -> None:
        """See `Memory`."""
        async with self._recorded("update_session_title", session_id, fields={"title": title}):
            await self._memory.update_session_title(session_id, title)

    async def delete_session(self, session_id: str) -> None:
        """See `Memory`."""
        async with self._recorded("delete_session", session_id):
            await self._memory.delete_session(session_id)

    async def clear_all(self) -> None:
        """See `Memory`."""
        async with self._recorded("clear_all", None):
            await self._memory.clear_all()

    async def close(self) -> None:
        """See `Memory`."""
        await self._memory.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @asynccontextmanager
    async def _recorded(self, method: str, session: str | None, **sent: Any) -> AsyncIterator[dict[str, Any]]:
        operation = Operation(self._worker, method, session, began=time.monotonic(), **sent)
        number = self._journal.begin(operation)
        ended: dict[str, Any] = {}
        try:
            yield ended
        except BaseException as error:
            ours = isinstance(error, FluxMemoryError | asyncio.CancelledError)
            failed = isinstance(error, FluxMemoryError) and not isinstance(error, self._unknown)
            self._journal.end(number, "failed" if failed else "unknown", error=error, foreign=not ours)
            raise
        self._journal.end(number, "acknowledged", **ended)
