"""Conversation memory without `await`: `SyncMemory` has the methods of `Memory` and blocks the calling thread."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self, TypeVar

from flux_memory import factory
from flux_memory.backends.lifecycle import warn_never_closed
from flux_memory.backends.loops import CLOSED, LoopThread
from flux_memory.errors import InvalidTypeError, MemoryClosedError
from flux_memory.protocol import Memory, Message, Metadata, NewMessage, Session
from flux_memory.records.checking import list_messages

if TYPE_CHECKING:
    from flux_memory.settings import Settings

Result = TypeVar("Result")

__all__ = ["SyncMemory", "create_memory"]

_EXIT_SECONDS: Final = 1.0
"""Seconds that `close()` waits for its thread after the memory is closed."""


def create_memory(settings: Settings | None = None) -> SyncMemory:
    """Create a memory without `await`; it connects at its first call.

    Args:
        settings: By default those of the environment and `.env`.

    Raises:
        InvalidInputError: A setting is invalid; the message names it.
    """
    return SyncMemory(factory.create_memory(settings))


class SyncMemory:
    """A memory without `await`, safe for any number of threads.

    The calls run on an event loop in a thread of their own, those of different threads together. `deadline()` holds as
    in asynchronous code. Ctrl-C in a call cancels it.

        with create_memory() as memory:
            session = memory.create_session("Holiday plans")
            memory.add_message(session, "user", "Where is it warm in March?")

    The docstrings of the methods are those of `Memory`.

    Args:
        memory: The memory to call; from now on it belongs to this object, which closes it.

    Raises:
        InvalidTypeError: `memory` is not a `Memory`.
    """

    def __init__(self, memory: Memory) -> None:
        if not callable(getattr(memory, "add_message", None)):
            raise InvalidTypeError(f"memory must be a Memory, not {type(memory).__name__}; create_memory() makes one")
        self._memory: Final = memory
        self._lock: Final = threading.Lock()
        self._thread: LoopThread | None = None
        """The thread of the event loop, from the first call on."""

    def create_session(
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
        return self._call(lambda memory: memory.create_session(title, metadata, session_id=session_id, user_id=user_id))

    def add_message(
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
        return self._call(lambda memory: memory.add_message(session_id, role, content, metadata, message_id=message_id))

    def add_messages(self, session_id: str, messages: Iterable[NewMessage]) -> list[str]:
        """Append a batch, all of it or nothing, in the given order, and return the ids in that order.

        The batch has at most 256 MiB and one `updated_at`. An empty batch changes nothing. A message whose `message_id`
        is stored with the same content is not stored again.

        Raises:
            SessionNotFoundError: The session does not exist.
            ConflictError: The session has another message with a given id; nothing of the batch is stored.
        """
        if self._started().has_ended:
            raise MemoryClosedError(CLOSED)
        # Read here: it may be rows of a cursor that belongs to this thread, or call this memory.
        batch: list[NewMessage] = list_messages(messages)
        return self._call(lambda memory: memory.add_messages(session_id, batch))

    def get_history(self, session_id: str, limit: int | None = None, *, before: str | None = None) -> list[Message]:
        """Return the newest `limit` messages, oldest first, in the order in which they were added.

        Args:
            session_id: A session's id; an unknown one returns `[]`.
            limit: The largest number of messages, 0 or more; `None` means all.
            before: A message's id: only messages that were added before it; an unknown one returns `[]`. Passing the id
                of the oldest message seen pages back with no gap and no repeat while other calls append.
        """
        return self._call(lambda memory: memory.get_history(session_id, limit, before=before))

    def get_sessions(
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
        return self._call(lambda memory: memory.get_sessions(limit, offset, user_id=user_id, metadata=metadata))

    def get_session(self, session_id: str) -> Session | None:
        """Return one session, or `None` if it does not exist."""
        return self._call(lambda memory: memory.get_session(session_id))

    def count_sessions(self) -> int:
        """Return the number of sessions."""
        return self._call(lambda memory: memory.count_sessions())

    def update_session_title(self, session_id: str, title: str) -> None:
        """Change a session's title and its `updated_at`.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        self._call(lambda memory: memory.update_session_title(session_id, title))

    def delete_session(self, session_id: str) -> None:
        """Remove a session and its messages. An unknown id is not an error, so that a retry is safe."""
        self._call(lambda memory: memory.delete_session(session_id))

    def clear_all(self) -> None:
        """Remove every session and every message."""
        self._call(lambda memory: memory.clear_all())

    def close(self) -> None:
        """Wait a bounded time for calls in flight, and release the store. Closing twice is not an error."""
        thread = self._started()
        if thread.is_current:  # a finalizer; waiting would be for ever
            thread.stop_after(self._memory.close)
        elif not thread.has_ended:
            with suppress(MemoryClosedError):  # another thread has just closed it
                thread.call(self._memory.close)
            thread.stop()
            thread.join(_EXIT_SECONDS)

    def __enter__(self) -> Self:
        """Return the memory itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the memory."""
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, '_memory', 'not opened')!r})"

    def __del__(self) -> None:
        thread: LoopThread | None = getattr(self, "_thread", None)
        if thread is not None and not thread.has_ended:
            warn_never_closed(self)
            thread.stop_after(self._memory.close)

    def _call(self, call: Callable[[Memory], Awaitable[Result]]) -> Result:
        return self._started().call(lambda: call(self._memory))

    def _started(self) -> LoopThread:
        if self._thread is None:
            with self._lock:
                self._thread = self._thread or LoopThread()
        return self._thread
