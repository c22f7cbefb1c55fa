"""Memories that break clauses on the entries of feedback."""

# ruff: noqa: D101, D102 - each class name describes the break; the methods are those of the reference model

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from flux_memory import ConflictError
from flux_memory.testkit.mutants.catalogue import Sound, caught_by


class _ShowsOtherEntries(Sound):
    """Changes the entries that are shown."""

    def shown(self, entry: Any) -> Any:
        raise NotImplementedError

    async def get_feedback(self, *args: Any, **given: Any) -> Any:
        return [self.shown(entry) for entry in await super().get_feedback(*args, **given)]


@caught_by("FM-FBK-001", reference_only=True)
class ShowsNoAnswerAsEmpty(_ShowsOtherEntries):
    def shown(self, entry: Any) -> Any:
        return entry | {"corrected_answer": entry["corrected_answer"] or ""}


@caught_by("FM-FBK-001", reference_only=True)
class ShowsTheOwner(_ShowsOtherEntries):
    def shown(self, entry: Any) -> Any:
        return entry | {"user_id": ""}


@caught_by("FM-FBK-001", reference_only=True)
class CutsComments(Sound):
    async def add_feedback(self, *args: Any, comment: Any, **given: Any) -> Any:
        cut = comment[:1_000] if isinstance(comment, str) else comment
        return await super().add_feedback(*args, comment=cut, **given)


@caught_by("FM-FBK-002", reference_only=True)
class LowersFeedbackIds(Sound):
    async def add_feedback(self, *args: Any, feedback_id: Any, **given: Any) -> Any:
        lower = feedback_id.lower() if isinstance(feedback_id, str) else feedback_id
        await super().add_feedback(*args, feedback_id=lower, **given)
        return feedback_id


@caught_by("FM-FBK-002", reference_only=True)
class CutsFeedbackIds(Sound):
    async def add_feedback(self, *args: Any, feedback_id: Any, **given: Any) -> Any:
        cut = feedback_id[:36] if isinstance(feedback_id, str) and len(feedback_id) <= 255 else feedback_id
        return await super().add_feedback(*args, feedback_id=cut, **given)


@caught_by("FM-FBK-003", reference_only=True)
class RepeatedFeedbackIsAConflict(Sound):
    async def add_feedback(self, *args: Any, feedback_id: Any, **given: Any) -> Any:
        with self._store.feedback.reading() as entries:
            known = isinstance(feedback_id, str) and feedback_id in entries
        if known:
            raise ConflictError(feedback_id)
        return await super().add_feedback(*args, feedback_id=feedback_id, **given)


@caught_by("FM-FBK-003", reference_only=True)
class RepeatedFeedbackIsRenewed(Sound):
    async def add_feedback(self, *args: Any, **given: Any) -> Any:
        made = await super().add_feedback(*args, **given)
        with self._store.feedback.writing() as entries:
            entries[made]["created_at"] = self._now()
        return made


@caught_by("FM-FBK-004", reference_only=True)
class OverwritesFeedback(Sound):
    async def add_feedback(self, *args: Any, feedback_id: Any, **given: Any) -> Any:
        with self._store.feedback.writing() as entries:
            if isinstance(feedback_id, str):
                entries.pop(feedback_id, None)
        return await super().add_feedback(*args, feedback_id=feedback_id, **given)


@caught_by("FM-FBK-004", reference_only=True)
class TakesAnyEntryForARetry(Sound):
    async def add_feedback(self, *args: Any, feedback_id: Any, **given: Any) -> Any:
        try:
            return await super().add_feedback(*args, feedback_id=feedback_id, **given)
        except ConflictError:
            return feedback_id


@caught_by("FM-FBK-005", reference_only=True)
class ClampsRatings(Sound):
    async def add_feedback(self, session_id: Any, rating: Any, **given: Any) -> Any:
        clamped = max(-1, min(rating, 1)) if type(rating) is int else rating
        return await super().add_feedback(session_id, clamped, **given)


@caught_by("FM-FBK-005", reference_only=True)
class TakesBoolsForRatings(Sound):
    async def add_feedback(self, session_id: Any, rating: Any, **given: Any) -> Any:
        return await super().add_feedback(session_id, int(rating) if type(rating) is bool else rating, **given)


class _Sorts(Sound):
    """Sorts all entries in another way before it takes a page."""

    def place(self, entry: Any) -> Any:
        raise NotImplementedError

    async def get_feedback(self, limit: Any, offset: Any, **given: Any) -> Any:
        await super().get_feedback(limit, offset, **given)
        whole = sorted(await super().get_feedback(None, 0, **given), key=self.place, reverse=True)
        return whole[offset:] if limit is None else whole[offset : offset + limit]


@caught_by("FM-FBK-006", reference_only=True)
class OldestFeedbackFirst(_Sorts):
    def place(self, entry: Any) -> Any:
        return -datetime.fromisoformat(entry["created_at"]).timestamp()


@caught_by("FM-FBK-006", reference_only=True)
class TiesIgnoreCase(_Sorts):
    def place(self, entry: Any) -> Any:
        return entry["created_at"], entry["feedback_id"].casefold()


class _Filters(Sound):
    """Changes the filters that it uses."""

    def used(self, given: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    async def get_feedback(self, *args: Any, **given: Any) -> Any:
        return await super().get_feedback(*args, **self.used(given))


@caught_by("FM-FBK-007", reference_only=True)
class IgnoresARatingOfZero(_Filters):
    def used(self, given: dict[str, Any]) -> dict[str, Any]:
        return given | {"rating": given["rating"] or None} if type(given["rating"]) is int else given


@caught_by("FM-FBK-007", reference_only=True)
class TrimsFilters(_Filters):
    def used(self, given: dict[str, Any]) -> dict[str, Any]:
        return {name: value.strip() if isinstance(value, str) else value for name, value in given.items()}


@caught_by("FM-FBK-007", reference_only=True)
class UsesOneFilterOnly(_Filters):
    def used(self, given: dict[str, Any]) -> dict[str, Any]:
        return given | {"message_id": None} if given["session_id"] is not None else given


@caught_by("FM-FBK-008")
class FiltersAPage(Sound):
    """Takes the page first, and then filters it; on any memory."""

    @property
    def feedback(self) -> Any:
        feedback = super().feedback

        class FeedbackOfPages:
            add, stats, delete = feedback.add, feedback.stats, feedback.delete

            async def get(self, limit: Any = 50, offset: Any = 0, **filters: Any) -> Any:
                await feedback.get(limit, offset, **filters)
                wanted = {name: value for name, value in filters.items() if value is not None}
                page: list[Any] = await feedback.get(limit, offset)
                return [entry for entry in page if all(entry[name] == value for name, value in wanted.items())]

        return FeedbackOfPages()


@caught_by("FM-FBK-008", reference_only=True)
class LimitsAnExport(Sound):
    async def get_feedback(self, limit: Any, *args: Any, **given: Any) -> Any:
        return await super().get_feedback(50 if limit is None else limit, *args, **given)


class _Counts(Sound):
    """Counts entries whose times are moved, so that they belong to other days."""

    hours = 0

    async def count_feedback(self, *, since: Any) -> Any:
        shift = timedelta(hours=self.hours)
        with self._store.feedback.writing() as entries:
            for entry in entries.values():
                moved = datetime.fromisoformat(entry["created_at"]) + shift
                entry["created_at"] = moved.isoformat(timespec="microseconds")
        try:
            return await super().count_feedback(since=since)
        finally:
            with self._store.feedback.writing() as entries:
                for entry in entries.values():
                    moved = datetime.fromisoformat(entry["created_at"]) - shift
                    entry["created_at"] = moved.isoformat(timespec="microseconds")


@caught_by("FM-FBK-009", reference_only=True)
class CountsDaysOfSeoul(_Counts):
    hours = 9


@caught_by("FM-FBK-009", reference_only=True)
class CountsNeutralAsPositive(Sound):
    async def count_feedback(self, **given: Any) -> Any:
        counted = await super().count_feedback(**given)
        return counted | {"positive": counted["positive"] + counted["neutral"], "neutral": 0}


@caught_by("FM-FBK-010", reference_only=True)
class SinceIsExclusive(Sound):
    async def count_feedback(self, *, since: Any) -> Any:
        later = since + timedelta(microseconds=1) if isinstance(since, datetime) else since
        return await super().count_feedback(since=later)


@caught_by("FM-FBK-010", reference_only=True)
class SinceDropsItsZone(Sound):
    async def count_feedback(self, *, since: Any) -> Any:
        zoned = isinstance(since, datetime) and since.tzinfo is not None
        return await super().count_feedback(
            since=since.replace(tzinfo=datetime.fromisoformat("2026-01-01T00:00+00:00").tzinfo) if zoned else since
        )


@caught_by("FM-FBK-011", reference_only=True)
class RemovesNulsFromComments(Sound):
    async def add_feedback(self, *args: Any, comment: Any, **given: Any) -> Any:
        clean = comment.replace("\x00", "") if isinstance(comment, str) else comment
        return await super().add_feedback(*args, comment=clean, **given)


@caught_by("FM-FBK-011", reference_only=True)
class TakesEmptyMessageIds(Sound):
    async def add_feedback(self, *args: Any, message_id: Any, **given: Any) -> Any:
        return await super().add_feedback(*args, message_id=None if message_id == "" else message_id, **given)
