"""Checks the arguments of `Feedback`, and builds its records from rows, for both backends."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from flux_memory.errors import ConflictError, FluxMemoryError, InvalidInputError, InvalidTypeError
from flux_memory.feedback import FeedbackDay, FeedbackEntry, FeedbackStats
from flux_memory.records import timestamps
from flux_memory.records.building import describe_not_text
from flux_memory.records.checking import check_lookup
from flux_memory.records.ids import make_id
from flux_memory.records.limits import MAX_METADATA_BYTES
from flux_memory.records.metadata import TooLongError, decode_metadata, encode_metadata, equal
from flux_memory.records.text import check_id, check_text, shown

RATINGS: Final = (-1, 0, 1)
_ENTRY_CHARACTERS: Final = 400
"""Characters of JSON that take as long to decode as an entry without metadata takes to build."""


class ImportOutcome(StrEnum):
    """What became of an entry that was written with its own time."""

    ADDED = "added"
    PRESENT = "present"
    """The same entry was there."""
    TAKEN = "taken"
    """Another entry has its id, and was left as it was."""


class DatedFeedback(NamedTuple):
    """A checked entry that another store has dated."""

    row: FeedbackRow
    created_at: str
    """In the form of the records."""


class FeedbackRow(NamedTuple):
    """A checked entry to store; its metadata is JSON text."""

    id: str
    session_id: str
    message_id: str | None
    rating: int
    comment: str
    corrected_answer: str | None
    metadata: str

    def same_as(self, stored: Sequence[Any]) -> bool:
        """Return whether a stored entry of the same id has this content, which makes this one a retry.

        Args:
            stored: Its session_id, message_id, rating, comment, corrected_answer and metadata, the latter as JSON text.
                Numbers in metadata are compared by value: 1 equals 1.0.

        Raises:
            FluxMemoryError: The stored entry is corrupt.
        """
        *parts, metadata = stored
        try:
            if type(metadata) is not str:
                raise TypeError(describe_not_text(metadata))
            return tuple(parts) == self[1:-1] and equal(self.metadata, metadata)
        except (ValueError, TypeError, RecursionError) as error:
            raise FluxMemoryError(f"the stored feedback {self.id!r} cannot be read: {error}") from error


def check_new_feedback(
    session_id: object,
    rating: object,
    *,
    message_id: object = None,
    comment: object = "",
    corrected_answer: object = None,
    metadata: object = None,
    feedback_id: object = None,
    most: int = MAX_METADATA_BYTES,
) -> FeedbackRow:
    """Return the entry to store for the arguments of `Feedback.add`; its id is made if none is given.

    Args:
        session_id: The session's id.
        rating: The rating.
        message_id: The message's id, or `None`.
        comment: The comment.
        corrected_answer: The corrected answer, or `None`.
        metadata: The metadata, or `None`.
        feedback_id: The id, or `None`.
        most: See `encode_metadata`.

    Raises:
        InvalidInputError: An argument is invalid, which the error names; `InvalidTypeError` if its type is wrong.
        TooLongError: The metadata has more than `most` parts.
    """
    return FeedbackRow(
        make_id() if feedback_id is None else check_id("feedback_id", feedback_id),
        check_id("session_id", session_id),
        None if message_id is None else check_id("message_id", message_id),
        check_rating(rating),
        check_text("comment", comment),
        None if corrected_answer is None else check_text("corrected_answer", corrected_answer),
        encode_metadata(metadata, most=most),
    )


def check_rating(rating: object) -> int:
    """Return a rating: -1, 0 or 1.

    Args:
        rating: The argument.

    Raises:
        InvalidTypeError: The value is not an `int`, or it is a `bool`.
        InvalidInputError: The value is another number.
    """
    if not isinstance(rating, int) or isinstance(rating, bool):
        raise InvalidTypeError(f"rating must be an int, not {type(rating).__name__}")
    if rating not in RATINGS:
        raise InvalidInputError(f"rating is {shown(rating)}; give 1 for good, 0 for neutral or -1 for bad")
    return int(rating)


def check_feedback_filter(session_id: object, message_id: object, rating: object) -> dict[str, str | int]:
    """Return the given filters of `Feedback.get`, by name.

    Args:
        session_id: The session's id, or `None`.
        message_id: The message's id, or `None`.
        rating: The rating, or `None`.

    Raises:
        InvalidTypeError: A filter has the wrong type.
        InvalidInputError: The rating is not -1, 0 or 1.
    """
    criteria: dict[str, str | int] = {}
    if session_id is not None:
        criteria["session_id"] = check_lookup("session_id", session_id)
    if message_id is not None:
        criteria["message_id"] = check_lookup("message_id", message_id)
    if rating is not None:
        criteria["rating"] = check_rating(rating)
    return criteria


def feedback_id_taken(feedback_id: str) -> ConflictError:
    """Return the error to raise for an entry whose id is taken by another one; see `FeedbackRow.same_as`.

    Args:
        feedback_id: The id.
    """
    return ConflictError(f"other feedback has the id {feedback_id!r}; give this entry an id of its own")


def build_feedback(rows: Sequence[Sequence[Any]], *, most: int = sys.maxsize) -> list[FeedbackEntry]:
    """Return the records of entries, in the order of the rows.

    Args:
        rows: Sequences of (id, session_id, message_id, rating, comment, corrected_answer, metadata, created_at):
            metadata as JSON text, the time as `format_time` returns it.
        most: Characters of JSON to decode at most.

    Raises:
        TooLongError: It would take as long as decoding more than `most` characters of JSON.
        FluxMemoryError: A row is corrupt; the message names it.
    """
    left = most - len(rows) * _ENTRY_CHARACTERS
    entries = []
    for row in rows:
        if left < 0:
            raise TooLongError
        entries.append(_build_entry(row, left))
        left -= len(row[6] or "")
    return entries


def build_stats(rows: Iterable[Sequence[Any]]) -> FeedbackStats:
    """Return the numbers of entries.

    Args:
        rows: Sequences of (day, positive, negative, neutral), oldest first; the day as `YYYY-MM-DD`.

    Raises:
        FluxMemoryError: An entry has a time that is not one.
    """
    days = [_build_day(*row) for row in rows]
    return {
        "total": sum(day["total"] for day in days),
        "positive": sum(day["positive"] for day in days),
        "negative": sum(day["negative"] for day in days),
        "neutral": sum(day["neutral"] for day in days),
        "by_day": days,
    }


def _build_entry(row: Sequence[Any], most: int) -> FeedbackEntry:
    id_, session_id, message_id, rating, comment, corrected_answer, metadata, created_at = row
    try:
        texts = [id_, session_id, comment, *(text for text in (message_id, corrected_answer) if text is not None)]
        if set(map(type, texts)) != {str}:
            raise TypeError(describe_not_text(*texts))
        if type(rating) is not int or rating not in RATINGS:
            raise ValueError(f"{rating!r:.60} where a rating belongs")
        return {
            "feedback_id": id_,
            "session_id": session_id,
            "message_id": message_id,
            "rating": rating,
            "comment": comment,
            "corrected_answer": corrected_answer,
            "metadata": decode_metadata(metadata, most=most),
            "created_at": timestamps.check(created_at),
        }
    except (ValueError, TypeError, RecursionError) as error:
        raise FluxMemoryError(f"feedback {id_!r} cannot be read: {error}") from error


def _build_day(day: object, positive: int, negative: int, neutral: int) -> FeedbackDay:
    try:
        timestamps.check(f"{day}T00:00:00.000000+00:00")
    except ValueError as error:
        raise FluxMemoryError(f"feedback cannot be counted: {day!r:.60} where a day belongs") from error
    return {
        "day": str(day),
        "total": positive + negative + neutral,
        "positive": positive,
        "negative": negative,
        "neutral": neutral,
    }
