"""The reference model's handle: each method in the plainest code that keeps its promises."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Self

from flux_memory import (
    MAX_USER_ID_LENGTH,
    ConflictError,
    FluxMemoryError,
    MemoryClosedError,
    Message,
    Metadata,
    NewMessage,
    Session,
    SessionNotFoundError,
)
from flux_memory.testkit.reference import arguments, values
from flux_memory.testkit.reference.store import ReferenceStore, Sessions

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid6 import uuid7


class ReferenceMemory:
    """A `Memory` in code that is plain enough to be correct by inspection."""

    def __init__(self, store: ReferenceStore) -> None:
        self._store = store
        self._closed = False
        self._used = False

    def __del__(self) -> None:
        if self._used and not self._closed:
            warnings.warn("a reference memory was never closed", ResourceWarning, stacklevel=1)

    async def create_session(
        self,
        title: str = "",
        metadata: Metadata | None = None,
        *,
        session_id: str | None = None,
        user_id: str = "",
    ) -> str:
        """See `Memory`."""
        self._check_open()
        made: dict[str, Any] = {
            "id": new_id() if session_id is None else arguments.identifier("session_id", session_id),
            "user_id": arguments.identifier("user_id", user_id, shortest=0, longest=MAX_USER_ID_LENGTH),
            "title": arguments.text("title", title),
            "created_at": self._now(),
            "metadata": arguments.metadata("metadata", metadata),
            "messages": [],
        }
        with self._store.writing() as sessions:
            if made["id"] in sessions:
                raise ConflictError(f"session {made['id']!r} exists")
            sessions[made["id"]] = made | {"updated_at": made["created_at"]}
        return str(made["id"])

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
        self._check_open()
        return self._append(session_id, [arguments.draft(role, content, metadata, message_id)])[0]

    async def add_messages(self, session_id: str, messages: Iterable[NewMessage]) -> list[str]:
        """See `Memory`."""
        self._check_open()
        return self._append(session_id, arguments.drafts(messages))

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[Message]:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        most = None if limit is None else arguments.count("limit", limit)
        cursor = None if before is None else arguments.plain_text("before", before)
        with self._store.reading() as sessions:
            history = sessions[key]["messages"] if key in sessions else []
            if cursor is not None:
                ids = [message["id"] for message in history]
                history = history[: ids.index(cursor)] if cursor in ids else []
            return list(map(message_record, history if most is None else history[max(len(history) - most, 0) :]))

    async def get_sessions(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        user_id: str | None = None,
        metadata: Metadata | None = None,
    ) -> list[Session]:
        """See `Memory`."""
        self._check_open()
        most = None if limit is None else arguments.count("limit", limit)
        start = arguments.count("offset", offset)
        user = None if user_id is None else arguments.plain_text("user_id", user_id)
        part = arguments.metadata_filter("metadata", metadata)
        with self._store.reading() as sessions:
            rows = [
                session_record(state)
                for state in sessions.values()
                if user in {None, state["user_id"]} and values.contains(state["metadata"], part)
            ]
        rows.sort(key=lambda row: (row["updated_at"], row["id"].encode()), reverse=True)
        return rows[start:] if most is None else rows[start : start + most]

    async def get_session(self, session_id: str) -> Session | None:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        with self._store.reading() as sessions:
            return session_record(sessions[key]) if key in sessions else None

    async def count_sessions(self) -> int:
        """See `Memory`."""
        self._check_open()
        with self._store.reading() as sessions:
            return len(sessions)

    async def update_session_title(self, session_id: str, title: str) -> None:
        """See `Memory`."""
        self._check_open()
        key, new_title = arguments.plain_text("session_id", session_id), arguments.text("title", title)
        with self._store.writing() as sessions:
            state = existing(sessions, key)
            state["title"], state["updated_at"] = new_title, max(self._now(), state["updated_at"])

    async def delete_session(self, session_id: str) -> None:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        with self._store.writing() as sessions:
            sessions.pop(key, None)

    async def clear_all(self) -> None:
        """See `Memory`."""
        self._check_open()
        with self._store.writing() as sessions:
            sessions.clear()

    async def close(self) -> None:
        """See `Memory`."""
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        self._used = True
        if self._closed:
            raise MemoryClosedError("this memory is closed")

    def _now(self) -> str:
        """Return the current time in the format of records."""
        return datetime.now(UTC).isoformat(timespec="microseconds")

    def _append(self, session_id: object, batch: list[arguments.Draft]) -> list[str]:
        key = arguments.plain_text("session_id", session_id)
        refuse_contradictions(batch)
        with self._store.writing() as sessions:
            state = existing(sessions, key)
            known: dict[str, dict[str, Any]] = {message["id"]: message for message in state["messages"]}
            moment = max(self._now(), state["updated_at"])
            added: list[dict[str, Any]] = []
            ids: list[str] = []
            for one in batch:
                message = one._asdict() | {"id": one.id or new_id(), "created_at": moment}
                ids.append(message["id"])
                stored = known.setdefault(message["id"], message)
                if stored is message:
                    added.append(message)
                elif not same_content(stored, message):
                    raise ConflictError(f"message {message['id']!r} has different content")
            if added:
                state["messages"] += added
                state["updated_at"] = moment
        return ids


def new_id() -> str:
    """Return a new id."""
    return str(uuid7())


def existing(sessions: Sessions, session_id: str) -> dict[str, Any]:
    """Return a session, which has to exist."""
    if session_id not in sessions:
        raise SessionNotFoundError(f"there is no session {session_id!r:.60}")
    return sessions[session_id]


def refuse_contradictions(batch: list[arguments.Draft]) -> None:
    """Reject a batch that has one id twice with different contents."""
    first: dict[str, arguments.Draft] = {}
    for one in batch:
        if one.id is not None and not same_content(first.setdefault(one.id, one)._asdict(), one._asdict()):
            raise ConflictError(f"the batch has message {one.id!r} twice, with different contents")


def session_record(state: dict[str, Any]) -> Session:
    """Return a session as callers see it."""
    return {
        "id": state["id"],
        "user_id": state["user_id"],
        "title": state["title"],
        "created_at": state["created_at"],
        "updated_at": state["updated_at"],
        "metadata": copy.deepcopy(state["metadata"]),
        "message_count": len(state["messages"]),
    }


def message_record(stored: dict[str, Any]) -> Message:
    """Return a message as callers see it."""
    if not isinstance(stored["metadata"], dict):
        raise FluxMemoryError(f"message {stored['id']!r} is damaged: its metadata is not an object")
    return {
        "id": stored["id"],
        "role": stored["role"],
        "content": stored["content"],
        "metadata": copy.deepcopy(stored["metadata"]),
        "created_at": stored["created_at"],
    }


def same_content(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether adding one message over the other is a retry."""
    return (one["role"], one["content"]) == (other["role"], other["content"]) and values.equal(
        one["metadata"], other["metadata"]
    )
