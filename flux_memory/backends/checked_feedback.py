"""The feedback of an engine: checks the arguments and builds the results around the rows that the engine keeps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from flux_memory import records
from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.long_calls import build_off_loop
from flux_memory.feedback import Feedback, FeedbackEntry, FeedbackStats
from flux_memory.records.ratings import DatedFeedback, ImportOutcome
from flux_memory.shapes import Metadata

Run = Callable[..., Awaitable[Any]]
"""Runs a call with an engine's ways to its store, on the right event loop; observers see the keyword `operation`."""


class CheckedFeedback(Feedback):
    """The feedback of a memory; an engine implements what it does with checked values.

    Args:
        run: Runs a call with the handle's ways to its store: they have `long`, the handle's long calls, and `timeout`.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

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
        async def call(access: Any) -> str:
            row, left = await access.long.check_in_order(session_id, seconds_for(access.timeout), check)
            await self._add(access, row, left)
            return str(row.id)

        check = partial(
            records.check_new_feedback,
            session_id,
            rating,
            message_id=message_id,
            comment=comment,
            corrected_answer=corrected_answer,
            metadata=metadata,
            feedback_id=feedback_id,
        )
        return str(await self._run(call, operation="feedback.add"))

    async def get(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        session_id: str | None = None,
        message_id: str | None = None,
        rating: int | None = None,
    ) -> list[FeedbackEntry]:
        async def call(access: Any) -> list[FeedbackEntry]:
            criteria = records.check_feedback_filter(session_id, message_id, rating)
            page = (records.check_limit(limit), records.check_count("offset", offset))
            rows = await self._select(access, criteria, page)
            return await build_off_loop(partial(records.build_feedback, rows))

        found: list[FeedbackEntry] = await self._run(call, operation="feedback.get")
        return found

    async def stats(self, *, since: datetime | None = None) -> FeedbackStats:
        async def call(access: Any) -> FeedbackStats:
            moment = None if since is None else records.check_moment("since", since)
            return records.build_stats(await self._count(access, moment))

        found: FeedbackStats = await self._run(call, operation="feedback.stats")
        return found

    async def delete(self, feedback_id: str) -> None:
        async def call(access: Any) -> None:
            await self._delete(access, records.check_lookup("feedback_id", feedback_id))

        await self._run(call, operation="feedback.delete")

    async def add_dated(self, entries: Sequence[DatedFeedback]) -> list[ImportOutcome]:
        """Add entries with their own times, all in one transaction, and return what became of each."""
        outcomes: list[ImportOutcome] = await self._run(
            lambda access: self._add_dated(access, entries), operation="feedback.add_dated"
        )
        return outcomes

    async def read_on(self, after: tuple[str, str], limit: int) -> list[FeedbackEntry]:
        """Return the oldest entries that follow a time and an id, oldest first."""

        async def call(access: Any) -> list[FeedbackEntry]:
            rows = await self._select_following(access, after, limit)
            return await build_off_loop(partial(records.build_feedback, rows))

        found: list[FeedbackEntry] = await self._run(call, operation="feedback.read_on")
        return found

    @abstractmethod
    async def _add(self, access: Any, row: records.FeedbackRow, seconds: float) -> None:
        """Store an entry within a number of seconds."""

    @abstractmethod
    async def _select(self, access: Any, criteria: Mapping[str, Any], page: tuple[int, int]) -> Sequence[Any]:
        """Return the rows that meet the criteria, newest first; the page is a limit and an offset."""

    @abstractmethod
    async def _count(self, access: Any, since: str | None) -> Sequence[Any]:
        """Return each day since a time, with its numbers of positive, negative and neutral entries."""

    @abstractmethod
    async def _delete(self, access: Any, feedback_id: str) -> None:
        """Delete an entry if it exists."""

    @abstractmethod
    async def _add_dated(self, access: Any, entries: Sequence[DatedFeedback]) -> list[ImportOutcome]:
        """See `add_dated`."""

    @abstractmethod
    async def _select_following(self, access: Any, after: tuple[str, str], limit: int) -> Sequence[Any]:
        """Return the oldest rows that follow a time and an id; both are empty at the beginning."""
