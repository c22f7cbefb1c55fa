"""Defines the `Memory` protocol, with the full documentation of its methods, and the records that they return."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, Protocol, Self

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:  # pydantic, and so FastAPI, refuses the standard library's older one
    from typing_extensions import TypedDict

Metadata = Mapping[str, Any]
"""A JSON object: `str` keys at every depth, finite numbers, nesting of at most 100."""


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
    """The time of the last add or change of title. Same form as `created_at`."""
    metadata: dict[str, Any]
    message_count: int


class NewMessage(TypedDict):
    """One message of a batch for `Memory.add_messages`. Other keys are refused."""

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
            session_id: An id of 1 to 36 characters; a UUIDv7 by default.
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
    ) -> str:
        """Append one message to a session and return its id; by then the message is durable.

        The message is stored together with the session's `updated_at`, or not at all.

        Args:
            session_id: A session that exists.
            role: Any text that is not empty: `user`, `assistant`, `system`, `tool`, ...
            content: Any text.
            metadata: A JSON object; `None` is `{}`.
            message_id: An id of 1 to 36 characters, unique within the session; by default a UUIDv7. With an id a retry
                is safe: the same role, content and metadata (1 equals 1.0) return the same id and change nothing.

        Raises:
            SessionNotFoundError: The session does not exist.
            ConflictError: The session has another message with this id.
        """
        ...

    async def add_messages(self, session_id: str, messages: Iterable[NewMessage]) -> list[str]:
        """Append a batch, all of it or nothing, in the given order, and return the ids in that order.

        The batch has at most 256 MiB and one `updated_at`. An empty batch changes nothing. A message whose `message_id`
        is stored with the same content is not stored again.

        Raises:
            SessionNotFoundError: The session does not exist.
            ConflictError: The session has another message with a given id; nothing of the batch is stored.
        """
        ...

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[Message]:
        """Return the newest `limit` messages, oldest first, in the order in which they were added.

        Args:
            session_id: A session's id; an unknown one returns `[]`.
            limit: The largest number of messages, 0 or more; `None` means all.
            before: A message's id: only messages that were added before it; an unknown one returns `[]`. Passing the id
                of the oldest message seen pages back with no gap and no repeat while other calls append.
        """
        ...

    async def get_sessions(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        user_id: str | None = None,
        metadata: Metadata | None = None,
    ) -> list[Session]:
        """Return sessions, the most recently changed first.

        Args:
            limit: The largest number of sessions, 0 or more; `None` means all.
            offset: The number of sessions to skip, 0 or more; past the end the result is `[]`.
            user_id: Only this user's sessions; `None` means those of all users.
            metadata: Only sessions whose metadata contains this object, as PostgreSQL's `jsonb @>` defines it. It may
                have 100 values at any depth, 16 of them within arrays.
        """
        ...

    async def get_session(self, session_id: str) -> Session | None:
        """Return one session, or `None` if it does not exist."""
        ...

    async def count_sessions(self) -> int:
        """Return the number of sessions."""
        ...

    async def update_session_title(self, session_id: str, title: str) -> None:
        """Change a session's title and its `updated_at`.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        ...

    async def delete_session(self, session_id: str) -> None:
        """Remove a session and its messages. An unknown id is not an error, so that a retry is safe."""
        ...

    async def clear_all(self) -> None:
        """Remove every session and every message."""
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
