"""Defines the `Feedback` protocol, with the full documentation of its methods, and the records that they return."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

from flux_memory.shapes import Metadata, TypedDict


class FeedbackEntry(TypedDict):
    """One rating of an answer or of a session, as a plain `dict` with exactly these keys."""

    feedback_id: str
    session_id: str
    message_id: str | None
    """The rated message; `None` if the whole session is rated."""
    rating: int
    """1 is good, 0 neutral, -1 bad."""
    comment: str
    corrected_answer: str | None
    metadata: dict[str, Any]
    created_at: str
    """UTC, `YYYY-MM-DDTHH:MM:SS.ffffff+00:00`, always 32 characters."""


class FeedbackDay(TypedDict):
    """The numbers of entries of one day in UTC."""

    day: str
    """`YYYY-MM-DD`."""
    total: int
    positive: int
    negative: int
    neutral: int


class FeedbackStats(TypedDict):
    """The numbers of entries, as a plain `dict` with exactly these keys."""

    total: int
    positive: int
    """Entries with the rating 1."""
    negative: int
    """Entries with the rating -1."""
    neutral: int
    """Entries with the rating 0."""
    by_day: list[FeedbackDay]
    """The days that have entries, oldest first. A day begins at midnight UTC."""


class Feedback(Protocol):
    """Ratings of answers, with comments and corrected answers; reached as `memory.feedback`.

    Entries are a record of their own: they may name sessions and messages that do not exist, or no longer.
    `Memory.delete_session`, and `Memory.delete_sessions` with `inactive_since`, keep them. `Memory.delete_sessions`
    with a `user_id` alone erases those of the user, and `Memory.clear_all` erases all of them.

    Errors, deadlines, limits and retries are those of `Memory`.
    """

    async def add(
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
        ...

    async def get(
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
        ...

    async def stats(self, *, since: datetime | None = None) -> FeedbackStats:
        """Return the numbers of entries by rating, in total and for each day in UTC.

        Args:
            since: Only entries of this time and later, which must have a time zone; `None` means all.

        Raises:
            InvalidInputError: The time has no time zone, or a year outside 1 to 9999 in UTC.
        """
        ...

    async def delete(self, feedback_id: str) -> None:
        """Remove one entry. An unknown id is not an error, so that a retry is safe."""
        ...
