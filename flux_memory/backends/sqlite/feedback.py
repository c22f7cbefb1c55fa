"""`SQLiteFeedback`: the feedback of a SQLite file, and its SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

from flux_memory import records
from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.long_calls import LongCalls, build_off_loop
from flux_memory.backends.sqlite.errors import check_changed
from flux_memory.backends.sqlite.fetching import fetch
from flux_memory.backends.sqlite.queue import Work
from flux_memory.errors import ConflictError
from flux_memory.feedback import Feedback, FeedbackEntry, FeedbackStats
from flux_memory.records import timestamps
from flux_memory.records.ratings import DatedFeedback, Stored
from flux_memory.shapes import Metadata

SELECT_SAME_ID: Final = """
SELECT session_id, message_id, rating, comment, corrected_answer, metadata FROM feedback WHERE id = ?
"""
SELECT_OWNER: Final = "SELECT user_id FROM sessions WHERE id = ?"
INSERT_FEEDBACK: Final = """
INSERT INTO feedback (id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
SELECT_FEEDBACK: Final = """
SELECT id, session_id, message_id, rating, comment, corrected_answer, metadata, created_at
FROM feedback
{where}
ORDER BY created_at DESC, id DESC
LIMIT ? OFFSET ?
"""
SELECT_FOLLOWING: Final = """
SELECT id, session_id, message_id, rating, comment, corrected_answer, metadata, created_at
FROM feedback
WHERE (created_at, id) > (?, ?)
ORDER BY created_at, id
LIMIT ?
"""
SELECT_STATS: Final = """
SELECT substr(created_at, 1, 10), sum(rating > 0), sum(rating < 0), sum(rating = 0)
FROM feedback
WHERE created_at >= ?
GROUP BY 1
ORDER BY 1
"""
DELETE_ENTRY: Final = "DELETE FROM feedback WHERE id = ?"
DELETE_OF_SESSION: Final = "DELETE FROM feedback WHERE session_id = ? AND user_id IN ('', ?)"
DELETE_SOME_OF_USER: Final = """
DELETE FROM feedback WHERE id IN (SELECT id FROM feedback WHERE user_id = ? ORDER BY created_at, id LIMIT ?)
"""
SELECT_ANY_OF_USER: Final = "SELECT 1 FROM feedback WHERE user_id = ? LIMIT 1"
DELETE_FEEDBACK: Final = "DELETE FROM feedback"
COUNT_FEEDBACK: Final = "SELECT count(*) FROM feedback"

_BATCH_ENTRIES: Final = 2_000
"""Entries that are erased in one transaction; other processes wait for it."""


class Access(NamedTuple):
    """The ways of a handle into its file."""

    read: Callable[[Work[Any]], Awaitable[Any]]
    write: Callable[[Work[Any], float | None], Awaitable[Any]]
    long: LongCalls
    timeout: float
    """Seconds of a call outside any `deadline()`."""


Run = Callable[..., Awaitable[Any]]
"""Runs a call with an `Access`, on the handle's home loop or its twin's; observers see the keyword `operation`."""


class SQLiteFeedback(Feedback):
    """The feedback of a `ConversationMemory`.

    Args:
        run: Runs a call with the handle's ways into its file.
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
        async def call(access: Access) -> str:
            seconds = seconds_for(access.timeout)
            row, left = await access.long.check_in_order(session_id, seconds, check)
            await access.write(partial(add_entry, row), left)
            return row.id

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
        async def call(access: Access) -> list[FeedbackEntry]:
            criteria = records.check_feedback_filter(session_id, message_id, rating)
            page = (records.check_limit(limit), records.check_count("offset", offset))
            rows = await access.read(partial(select_entries, criteria, page))
            return await build_off_loop(partial(records.build_feedback, rows))

        found: list[FeedbackEntry] = await self._run(call, operation="feedback.get")
        return found

    async def stats(self, *, since: datetime | None = None) -> FeedbackStats:
        async def call(access: Access) -> FeedbackStats:
            moment = "" if since is None else records.check_moment("since", since)
            return records.build_stats(await access.read(partial(fetch, SELECT_STATS, (moment,))))

        found: FeedbackStats = await self._run(call, operation="feedback.stats")
        return found

    async def delete(self, feedback_id: str) -> None:
        async def call(access: Access) -> None:
            await access.write(partial(delete_entry, records.check_lookup("feedback_id", feedback_id)), None)

        await self._run(call, operation="feedback.delete")

    async def add_dated(self, entries: Sequence[DatedFeedback]) -> list[Stored]:
        """Add entries with their own times, all in one transaction, and return what became of each."""

        async def call(access: Access) -> list[Stored]:
            outcomes: list[Stored] = await access.write(partial(add_entries, entries), None)
            return outcomes

        outcomes: list[Stored] = await self._run(call, operation="feedback.add_dated")
        return outcomes

    async def read_on(self, after: tuple[str, str], limit: int) -> list[FeedbackEntry]:
        """Return the oldest entries that follow a time and an id, oldest first."""

        async def call(access: Access) -> list[FeedbackEntry]:
            rows = await access.read(partial(fetch, SELECT_FOLLOWING, (*after, limit)))
            return await build_off_loop(partial(records.build_feedback, rows))

        found: list[FeedbackEntry] = await self._run(call, operation="feedback.read_on")
        return found


def add_entries(entries: Sequence[DatedFeedback], db: sqlite3.Connection) -> list[Stored]:
    """Add entries that are not stored, and return what became of each."""
    outcomes: list[Stored] = []
    for row, created_at in entries:
        try:
            outcomes.append(Stored.ADDED if add_entry(row, db, created_at) else Stored.PRESENT)
        except ConflictError:
            outcomes.append(Stored.TAKEN)
    return outcomes


def add_entry(row: records.FeedbackRow, db: sqlite3.Connection, created_at: str | None = None) -> bool:
    """Add an entry and return `True`; return `False` if it is stored.

    Args:
        row: The entry.
        db: The connection, in a transaction.
        created_at: The time of an entry that is imported; now by default.

    Raises:
        ConflictError: Another entry has the id.
    """
    stored = fetch(SELECT_SAME_ID, (row.id,), db)
    if stored:
        if not row.same_as(stored[0]):
            raise records.feedback_id_taken(row.id)
        return False
    owner = fetch(SELECT_OWNER, (row.session_id,), db)
    user_id = (owner[0][0] or "") if owner else ""
    id_, session_id, message_id, *content = row
    values = (id_, session_id, message_id, user_id, *content, created_at or timestamps.utc_now())
    check_changed(db.execute(INSERT_FEEDBACK, values).rowcount)
    return True


def select_entries(
    criteria: Mapping[str, str | int], page: tuple[int, int], db: sqlite3.Connection
) -> list[tuple[Any, ...]]:
    """Return the rows of a page of entries, newest first.

    Args:
        criteria: The values that columns must have, by the column's name.
        page: The limit and the offset.
        db: The connection.
    """
    where = " AND ".join(f"{column} = ?" for column in criteria)
    return fetch(SELECT_FEEDBACK.format(where=where and f"WHERE {where}"), (*criteria.values(), *page), db)


def delete_entry(feedback_id: str, db: sqlite3.Connection) -> None:
    """Delete an entry if it exists."""
    db.execute(DELETE_ENTRY, (feedback_id,))
    check_changed(len(fetch(SELECT_SAME_ID, (feedback_id,), db)), 0)


def erase_of_sessions(session_ids: Iterable[str], user_id: str, db: sqlite3.Connection) -> None:
    """Erase the feedback on sessions of a user, but for that of other users on earlier sessions with the same ids."""
    db.executemany(DELETE_OF_SESSION, [(session_id, user_id) for session_id in session_ids])


def erase_some_of_user(user_id: str, db: sqlite3.Connection) -> int:
    """Erase a batch of a user's feedback, and return how many entries; 0 if there are none."""
    erased = db.execute(DELETE_SOME_OF_USER, (user_id, _BATCH_ENTRIES)).rowcount
    if not erased:
        check_changed(len(fetch(SELECT_ANY_OF_USER, (user_id,), db)), 0)
    return erased


def clear_feedback(db: sqlite3.Connection) -> None:
    """Delete every entry."""
    db.execute(DELETE_FEEDBACK)
    check_changed(fetch(COUNT_FEEDBACK, (), db)[0][0], 0)
