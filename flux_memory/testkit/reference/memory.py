"""The reference model's handle: each method in the plainest code that keeps its promises."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Final, Self

from flux_memory import (
    ConflictError,
    InvalidInputError,
    Message,
    Metadata,
    NewMessage,
    Session,
)
from flux_memory.testkit.reference import arguments, rows, values
from flux_memory.testkit.reference.ratings import ReferenceRatings

WRITES: Final = (
    "create_session",
    "add_message",
    "add_messages",
    "pop_message",
    "update_session",
    "update_session_title",
    "fork_session",
    "delete_session",
    "delete_sessions",
    "clear_all",
    "add_feedback",
    "delete_feedback",
)
"""The methods that change a store."""
READS: Final = (
    "get_history",
    "get_message",
    "get_sessions",
    "get_session",
    "count_sessions",
    "get_feedback",
    "count_feedback",
)
"""The methods that read one."""


class ReferenceMemory(ReferenceRatings):
    """A `Memory` in code that is plain enough to be correct by inspection."""

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
            "id": rows.new_id() if session_id is None else arguments.identifier("session_id", session_id),
            "user_id": arguments.owner(user_id),
            "title": arguments.text("title", title),
            "metadata": arguments.metadata("metadata", metadata),
        }
        with self._store.writing() as sessions:
            if made["id"] in sessions:
                raise ConflictError(f"session {made['id']!r} exists")
            sessions[made["id"]] = rows.new_session(self._now(), **made)
        return str(made["id"])

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
        self._check_open()
        return self._append(session_id, [arguments.draft(role, content, metadata, message_id)], create, user_id)[0]

    async def add_messages(
        self, session_id: str, messages: Iterable[NewMessage], *, create: bool = False, user_id: str = ""
    ) -> list[str]:
        """See `Memory`."""
        self._check_open()
        return self._append(session_id, arguments.drafts(messages), create, user_id)

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None, after: str | None = None
    ) -> list[Message]:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        most = None if limit is None else arguments.count("limit", limit)
        older_than = None if before is None else arguments.plain_text("before", before)
        newer_than = None if after is None else arguments.plain_text("after", after)
        if before is not None and after is not None:
            raise InvalidInputError("before and after are both given")
        with self._store.reading() as sessions:
            history = sessions[key]["messages"] if key in sessions else []
            ids = [message["id"] for message in history]
            if newer_than is not None:
                following = history[ids.index(newer_than) + 1 :] if newer_than in ids else []
                return list(map(rows.message_record, following if most is None else following[:most]))
            if older_than is not None:
                history = history[: ids.index(older_than)] if older_than in ids else []
            return list(map(rows.message_record, history if most is None else history[max(len(history) - most, 0) :]))

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
        self._check_open()
        most = None if limit is None else arguments.count("limit", limit)
        start = arguments.count("offset", offset)
        user = None if user_id is None else arguments.plain_text("user_id", user_id)
        part = arguments.metadata_filter("metadata", metadata)
        cursor = arguments.session_cursor("before", before)
        whole = arguments.flag("with_metadata", with_metadata)
        with self._store.reading() as sessions:
            found = [
                rows.session_record(state if whole else state | {"metadata": {}})
                for state in sessions.values()
                if _matches(state, user, part) and (cursor is None or rows.place(state) < cursor)
            ]
        found.sort(key=rows.place, reverse=True)
        return found[start:] if most is None else found[start : start + most]

    async def get_session(self, session_id: str) -> Session | None:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        with self._store.reading() as sessions:
            return rows.session_record(sessions[key]) if key in sessions else None

    async def count_sessions(self, *, user_id: str | None = None, metadata: Metadata | None = None) -> int:
        """See `Memory`."""
        self._check_open()
        user = None if user_id is None else arguments.plain_text("user_id", user_id)
        part = arguments.metadata_filter("metadata", metadata)
        with self._store.reading() as sessions:
            return sum(_matches(state, user, part) for state in sessions.values())

    async def update_session_title(self, session_id: str, title: str) -> None:
        """See `Memory`."""
        self._check_open()
        key, new_title = arguments.plain_text("session_id", session_id), arguments.text("title", title)
        with self._store.writing() as sessions:
            state = rows.existing(sessions, key)
            state["title"] = new_title
            rows.change(state, self._now())

    async def delete_session(self, session_id: str, *, expected_revision: str | None = None) -> None:
        """See `Memory`."""
        self._check_open()
        key = arguments.plain_text("session_id", session_id)
        expected = None if expected_revision is None else arguments.plain_text("expected_revision", expected_revision)
        with self._store.writing() as sessions:
            if key in sessions:
                rows.check_revision(sessions[key], expected)
            sessions.pop(key, None)

    async def clear_all(self) -> None:
        """See `Memory`."""
        self._check_open()
        with self._store.writing() as sessions, self._store.feedback.writing() as entries:
            sessions.clear()
            entries.clear()

    async def close(self) -> None:
        """See `Memory`."""
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _append(self, session_id: object, batch: list[arguments.Draft], create: object, user_id: object) -> list[str]:
        key = arguments.plain_text("session_id", session_id)
        creates, owner = arguments.flag("create", create), arguments.owner(user_id)
        if creates:
            arguments.identifier("session_id", session_id)
        rows.refuse_contradictions(batch)
        with self._store.writing() as sessions:
            if creates and key not in sessions:
                if not batch:
                    return []
                made = rows.new_session(self._now(), id=key, user_id=owner, title="", metadata={})
            else:
                made = rows.existing(sessions, key)
            if owner and made["user_id"] != owner:
                raise ConflictError(f"session {key!r} belongs to another user")
            added, ids = rows.append(made, batch, max(self._now(), made["updated_at"]))
            if added:
                made["messages"] += added
                rows.change(made, added[-1]["created_at"])
                sessions[key] = made
        return ids


def _matches(state: dict[str, Any], user: str | None, part: dict[str, Any]) -> bool:
    return user in {None, state["user_id"]} and values.contains(state["metadata"], part)
