"""`SyncFeedback`: the methods of `Feedback` without `await`, on the thread of a `SyncMemory`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from flux_memory.feedback import Feedback, FeedbackEntry, FeedbackStats
from flux_memory.shapes import Metadata


class SyncFeedback:
    """Feedback without `await`; reached as `memory.feedback` of a `SyncMemory`.

    Args:
        call: Makes a call on the feedback of the memory, and returns its result.
    """

    def __init__(self, call: Callable[[Callable[[Feedback], Awaitable[Any]]], Any]) -> None:
        self._call = call

    def add(
        self,
        session_id: str,
        rating: int,
        *,
        message_id: str | None = None,
        comment: str = "",
        corrected_answer: str | None = None,
        metadata: Metadata | None = None,
        feedback_id: str | None = None,
    ) -> str:
        """Add one entry and return its id; by then the entry is durable.

        If the session exists, the entry belongs to its owner, also after the session is deleted.

        Args:
            session_id: An id of 1 to 255 characters; the session need not exist.
            rating: 1 is good, 0 neutral, -1 bad.
            message_id: The id of the rated message, 1 to 255 characters; it need not exist. `None` rates the session.
            comment: Any text.
            corrected_answer: The answer as it should have been; any text, or `None`.
            metadata: A JSON object; `None` is `{}`.
            feedback_id: An id of 1 to 255 characters, unique in the store; a UUIDv7 by default. With an id a retry is
                safe: the same entry (1 equals 1.0 in metadata) returns the same id and changes nothing.

        Raises:
            ConflictError: Another entry has this id; it is left as it was.
        """
        made: str = self._call(
            lambda feedback: feedback.add(
                session_id,
                rating,
                message_id=message_id,
                comment=comment,
                corrected_answer=corrected_answer,
                metadata=metadata,
                feedback_id=feedback_id,
            )
        )
        return made

    def get(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        session_id: str | None = None,
        message_id: str | None = None,
        rating: int | None = None,
    ) -> list[FeedbackEntry]:
        """Return the entries that meet every given filter, newest first; those of one time by id, the largest first.

        Args:
            limit: The largest number of entries, 0 or more; `None` means all.
            offset: The number of entries to skip, 0 or more; past the end the result is `[]`.
            session_id: Only entries of this session.
            message_id: Only entries of messages with this id, which is unique within a session only.
            rating: Only entries with this rating: -1, 0 or 1.
        """
        found: list[FeedbackEntry] = self._call(
            lambda feedback: feedback.get(limit, offset, session_id=session_id, message_id=message_id, rating=rating)
        )
        return found

    def stats(self, *, since: datetime | None = None) -> FeedbackStats:
        """Return the numbers of entries by rating, in total and for each day in UTC.

        Args:
            since: Only entries of this time and later, which must have a time zone; `None` means all.

        Raises:
            InvalidInputError: The time has no time zone, or a year outside 1 to 9999 in UTC.
        """
        counted: FeedbackStats = self._call(lambda feedback: feedback.stats(since=since))
        return counted

    def delete(self, feedback_id: str) -> None:
        """Remove one entry. An unknown id is not an error, so that a retry is safe."""
        self._call(lambda feedback: feedback.delete(feedback_id))
