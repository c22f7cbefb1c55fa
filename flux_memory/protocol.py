"""Defines the `Memory` protocol, with the full documentation of its methods, and the records that they return."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NotRequired, Protocol, Self

from flux_memory.errors import InvalidInputError
from flux_memory.feedback import Feedback, FeedbackDay, FeedbackEntry, FeedbackStats
from flux_memory.shapes import Metadata, TypedDict

__all__ = [
    "Feedback",
    "FeedbackDay",
    "FeedbackEntry",
    "FeedbackStats",
    "Memory",
    "Message",
    "Metadata",
    "NewMessage",
    "Session",
    "not_supported",
]


class Message(TypedDict):
    """One message, as a plain `dict` with exactly these keys."""

    id: str
    role: str
    content: str
    metadata: dict[str, Any]
    created_at: str
    """UTC, `YYYY-MM-DDTHH:MM:SS.ffffff+00:00`, always 32 characters."""


class Session(TypedDict):
    """One session, as a plain `dict` with exactly these keys."""

    id: str
    user_id: str
    title: str
    created_at: str
    updated_at: str
    """The time of the last change of the session or its messages. Same form as `created_at`."""
    metadata: dict[str, Any]
    message_count: int
    revision: str
    """Different after every change of the session or its messages, and never used again; compare it for equality."""


class NewMessage(TypedDict):
    """One message to append, for `Memory.add_messages` and `Memory.update_session`. Other keys are refused."""

    role: str
    content: str
    metadata: NotRequired[Metadata | None]
    message_id: NotRequired[str | None]


class Memory(Protocol):
    """Conversation memory: sessions, their messages in order, and JSON metadata.

    Every implementation gives the same outcome for the same call. All methods raise `InvalidInputError` for an invalid
    argument (also a `TypeError` if its type is wrong) before any I/O, `MemoryClosedError` after `close()`, and
    `BackendUnavailableError` when the store cannot be reached within the deadline: the handle's, or that of
    `flux_memory.deadline()`. A write that was sent but not acknowledged raises its subclass `OutcomeUnknownError`: it
    may or may not be stored.

    An argument must not change before its call has returned: long ones are encoded in a thread.

    Text is stored byte for byte; NUL and lone surrogates are refused. Metadata round-trips by type and value; its key
    order is not kept. Every returned object is new.
    """

    @property
    def feedback(self) -> Feedback:
        """Ratings of answers: the methods of `Feedback`, on the same store and with the same errors and deadlines."""
        raise not_supported("feedback")

    async def create_session(
        self,
        title: str = "",
        metadata: Metadata | None = None,
        *,
        session_id: str | None = None,
        user_id: str = "",
    ) -> str:
        """Create a session and return its id.

        Args:
            title: Any text.
            metadata: A JSON object; `None` is `{}`.
            session_id: An id of 1 to 255 characters; a UUIDv7 by default.
            user_id: The owner of the session, at most 255 characters; see `get_sessions`.

        Raises:
            ConflictError: A session with this id exists; it is left as it was.
        """
        ...

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
        """Append one message to a session and return its id; by then the message is durable.

        The message is stored together with the session's `updated_at`, or not at all.

        Args:
            session_id: A session that exists, unless `create` is true.
            role: Any text that is not empty: `user`, `assistant`, `system`, `tool`, ...
            content: Any text.
            metadata: A JSON object; `None` is `{}`.
            message_id: An id of 1 to 255 characters, unique within the session; by default a UUIDv7. With an id a retry
                is safe: the same role, content and metadata (1 equals 1.0) return the same id and change nothing.
            create: Whether to create the session in the same atomic write if it does not exist.
            user_id: The owner of a session that is created; if it is not empty, an existing session must have this
                owner.

        Raises:
            SessionNotFoundError: The session does not exist, and `create` is false.
            ConflictError: The session has another message with this id, or another owner; nothing is stored.
        """
        ...

    async def add_messages(
        self, session_id: str, messages: Iterable[NewMessage], *, create: bool = False, user_id: str = ""
    ) -> list[str]:
        """Append a batch, all of it or nothing, in the given order, and return the ids in that order.

        The batch has at most 256 MiB and one `updated_at`. An empty batch changes nothing; the session and its owner
        are checked all the same. A message whose `message_id` is stored with the same content is not stored again.

        Args:
            session_id: A session that exists, unless `create` is true.
            messages: The messages, oldest first.
            create: Whether to create the session in the same atomic write if it does not exist; an empty batch creates
                none.
            user_id: The owner of a session that is created; if it is not empty, an existing session must have this
                owner.

        Raises:
            SessionNotFoundError: The session does not exist, and `create` is false.
            ConflictError: The session has another message with a given id, or another owner; nothing of the batch is
                stored.
        """
        ...

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None, after: str | None = None
    ) -> list[Message]:
        """Return messages of a session, oldest first, in the order in which they were added.

        These are the newest `limit` messages, or with `after` the oldest `limit` ones that follow it.

        Args:
            session_id: A session's id; an unknown one returns `[]`.
            limit: The largest number of messages, 0 or more; `None` means all.
            before: A message's id: only messages that were added before it; an unknown one returns `[]`. Passing the id
                of the oldest message seen pages back with no gap and no repeat while other calls append.
            after: A message's id: only messages that were added after it; an unknown one returns `[]`. Passing the id
                of the newest message seen follows a conversation with no gap and no repeat. Once that message is
                removed, its id is unknown: if the session's `revision` has changed, read the history anew.

        Raises:
            InvalidInputError: Both cursors are given.
        """
        ...

    async def get_message(self, session_id: str, message_id: str) -> Message | None:
        """Return one message of a session, or `None` if the session or the message does not exist."""
        raise not_supported("get_message")

    async def pop_message(self, session_id: str) -> Message | None:
        """Remove the newest message of a session and return it; `None` if there is none.

        Concurrent calls return different messages. The session's `updated_at` and `revision` change with the removal.

        Raises:
            OutcomeUnknownError: The message may have been removed; or it was, and the answer that held it was lost.
        """
        raise not_supported("pop_message")

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
        """Change a session and its messages in one atomic step, and return the session as it is then.

        The parts apply in this order, with one `updated_at`: compare the revision, truncate, set the title, remove and
        merge metadata, append. At least one part is required; `expected_revision` alone is none. A call that succeeds
        changes `revision` and `updated_at`, even if every part was so already.

        Args:
            session_id: A session that exists.
            expected_revision: The `revision` that the session must have; `None` means any.
            title: The new title.
            merge_metadata: Keys to set in the metadata, at its top level only: each value replaces the stored one, and
                `None` is a value.
            remove_metadata: Keys to remove from the metadata, at its top level, before the merge; missing ones are no
                error.
            truncate_from: The id of a message to remove together with every message after it.
            truncate_all: Whether to remove every message.
            messages: Messages to append, as in `add_messages`.

        Raises:
            SessionNotFoundError: The session does not exist.
            ConflictError: The session has another revision, no message with the id `truncate_from`, or another message
                with a given id; nothing is changed.
            InvalidInputError: No part is given, both truncations are given, or the metadata would become too large.
        """
        raise not_supported("update_session")

    async def fork_session(
        self,
        session_id: str,
        *,
        through: str | None = None,
        new_session_id: str | None = None,
        user_id: str | None = None,
        title: str | None = None,
    ) -> str:
        """Copy a session and its messages, atomically, and return the id of the copy.

        Messages keep their ids, times and metadata. The copy has times of its own, and the metadata of the original.

        Args:
            session_id: A session that exists.
            through: The id of the last message to copy; `None` copies all.
            new_session_id: An id of 1 to 255 characters for the copy; a UUIDv7 by default.
            user_id: The owner of the copy; `None` keeps the owner.
            title: The title of the copy; `None` keeps the title.

        Raises:
            SessionNotFoundError: The session does not exist.
            ConflictError: A session with the new id exists, or no message has the id `through`; nothing is copied.
        """
        raise not_supported("fork_session")

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
        """Return sessions, the most recently changed first.

        Args:
            limit: The largest number of sessions, 0 or more; `None` means all.
            offset: The number of sessions to skip, 0 or more; past the end the result is `[]`.
            user_id: Only this user's sessions; `None` means those of all users.
            metadata: Only sessions whose metadata contains this object, as PostgreSQL's `jsonb @>` defines it. It may
                have 100 values at any depth, 16 of them within arrays.
            before: A session of the page before, of which `id` and `updated_at` are read: only sessions that follow it.
                Passing the last session seen pages on with no gap and no repeat among sessions that do not change
                meanwhile.
            with_metadata: Whether the records have their metadata; without it, `metadata` is `{}`, and large metadata
                is not read.
        """
        ...

    async def get_session(self, session_id: str) -> Session | None:
        """Return one session, or `None` if it does not exist."""
        ...

    async def count_sessions(self, *, user_id: str | None = None, metadata: Metadata | None = None) -> int:
        """Return the number of sessions; the filters are those of `get_sessions`."""
        ...

    async def update_session_title(self, session_id: str, title: str) -> None:
        """Change a session's title and its `updated_at`.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        ...

    async def delete_session(self, session_id: str, *, expected_revision: str | None = None) -> None:
        """Remove a session and its messages. An unknown id is not an error, so that a retry is safe. Feedback is kept.

        Args:
            session_id: A session's id.
            expected_revision: The `revision` that the session must have if it exists; `None` means any.

        Raises:
            ConflictError: The session has another revision; nothing is removed.
        """
        ...

    async def delete_sessions(self, *, user_id: str | None = None, inactive_since: datetime | None = None) -> int:
        """Remove the sessions that meet every given criterion, and return how many were removed.

        They are removed in bounded batches, between which other calls proceed. A call that fails may have removed some
        of them; call again.

        With a `user_id` alone, which is not empty, the feedback of this user is erased as well, also that on sessions
        deleted before. With `inactive_since`, feedback is kept.

        Args:
            user_id: Only sessions of this user.
            inactive_since: Only sessions whose `updated_at` is before this time, which must have a time zone.

        Raises:
            InvalidInputError: No criterion is given, or the time has no time zone, or a year outside 1 to 9999 in UTC.
        """
        raise not_supported("delete_sessions")

    async def clear_all(self) -> None:
        """Remove every session, every message and all feedback."""
        ...

    async def close(self) -> None:
        """Wait a bounded time for calls in flight, and release the store. Closing twice is not an error."""
        ...

    async def __aenter__(self) -> Self:
        """Return the memory itself."""
        ...

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the memory."""
        ...


def not_supported(method: str) -> InvalidInputError:
    """Return the error of a method that a memory lacks."""
    return InvalidInputError(f"this memory does not support {method}()")
