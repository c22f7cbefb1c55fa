"""A `Memory` in a dict, with `flux_memory.records` for all that is not storage."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Self, TypeVar, cast

from flux_memory import MemoryClosedError, Message, Metadata, NewMessage, Session
from flux_memory.records import (
    MessageRow,
    SessionRow,
    build_messages,
    build_session,
    build_sessions,
    check_batch,
    check_count,
    check_filter,
    check_limit,
    check_lookup,
    check_new_message,
    check_new_session,
    check_session_id,
    check_text,
    contains,
    drop_repeats,
    message_id_taken,
    session_id_taken,
    session_not_found,
    utc_now,
)

Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])


@dataclass(slots=True)
class StoredSession:
    """A session and its messages, oldest first."""

    row: SessionRow
    title: str
    created_at: str
    updated_at: str
    messages: dict[str, tuple[MessageRow, str]] = field(default_factory=dict)
    """Each message and its time, by its id."""

    def columns(self) -> tuple[object, ...]:
        """Return the columns that `build_session` takes."""
        times = self.created_at, self.updated_at
        return self.row.id, self.row.user_id, self.title, *times, self.row.metadata, len(self.messages)

    def touch(self) -> str:
        """Return the time of a change, which is never before the last one."""
        self.updated_at = max(self.updated_at, utc_now())
        return self.updated_at


Store = dict[str, StoredSession]


def while_open(method: Method) -> Method:
    """Refuse a call after `close()`."""

    @wraps(method)
    async def checked(self: PlainMemory, *args: Any, **kwargs: Any) -> Any:
        if self._closed:
            raise MemoryClosedError("this memory is closed; open another one")
        return await method(self, *args, **kwargs)

    return cast("Method", checked)


class PlainMemory:
    """A handle on a store in this process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._closed = False

    @while_open
    async def create_session(
        self, title: str = "", metadata: Metadata | None = None, *, session_id: str | None = None, user_id: str = ""
    ) -> str:
        row, now = check_new_session(session_id, user_id, title, metadata), utc_now()
        if row.id in self._store:
            raise session_id_taken(row.id)
        self._store[row.id] = StoredSession(row, row.title, now, now)
        return row.id

    @while_open
    async def add_message(
        self,
        session_id: str,
        role: str,
        content: str,
        metadata: Metadata | None = None,
        *,
        message_id: str | None = None,
    ) -> str:
        return self._add(session_id, [check_new_message(role, content, metadata, message_id)])[0]

    @while_open
    async def add_messages(self, session_id: str, messages: Iterable[NewMessage]) -> list[str]:
        return self._add(session_id, check_batch(messages))

    @while_open
    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[Message]:
        key, most = check_lookup("session_id", session_id), check_limit(limit)
        cursor = None if before is None else check_lookup("before", before)
        session = self._store.get(key)
        if session is None:
            return []
        stored = list(session.messages.values())
        if cursor is not None:
            ids = list(session.messages)
            stored = stored[: ids.index(cursor)] if cursor in ids else []
        rows = [(*row, created_at) for row, created_at in reversed(stored)]
        return build_messages(session.row.id, rows[:most])

    @while_open
    async def get_sessions(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        user_id: str | None = None,
        metadata: Metadata | None = None,
    ) -> list[Session]:
        most, start = check_limit(limit), check_count("offset", offset)
        user = None if user_id is None else check_lookup("user_id", user_id)
        part = check_filter(metadata)
        found = [
            each
            for each in self._store.values()
            if user in {None, each.row.user_id} and contains(each.row.metadata, part)
        ]
        found.sort(key=lambda session: (session.updated_at, session.row.id), reverse=True)
        return build_sessions([session.columns() for session in found[start : start + most]])

    @while_open
    async def get_session(self, session_id: str) -> Session | None:
        session = self._store.get(check_lookup("session_id", session_id))
        return None if session is None else build_session(session.columns())

    @while_open
    async def count_sessions(self) -> int:
        return len(self._store)

    @while_open
    async def update_session_title(self, session_id: str, title: str) -> None:
        title = check_text("title", title)
        session = self._existing(check_session_id(session_id))
        session.title = title
        session.touch()

    @while_open
    async def delete_session(self, session_id: str) -> None:
        self._store.pop(check_lookup("session_id", session_id), None)

    @while_open
    async def clear_all(self) -> None:
        self._store.clear()

    async def close(self) -> None:
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _existing(self, session_id: str) -> StoredSession:
        if session_id not in self._store:
            raise session_not_found(session_id)
        return self._store[session_id]

    def _add(self, session_id: str, rows: list[MessageRow]) -> list[str]:
        key = check_session_id(session_id)
        session = self._existing(key)
        new = []
        for row in drop_repeats(rows):
            if row.id not in session.messages:
                new.append(row)
            elif not row.same_as(*session.messages[row.id][0][1:]):
                raise message_id_taken(key, row.id)
        if new:
            now = session.touch()
            session.messages |= {row.id: (row, now) for row in new}
        return [row.id for row in rows]
