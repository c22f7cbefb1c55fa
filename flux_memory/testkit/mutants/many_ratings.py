"""Memories that break clauses on much feedback, long texts in it, and entries of other decades."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of the reference model

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from flux_memory import InvalidInputError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.mutants.shared import KIB, MIB, cut_text
from flux_memory.testkit.reference.ratings import ReferenceFeedback

PART = 100
"""Entries, or sessions, that are handled at a time."""


@caught_by("FM-FBK-022", reference_only=True)
class ListsAHundredRatings(Sound):
    async def get_feedback(self, limit: Any, offset: Any, **given: Any) -> Any:
        return (await super().get_feedback(limit, offset, **given))[:PART]


@caught_by("FM-FBK-022", reference_only=True)
class CountsAHundredRatings(Sound):
    async def count_feedback(self, **given: Any) -> Any:
        found: Any = await super().count_feedback(**given)
        return found | {"total": min(found["total"], PART)}


class _KeepsFeedback(Sound):
    """Brings back what a call has erased, from some entry on."""

    async def keeping(self, call: Any, first: int) -> Any:
        with self._store.feedback.reading() as entries:
            before = dict(entries)
        found = await call
        with self._store.feedback.writing() as entries:
            erased = {key: entry for key, entry in before.items() if key not in entries}
            entries.update(list(erased.items())[first:])
        return found


@caught_by("FM-FBK-022", reference_only=True)
class ErasesAHundredRatings(_KeepsFeedback):
    async def delete_sessions(self, **given: Any) -> Any:
        return await self.keeping(super().delete_sessions(**given), PART)


@caught_by("FM-FBK-022", reference_only=True)
class ClearsAHundredRatings(_KeepsFeedback):
    async def clear_all(self) -> None:
        await self.keeping(super().clear_all(), PART)


@caught_by("FM-FBK-023", reference_only=True)
class ErasesFeedbackWithItsSessions(_KeepsFeedback):
    """Erases nothing for a user without sessions."""

    async def delete_sessions(self, *, user_id: Any = None, **given: Any) -> Any:
        if user_id and not await super().count_sessions(user_id=user_id):
            return await self.keeping(super().delete_sessions(user_id=user_id, **given), 0)
        return await super().delete_sessions(user_id=user_id, **given)


@caught_by("FM-FBK-023", reference_only=True)
class ErasesFeedbackWithTheLastPart(_KeepsFeedback):
    """Erases the feedback in the transaction of a part that is not full; after full ones there is none."""

    async def delete_sessions(self, *, user_id: Any = None, **given: Any) -> Any:
        count = await super().count_sessions(user_id=user_id)
        call = super().delete_sessions(user_id=user_id, **given)
        return await (self.keeping(call, 0) if count and count % PART == 0 else call)


class _ErasesMore(Sound):
    """Erases feedback of users whose ids look alike, too."""

    def same(self, user_id: str, other: str) -> bool:
        raise NotImplementedError

    async def delete_sessions(self, *, user_id: Any = None, **given: Any) -> Any:
        found = await super().delete_sessions(user_id=user_id, **given)
        with self._store.feedback.writing() as entries:
            for key, entry in list(entries.items()):
                if user_id and self.same(user_id, entry["user_id"]):
                    del entries[key]
        return found


@caught_by("FM-FBK-024", reference_only=True)
class ErasesFeedbackOfAnyCase(_ErasesMore):
    def same(self, user_id: str, other: str) -> bool:
        return user_id.casefold() == other.casefold()


@caught_by("FM-FBK-024", reference_only=True)
class ErasesFeedbackOfPaddedUsers(_ErasesMore):
    def same(self, user_id: str, other: str) -> bool:
        return user_id.rstrip(" ") == other.rstrip(" ")


@caught_by("FM-FBK-025", reference_only=True)
class CutsLongComments(Sound):
    async def add_feedback(self, *args: Any, comment: Any, **given: Any) -> Any:
        return await super().add_feedback(*args, comment=cut_text(comment, 64 * KIB - 1), **given)


@caught_by("FM-FBK-025", reference_only=True)
class CutsLongCorrectedAnswers(Sound):
    async def add_feedback(self, *args: Any, corrected_answer: Any, **given: Any) -> Any:
        return await super().add_feedback(*args, corrected_answer=cut_text(corrected_answer, MIB), **given)


@caught_by("FM-FBK-025", reference_only=True)
class RefusesLargeMetadataOfFeedback(Sound):
    async def add_feedback(self, *args: Any, metadata: Any, **given: Any) -> Any:
        if len(str(metadata)) > 64 * KIB:
            raise InvalidInputError("metadata is too large for a column")
        return await super().add_feedback(*args, metadata=metadata, **given)


@caught_by("FM-FBK-026", reference_only=True)
class FeedbackEndsIn2038(Sound):
    def _now(self) -> str:
        return min(super()._now(), "2038-01-19T03:14:07.000000+00:00")


@caught_by("FM-FBK-026", reference_only=True)
class FeedbackExpires(Sound):
    @property
    def feedback(self) -> ReferenceFeedback:
        oldest = datetime.fromisoformat(self._now()) - timedelta(days=90)
        with self._store.feedback.writing() as entries:
            for key, entry in list(entries.items()):
                if datetime.fromisoformat(entry["created_at"]) < oldest:
                    del entries[key]
        return super().feedback


@caught_by("FM-FBK-027", reference_only=True)
class EmptyCorrectionsAreMissing(Sound):
    async def add_feedback(self, *args: Any, corrected_answer: Any, **given: Any) -> Any:
        return await super().add_feedback(*args, corrected_answer=corrected_answer or None, **given)


@caught_by("FM-FBK-027", reference_only=True)
class EmptyCorrectionsAreRetries(Sound):
    async def add_feedback(self, *args: Any, corrected_answer: Any, feedback_id: Any, **given: Any) -> Any:
        with self._store.feedback.reading() as entries:
            stored = entries.get(feedback_id, {"corrected_answer": corrected_answer})["corrected_answer"]
        same = (stored or None) == (corrected_answer or None)
        answer = stored if same else corrected_answer
        return await super().add_feedback(*args, corrected_answer=answer, feedback_id=feedback_id, **given)


@caught_by("FM-FBK-028", reference_only=True)
class ForksTakeFeedbackAlong(Sound):
    async def fork_session(self, session_id: Any, *, user_id: Any = None, **given: Any) -> Any:
        made = await super().fork_session(session_id, user_id=user_id, **given)
        with self._store.feedback.writing() as entries:
            for entry in entries.values():
                if user_id is not None and entry["session_id"] == session_id:
                    entry["user_id"] = user_id
        return made


@caught_by("FM-FBK-028", reference_only=True)
class PopsTakeTheirFeedback(Sound):
    async def pop_message(self, *args: Any) -> Any:
        popped = await super().pop_message(*args)
        with self._store.feedback.writing() as entries:
            for key, entry in list(entries.items()):
                if popped is not None and entry["message_id"] == popped["id"]:
                    del entries[key]
        return popped
