"""The reference model's feedback, in the plainest code."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flux_memory import ConflictError, FeedbackEntry, FeedbackStats, Metadata
from flux_memory.testkit.reference import arguments, rows, values
from flux_memory.testkit.reference.changes import ReferenceChanges


class ReferenceFeedback:
    """The `Feedback` of a reference memory: each call is one of the memory, where a broken memory can break it.

    Args:
        memory: The handle that it belongs to.
    """

    def __init__(self, memory: ReferenceRatings) -> None:
        self._memory = memory

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
        """See `Feedback`."""
        return await self._memory.add_feedback(
            session_id,
            rating,
            message_id=message_id,
            comment=comment,
            corrected_answer=corrected_answer,
            metadata=metadata,
            feedback_id=feedback_id,
        )

    async def get(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        session_id: str | None = None,
        message_id: str | None = None,
        rating: int | None = None,
    ) -> list[FeedbackEntry]:
        """See `Feedback`."""
        return await self._memory.get_feedback(
            limit, offset, session_id=session_id, message_id=message_id, rating=rating
        )

    async def stats(self, *, since: datetime | None = None) -> FeedbackStats:
        """See `Feedback`."""
        return await self._memory.count_feedback(since=since)

    async def delete(self, feedback_id: str) -> None:
        """See `Feedback`."""
        await self._memory.delete_feedback(feedback_id)


class ReferenceRatings(ReferenceChanges):
    """The feedback of the reference model, a method for each of `Feedback`."""

    @property
    def feedback(self) -> ReferenceFeedback:
        """See `Memory`."""
        return ReferenceFeedback(self)

    async def add_feedback(
        self,
        session_id: str,
        rating: int,
        *,
        message_id: str | None,
        comment: str,
        corrected_answer: str | None,
        metadata: Metadata | None,
        feedback_id: str | None,
    ) -> str:
        """See `Feedback.add`."""
        self._check_open()
        given: dict[str, Any] = {
            "session_id": arguments.identifier("session_id", session_id),
            "rating": arguments.rating(rating),
            "message_id": None if message_id is None else arguments.identifier("message_id", message_id),
            "comment": arguments.text("comment", comment),
            "corrected_answer": None,
            "metadata": arguments.metadata("metadata", metadata),
        }
        if corrected_answer is not None:
            given["corrected_answer"] = arguments.text("corrected_answer", corrected_answer)
        key = rows.new_id() if feedback_id is None else arguments.identifier("feedback_id", feedback_id)
        with self._store.writing() as sessions, self._store.feedback.writing() as entries:
            if key not in entries:
                session = sessions.get(given["session_id"], {"user_id": ""})
                made = {"feedback_id": key, "user_id": session["user_id"], "created_at": self._now()}
                entries[key] = given | made
            elif not _same(entries[key], given):
                raise ConflictError(f"feedback {key!r} is another entry")
        return key

    async def get_feedback(
        self, limit: int | None, offset: int, *, session_id: str | None, message_id: str | None, rating: int | None
    ) -> list[FeedbackEntry]:
        """See `Feedback.get`."""
        self._check_open()
        most = None if limit is None else arguments.count("limit", limit)
        start = arguments.count("offset", offset)
        wanted: dict[str, Any] = {}
        if session_id is not None:
            wanted["session_id"] = arguments.plain_text("session_id", session_id)
        if message_id is not None:
            wanted["message_id"] = arguments.plain_text("message_id", message_id)
        if rating is not None:
            wanted["rating"] = arguments.rating(rating)
        with self._store.feedback.reading() as entries:
            found = [
                _record(entry)
                for entry in entries.values()
                if all(entry[name] == value for name, value in wanted.items())
            ]
        found.sort(key=lambda entry: (entry["created_at"], entry["feedback_id"].encode()), reverse=True)
        return found[start:] if most is None else found[start : start + most]

    async def count_feedback(self, *, since: datetime | None) -> FeedbackStats:
        """See `Feedback.stats`."""
        self._check_open()
        moment = "" if since is None else arguments.moment("since", since)
        with self._store.feedback.reading() as entries:
            found = [entry for entry in entries.values() if entry["created_at"] >= moment]
        days = sorted({entry["created_at"][:10] for entry in found})
        by_day: list[Any] = [
            {"day": day, **_count([entry for entry in found if entry["created_at"][:10] == day])} for day in days
        ]
        stats: Any = {**_count(found), "by_day": by_day}
        counted: FeedbackStats = stats
        return counted

    async def delete_feedback(self, feedback_id: str) -> None:
        """See `Feedback.delete`."""
        self._check_open()
        key = arguments.plain_text("feedback_id", feedback_id)
        with self._store.feedback.writing() as entries:
            entries.pop(key, None)


def _same(entry: dict[str, Any], given: dict[str, Any]) -> bool:
    names = given.keys() - {"metadata"}
    return all(entry[name] == given[name] for name in names) and values.equal(entry["metadata"], given["metadata"])


def _count(entries: list[dict[str, Any]]) -> dict[str, int]:
    ratings = [entry["rating"] for entry in entries]
    return {
        "total": len(ratings),
        "positive": ratings.count(1),
        "negative": ratings.count(-1),
        "neutral": ratings.count(0),
    }


def _record(entry: dict[str, Any]) -> FeedbackEntry:
    return {
        "feedback_id": entry["feedback_id"],
        "session_id": entry["session_id"],
        "message_id": entry["message_id"],
        "rating": entry["rating"],
        "comment": entry["comment"],
        "corrected_answer": entry["corrected_answer"],
        "metadata": values.copy_json(entry["metadata"]),
        "created_at": entry["created_at"],
    }
