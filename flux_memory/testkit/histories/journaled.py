"""A memory that keeps a journal of the calls made on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Self
from uuid import uuid4

from flux_memory import Feedback, FluxMemoryError, Memory, Message, Metadata, NewMessage, OutcomeUnknownError, Session
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

    @property
    def feedback(self) -> Feedback:
        """See `Memory`; calls on feedback are not recorded."""
        return self._memory.feedback

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
        create: bool = False,
        user_id: str = "",
    ) -> str:
        """See `Memory`."""
        sent = Sent(message_id or str(uuid4()), role, content, plain_json(metadata or {}))
        creates = _of_creation(create, user_id)
        given = _given(create=create, user_id=user_id)
        async with self._recorded("add_message", session_id, messages=(sent,), **creates):
            return await self._memory.add_message(session_id, role, content, metadata, message_id=sent.id, **given)

    async def add_messages(
        self, session_id: str, messages: Iterable[NewMessage], *, create: bool = False, user_id: str = ""
    ) -> list[str]:
        """See `Memory`."""
        batch = _with_ids(messages)
        # An empty batch creates nothing.
        creates = _of_creation(create and bool(batch), user_id)
        async with self._recorded("add_messages", session_id, messages=_sent(batch), **creates):
            return await self._memory.add_messages(session_id, batch, **_given(create=create, user_id=user_id))

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None, after: str | None = None
    ) -> list[Message]:
        """See `Memory`."""
        if limit is not None or before is not None or after is not None:
            return await self._memory.get_history(session_id, limit, **_given(before=before, after=after))
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
        before: Session | None = None,
        with_metadata: bool = True,
    ) -> list[Session]:
        """See `Memory`."""
        given: dict[str, Any] = _given(before=before) | ({} if with_metadata else {"with_metadata": False})
        return await self._memory.get_sessions(limit, offset, user_id=user_id, metadata=metadata, **given)

    async def get_session(self, session_id: str) -> Session | None:
        """See `Memory`."""
        return await self._memory.get_session(session_id)

    async def count_sessions(self, *, user_id: str | None = None, metadata: Metadata | None = None) -> int:
        """See `Memory`."""
        return await self._memory.count_sessions(**_given(user_id=user_id, metadata=metadata))

    async def update_session_title(self, session_id: str, title: str) -> None:
        """See `Memory`."""
        async with self._recorded("update_session_title", session_id, fields={"title": title}):
            await self._memory.update_session_title(session_id, title)

    async def get_message(self, session_id: str, message_id: str) -> Message | None:
        """See `Memory`."""
        return await self._memory.get_message(session_id, message_id)

    async def pop_message(self, session_id: str) -> Message | None:
        """See `Memory`."""
        async with self._recorded("pop_message", session_id) as ended:
            popped = await self._memory.pop_message(session_id)
            ended["popped"] = popped and popped["id"]
            return popped

    async def update_session(
        self,
        session_id: str,
        *,
        expected_revision: str | None = None,
        title: str | None = None,
        merge_metadata: Metadata | None = None,
        remove_metadata: Iterable[str] = (),
        truncate_from: str | None = None,
        truncate_all: bool = False,
        messages: Iterable[NewMessage] = (),
    ) -> Session:
        """See `Memory`."""
        batch, keys = _with_ids(messages), tuple(remove_metadata)
        sent = {
            "messages": _sent(batch),
            "fields": None if title is None else {"title": title},
            "expected_revision": expected_revision,
            "truncate_from": truncate_from,
            "truncate_all": truncate_all,
            "merged": None if merge_metadata is None else plain_json(merge_metadata),
            "removed_keys": keys,
        }
        given = _given(title=title, merge_metadata=merge_metadata, truncate_from=truncate_from) | {
            name: value
            for name, value in {"remove_metadata": keys, "truncate_all": truncate_all, "messages": batch}.items()
            if value
        }
        async with self._recorded("update_session", session_id, **sent) as ended:
            session = await self._memory.update_session(session_id, expected_revision=expected_revision, **given)
            ended["revision"] = session["revision"]
            return session

    async def fork_session(
        self,
        session_id: str,
        *,
        through: str | None = None,
        new_session_id: str | None = None,
        user_id: str | None = None,
        title: str | None = None,
    ) -> str:
        """See `Memory`."""
        made = new_session_id or str(uuid4())
        fields = _given(user_id=user_id, title=title)
        async with self._recorded("fork_session", made, source=session_id, through=through, fields=fields):
            return await self._memory.fork_session(session_id, through=through, new_session_id=made, **fields)

    async def delete_session(self, session_id: str, *, expected_revision: str | None = None) -> None:
        """See `Memory`."""
        async with self._recorded("delete_session", session_id, expected_revision=expected_revision):
            await self._memory.delete_session(session_id, **_given(expected_revision=expected_revision))

    async def delete_sessions(self, *, user_id: str | None = None, inactive_since: datetime | None = None) -> int:
        """See `Memory`."""
        fields = {"user_id": user_id} if inactive_since is None else {}
        async with self._recorded("delete_sessions", None, fields=fields):
            return await self._memory.delete_sessions(user_id=user_id, inactive_since=inactive_since)

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


def _given(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that have a value: a memory may lack the others."""
    return {name: value for name, value in arguments.items() if value is not None and value not in (False, "")}


def _of_creation(create: bool, user_id: str) -> dict[str, Any]:
    return {"creates": True, "fields": {"title": "", "metadata": {}, "user_id": user_id}} if create else {}


def _with_ids(messages: Iterable[NewMessage]) -> list[NewMessage]:
    return [{**message, "message_id": message.get("message_id") or str(uuid4())} for message in messages]


def _sent(batch: list[NewMessage]) -> tuple[Sent, ...]:
    return tuple(
        Sent(str(one.get("message_id")), one["role"], one["content"], plain_json(one.get("metadata") or {}))
        for one in batch
    )
