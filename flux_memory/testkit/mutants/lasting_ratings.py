"""Memories that break clauses on the life of feedback."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of the reference model

from __future__ import annotations

import asyncio
from typing import Any

from flux_memory import InvalidInputError, SessionNotFoundError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by
from flux_memory.testkit.reference.ratings import ReferenceFeedback


@caught_by("FM-FBK-012", reference_only=True)
class FeedbackNeedsItsSession(Sound):
    async def add_feedback(self, session_id: Any, *args: Any, **given: Any) -> Any:
        if await super().get_session(session_id) is None:
            raise SessionNotFoundError(session_id)
        return await super().add_feedback(session_id, *args, **given)


@caught_by("FM-FBK-012", reference_only=True)
class FeedbackIsActivity(Sound):
    async def add_feedback(self, session_id: Any, *args: Any, **given: Any) -> Any:
        made = await super().add_feedback(session_id, *args, **given)
        if (row := await super().get_session(session_id)) is not None:
            await super().update_session_title(session_id, row["title"])
        return made


@caught_by("FM-FBK-013", reference_only=True)
class FeedbackGoesWithItsSession(Sound):
    async def delete_session(self, session_id: Any, **given: Any) -> None:
        await super().delete_session(session_id, **given)
        with self._store.feedback.writing() as entries:
            for key in [key for key, entry in entries.items() if entry["session_id"] == session_id]:
                del entries[key]


@caught_by("FM-FBK-014", reference_only=True)
class RetentionErasesFeedback(Sound):
    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> Any:
        removed = await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)
        if inactive_since is not None and user_id is not None:
            await super().delete_sessions(user_id=user_id)
        return removed


class _Erases(Sound):
    """Keeps some of the entries that an erasure should remove, or the other way round."""

    def keeps(self, entry: Any, user_id: Any, sessions: Any) -> bool:
        raise NotImplementedError

    async def delete_sessions(self, *, user_id: Any = None, inactive_since: Any = None) -> Any:
        with self._store.reading() as sessions, self._store.feedback.reading() as entries:
            kept = {key: dict(entry) for key, entry in entries.items() if self.keeps(entry, user_id, sessions)}
        removed = await super().delete_sessions(user_id=user_id, inactive_since=inactive_since)
        if user_id is not None and inactive_since is None:
            with self._store.feedback.writing() as entries:
                entries.clear()
                entries.update(kept)
        return removed


@caught_by("FM-FBK-015", reference_only=True)
class ErasesOnLiveSessionsOnly(_Erases):
    def keeps(self, entry: Any, user_id: Any, sessions: Any) -> bool:
        return bool(sessions.get(entry["session_id"], {}).get("user_id") != user_id)


@caught_by("FM-FBK-015", reference_only=True)
class ErasesByOwnerOnly(_Erases):
    def keeps(self, entry: Any, user_id: Any, sessions: Any) -> bool:
        del sessions
        return bool(not user_id or entry["user_id"] != user_id)


@caught_by("FM-FBK-015", reference_only=True)
class ErasesWithoutOwnerToo(_Erases):
    def keeps(self, entry: Any, user_id: Any, sessions: Any) -> bool:
        return entry["user_id"] not in {"", user_id} or (not user_id and entry["session_id"] in sessions)


@caught_by("FM-FBK-016", reference_only=True)
class ClearingKeepsFeedback(Sound):
    async def clear_all(self) -> None:
        with self._store.feedback.reading() as entries:
            kept = dict(entries)
        await super().clear_all()
        with self._store.feedback.writing() as entries:
            entries.update(kept)


@caught_by("FM-FBK-017", reference_only=True)
class UnknownFeedbackIsAnError(Sound):
    async def delete_feedback(self, feedback_id: Any) -> None:
        with self._store.feedback.reading() as entries:
            known = not isinstance(feedback_id, str) or feedback_id in entries
        if not known:
            raise InvalidInputError("feedback_id is unknown")
        await super().delete_feedback(feedback_id)


@caught_by("FM-FBK-017", reference_only=True)
class DeletesFeedbackByTrimmedId(Sound):
    async def delete_feedback(self, feedback_id: Any) -> None:
        await super().delete_feedback(feedback_id.strip() if isinstance(feedback_id, str) else feedback_id)


@caught_by("FM-FBK-017", reference_only=True)
class DeletesFeedbackOfAnyCase(Sound):
    async def delete_feedback(self, feedback_id: Any) -> None:
        await super().delete_feedback(feedback_id)
        with self._store.feedback.writing() as entries:
            for key in [key for key in entries if key.casefold() == feedback_id.casefold()]:
                del entries[key]


@caught_by("FM-FBK-018", reference_only=True)
class RemembersFeedback(Sound):
    async def get_feedback(self, *args: Any, **given: Any) -> Any:
        seen: dict[Any, Any] = self.__dict__.setdefault("seen_feedback", {})
        if (args, str(given)) not in seen:
            seen[args, str(given)] = await super().get_feedback(*args, **given)
        return seen[args, str(given)]


@caught_by("FM-FBK-018", reference_only=True)
class RemembersFeedbackByRating(Sound):
    async def get_feedback(self, *args: Any, rating: Any = None, **given: Any) -> Any:
        seen: dict[Any, Any] = self.__dict__.setdefault("seen_by_rating", {})
        if rating is None or rating not in seen:
            seen[rating] = await super().get_feedback(*args, rating=rating, **given)
        return seen[rating]


@caught_by("FM-FBK-018", reference_only=True)
class RemembersNumbers(Sound):
    async def count_feedback(self, *, since: Any) -> Any:
        seen: dict[Any, Any] = self.__dict__.setdefault("seen_numbers", {})
        if since not in seen:
            seen[since] = await super().count_feedback(since=since)
        return seen[since]


@caught_by("FM-FBK-019", reference_only=True)
class LooksBeforeItAdds(Sound):
    """Looks for the id first, and then overwrites what another caller has added meanwhile."""

    async def add_feedback(self, *args: Any, feedback_id: Any, **given: Any) -> Any:
        with self._store.feedback.reading() as entries:
            known = isinstance(feedback_id, str) and feedback_id in entries
        await asyncio.sleep(0)
        if not known and isinstance(feedback_id, str):
            with self._store.feedback.writing() as entries:
                entries.pop(feedback_id, None)
        return await super().add_feedback(*args, feedback_id=feedback_id, **given)


@caught_by("FM-FBK-020", reference_only=True)
class AddsInTwoSteps(Sound):
    async def add_feedback(self, *args: Any, comment: Any, metadata: Any, **given: Any) -> Any:
        made = await super().add_feedback(*args, comment=comment, metadata=None, **given)
        await asyncio.sleep(0)
        with self._store.feedback.writing() as entries:
            entries[made]["metadata"] = metadata or {}
        return made


@caught_by("FM-FBK-021", reference_only=True)
class FeedbackIgnoresClosing(Sound):
    @property
    def feedback(self) -> Any:
        memory = self

        class OpenFeedback(ReferenceFeedback):
            async def stats(self, **given: Any) -> Any:
                closed, memory._closed = memory._closed, False
                try:
                    return await super().stats(**given)
                finally:
                    memory._closed = closed

        return OpenFeedback(memory)


@caught_by("FM-FBK-021", reference_only=True)
class ChecksRatingsBeforeClosing(Sound):
    async def add_feedback(self, session_id: Any, rating: Any, **given: Any) -> Any:
        if not isinstance(rating, int):
            raise InvalidInputError("rating must be an int")
        return await super().add_feedback(session_id, rating, **given)


class _RemembersOwners(Sound):
    """Keeps the owner of a feedback id where a deletion does not reach it."""

    def forget(self) -> None:
        """Do nothing: the owners stay."""

    async def add_feedback(self, *args: Any, feedback_id: Any, **given: Any) -> Any:
        owners = self.__dict__.setdefault("owners", {})
        made = await super().add_feedback(*args, feedback_id=feedback_id, **given)
        with self._store.feedback.writing() as entries:
            entries[made]["user_id"] = owners.setdefault(made, entries[made]["user_id"])
        return made

    async def delete_sessions(self, **given: Any) -> Any:
        removed = await super().delete_sessions(**given)
        self.forget()
        return removed


@caught_by("FM-FBK-029", reference_only=True)
class DeletedFeedbackKeepsItsOwner(_RemembersOwners):
    def forget(self) -> None:
        self.__dict__.pop("owners", None)


@caught_by("FM-FBK-029", reference_only=True)
class ClearedFeedbackKeepsItsOwner(_RemembersOwners):
    async def delete_feedback(self, feedback_id: Any) -> None:
        self.__dict__.get("owners", {}).pop(feedback_id, None)
        await super().delete_feedback(feedback_id)

    def forget(self) -> None:
        self.__dict__.pop("owners", None)


@caught_by("FM-FBK-029", reference_only=True)
class FeedbackIsRestored(Sound):
    """Brings back the texts of a deleted entry with its id."""

    async def delete_feedback(self, feedback_id: Any) -> None:
        with self._store.feedback.reading() as entries:
            self.__dict__.setdefault("deleted", {})[feedback_id] = entries.get(feedback_id, {}).get("comment", "")
        await super().delete_feedback(feedback_id)

    async def add_feedback(self, *args: Any, feedback_id: Any, comment: Any, **given: Any) -> Any:
        old = self.__dict__.get("deleted", {}).get(feedback_id, "")
        return await super().add_feedback(*args, feedback_id=feedback_id, comment=comment or old, **given)
