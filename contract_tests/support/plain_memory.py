"""A `Memory` in a dict, with `flux_memory.records` for all that is not storage."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import datetime
from functools import wraps
from typing import Any, Self, TypeVar, cast

from plain_sessions import StoredSession, change_row

from flux_memory import MemoryClosedError, Message, Metadata, NewMessage, Session
from flux_memory.records import (
    MessageRow,
    SessionRow,
    build_messages,
    build_session,
    build_sessions,
    check_batch,
    check_count,
    check_cursors,
    check_deletion,
    check_filter,
    check_flag,
    check_fork,
    check_id,
    check_limit,
    check_lookup,
    check_new_message,
    check_new_session,
    check_owner,
    check_revision,
    check_session_cursor,
    check_session_id,
    check_text,
    check_update,
    contains,
    drop_repeats,
    owner_conflict,
    session_id_taken,
    session_not_found,
    utc_now,
)

Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])


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
        self._store[row.id] = StoredSession(row, now, now)
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
        create: bool = False,
        user_id: str = "",
    ) -> str:
        return self._add(session_id, [check_new_message(role, content, metadata, message_id)], create, user_id)[0]

    @while_open
    async def add_messages(
        self, session_id: str, messages: Iterable[NewMessage], *, create: bool = False, user_id: str = ""
    ) -> list[str]:
        return self._add(session_id, check_batch(messages), create, user_id)

    @while_open
    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None, after: str | None = None
    ) -> list[Message]:
        key, most = check_lookup("session_id", session_id), check_limit(limit)
        older_than, newer_than = check_cursors(before, after)
        messages = self._store[key].messages if key in self._store else {}
        stored, ids = [(*row, created_at) for row, created_at in messages.values()], list(messages)
        if newer_than is not None:
            following = stored[ids.index(newer_than) + 1 :] if newer_than in ids else []
            return build_messages(key, following[:most][::-1])
        if older_than is not None:
            stored = stored[: ids.index(older_than)] if older_than in ids else []
        return build_messages(key, stored[::-1][:most])

    @while_open
    async def get_message(self, session_id: str, message_id: str) -> Message | None:
        key, wanted = check_lookup("session_id", session_id), check_lookup("message_id", message_id)
        if key not in self._store or wanted not in self._store[key].messages:
            return None
        row, created_at = self._store[key].messages[wanted]
        return build_messages(key, [(*row, created_at)])[0]

    @while_open
    async def pop_message(self, session_id: str) -> Message | None:
        session = self._store.get(check_lookup("session_id", session_id))
        if session is None or not session.messages:
            return None
        row, created_at = list(session.messages.values())[-1]
        (message,) = build_messages(session.row.id, [(*row, created_at)])
        del session.messages[row.id]
        session.touch()
        return message

    @while_open
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
        update = check_update(
            expected_revision=expected_revision,
            title=title,
            merge_metadata=merge_metadata,
            remove_metadata=remove_metadata,
            truncate_from=truncate_from,
            truncate_all=truncate_all,
            messages=messages,
        )
        key = check_session_id(session_id)
        # A copy, so that a change that fails part-way leaves the session as it was.
        changed = replace(self._existing(key))
        changed.require(update.expected_revision)
        if update.truncate_from is not None:
            changed.messages = changed.keep_until(update.truncate_from, inclusive=False)
        else:
            changed.messages = {} if update.truncate_all else {**changed.messages}
        new = changed.choose_new(update.messages)
        changed.row = change_row(changed.row, update)
        changed.append(new, changed.touch())
        self._store[key] = changed
        return build_session(changed.columns())

    @while_open
    async def fork_session(
        self,
        session_id: str,
        *,
        through: str | None = None,
        new_session_id: str | None = None,
        user_id: str | None = None,
        title: str | None = None,
    ) -> str:
        fork = check_fork(through, new_session_id, user_id, title)
        original = self._existing(check_session_id(session_id))
        row = original.row._replace(id=fork.new_id)
        row = row if fork.user_id is None else row._replace(user_id=fork.user_id)
        row = row if fork.title is None else row._replace(title=fork.title)
        kept = original.messages if fork.through is None else original.keep_until(fork.through, inclusive=True)
        if row.id in self._store:
            raise session_id_taken(row.id)
        now = max(original.updated_at, utc_now())
        self._store[row.id] = StoredSession(row, now, now, {**kept})
        return row.id

    @while_open
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
        most, start = check_limit(limit), check_count("offset", offset)
        found = self._matching(user_id, metadata)
        place, whole = check_session_cursor(before), check_flag("with_metadata", with_metadata)
        found.sort(key=lambda session: (session.updated_at, session.row.id), reverse=True)
        if place is not None:
            found = [each for each in found if (each.updated_at, each.row.id) < place]
        return build_sessions([each.columns(with_metadata=whole) for each in found[start : start + most]])

    @while_open
    async def get_session(self, session_id: str) -> Session | None:
        session = self._store.get(check_lookup("session_id", session_id))
        return None if session is None else build_session(session.columns())

    @while_open
    async def count_sessions(self, *, user_id: str | None = None, metadata: Metadata | None = None) -> int:
        return len(self._matching(user_id, metadata))

    @while_open
    async def update_session_title(self, session_id: str, title: str) -> None:
        title = check_text("title", title)
        session = self._existing(check_session_id(session_id))
        session.row = session.row._replace(title=title)
        session.touch()

    @while_open
    async def delete_session(self, session_id: str, *, expected_revision: str | None = None) -> None:
        key, expected = check_lookup("session_id", session_id), check_revision(expected_revision)
        if key in self._store:
            self._store[key].require(expected)
            del self._store[key]

    @while_open
    async def delete_sessions(self, *, user_id: str | None = None, inactive_since: datetime | None = None) -> int:
        user, moment = check_deletion(user_id, inactive_since)
        found = [
            each.row.id
            for each in self._store.values()
            if user in {None, each.row.user_id} and (moment is None or each.updated_at < moment)
        ]
        for id_ in found:
            del self._store[id_]
        return len(found)

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

    def _matching(self, user_id: object, metadata: object) -> list[StoredSession]:
        user, part = None if user_id is None else check_lookup("user_id", user_id), check_filter(metadata)
        return [
            each
            for each in self._store.values()
            if user in {None, each.row.user_id} and contains(each.row.metadata, part)
        ]

    def _add(self, session_id: str, rows: list[MessageRow], create: bool, user_id: str) -> list[str]:
        owner, creates = check_owner(user_id), check_flag("create", create)
        key = check_id("session_id", session_id) if creates else check_session_id(session_id)
        if creates and rows and key not in self._store:
            now = utc_now()
            self._store[key] = StoredSession(SessionRow(key, owner, "", "{}"), now, now)
        elif creates and key not in self._store:
            return []
        session = self._existing(key)
        if owner not in {"", session.row.user_id}:
            raise owner_conflict(key)
        if new := session.choose_new(drop_repeats(rows)):
            session.append(new, session.touch())
        return [row.id for row in rows]
