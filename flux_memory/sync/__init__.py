"""Conversation memory without `await`: `SyncMemory` has the methods of `Memory` and blocks the calling thread."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from flux_memory import factory
from flux_memory.protocol import Message, Metadata, NewMessage, Session
from flux_memory.records.changes import check_keys
from flux_memory.records.checking import list_messages
from flux_memory.sync.blocking import BlockingCalls
from flux_memory.sync.ratings import SyncFeedback

if TYPE_CHECKING:
    from flux_memory.settings import Settings

__all__ = ["SyncFeedback", "SyncMemory", "create_memory"]


def create_memory(settings: Settings | None = None) -> SyncMemory:
    """Create a memory without `await`; it connects at its first call.

    Args:
        settings: By default those of the environment and `.env`.

    Raises:
        InvalidInputError: A setting is invalid; the message names it.
    """
    return SyncMemory(factory.create_memory(settings))


class SyncMemory(BlockingCalls):
    """A memory without `await`, safe for any number of threads.

    The calls run on an event loop in a thread of their own, those of different threads together. `deadline()` holds as
    in asynchronous code. Ctrl-C in a call cancels it.

        with create_memory() as memory:
            session = memory.create_session("Holiday plans")
            memory.add_message(session, "user", "Where is it warm in March?")

    The docstrings of the methods are those of `Memory`. Iterables of messages and keys are read in the calling thread:
    they may be rows of a cursor that belongs to it, or call this memory.

    Args:
        memory: The memory to call; from now on it belongs to this object, which closes it.

    Raises:
        InvalidTypeError: `memory` is not a `Memory`.
    """

    @property
    def feedback(self) -> SyncFeedback:
        """Ratings of answers: the methods of `Feedback`, on the same store and with the same errors and deadlines."""
        return SyncFeedback(lambda call: self._call(lambda memory: call(memory.feedback)))

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
            session_id: An id of 1 to 255 characters; a UUIDv7 by default.
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
        return self._call(
            lambda memory: memory.add_message(
                session_id, role, content, metadata, message_id=message_id, create=create, user_id=user_id
            )
        )

    def add_messages(
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
        self._check_open()
        batch: list[NewMessage] = list_messages(messages)
        return self._call(lambda memory: memory.add_messages(session_id, batch, create=create, user_id=user_id))

    def get_history(
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
        return self._call(lambda memory: memory.get_history(session_id, limit, before=before, after=after))

    def get_message(self, session_id: str, message_id: str) -> Message | None:
        """Return one message of a session, or `None` if the session or the message does not exist."""
        return self._call(lambda memory: memory.get_message(session_id, message_id))

    def pop_message(self, session_id: str) -> Message | None:
        """Remove the newest message of a session and return it; `None` if there is none.

        Concurrent calls return different messages. The session's `updated_at` and `revision` change with the removal.

        Raises:
            OutcomeUnknownError: The message may have been removed; or it was, and the answer that held it was lost.
        """
        return self._call(lambda memory: memory.pop_message(session_id))

    def update_session(
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
        self._check_open()
        keys, batch = check_keys(remove_metadata), list_messages(messages)
        return self._call(
            lambda memory: memory.update_session(
                session_id,
                expected_revision=expected_revision,
                title=title,
                merge_metadata=merge_metadata,
                remove_metadata=keys,
                truncate_from=truncate_from,
                truncate_all=truncate_all,
                messages=batch,
            )
        )

    def fork_session(
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
        return self._call(
            lambda memory: memory.fork_session(
                session_id, through=through, new_session_id=new_session_id, user_id=user_id, title=title
            )
        )

    def get_sessions(
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
        return self._call(
            lambda memory: memory.get_sessions(
                limit, offset, user_id=user_id, metadata=metadata, before=before, with_metadata=with_metadata
            )
        )

    def get_session(self, session_id: str) -> Session | None:
        """Return one session, or `None` if it does not exist."""
        return self._call(lambda memory: memory.get_session(session_id))

    def count_sessions(self, *, user_id: str | None = None, metadata: Metadata | None = None) -> int:
        """Return the number of sessions; the filters are those of `get_sessions`."""
        return self._call(lambda memory: memory.count_sessions(user_id=user_id, metadata=metadata))

    def update_session_title(self, session_id: str, title: str) -> None:
        """Change a session's title and its `updated_at`.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        self._call(lambda memory: memory.update_session_title(session_id, title))

    def delete_session(self, session_id: str, *, expected_revision: str | None = None) -> None:
        """Remove a session and its messages. An unknown id is not an error, so that a retry is safe. Feedback is kept.

        Args:
            session_id: A session's id.
            expected_revision: The `revision` that the session must have if it exists; `None` means any.

        Raises:
            ConflictError: The session has another revision; nothing is removed.
        """
        self._call(lambda memory: memory.delete_session(session_id, expected_revision=expected_revision))

    def delete_sessions(self, *, user_id: str | None = None, inactive_since: datetime | None = None) -> int:
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
        return self._call(lambda memory: memory.delete_sessions(user_id=user_id, inactive_since=inactive_since))

    def clear_all(self) -> None:
        """Remove every session, every message and all feedback."""
        self._call(lambda memory: memory.clear_all())

    def close(self) -> None:
        """Wait a bounded time for calls in flight, and release the store. Closing twice is not an error."""
        self._close()
