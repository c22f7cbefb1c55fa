"""`SQLiteFeedback`: the feedback of a SQLite file, and its SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from flux_memory import records
from flux_memory.backends.checked_feedback import CheckedFeedback
from flux_memory.backends.long_calls import LongCalls
from flux_memory.backends.sqlite.errors import check_changed
from flux_memory.backends.sqlite.fetching import fetch
from flux_memory.backends.sqlite.queue import Work
from flux_memory.errors import ConflictError
from flux_memory.records import timestamps
from flux_memory.records.ratings import DatedFeedback, ImportOutcome

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


class SQLiteFeedback(CheckedFeedback):
    """The feedback of a `ConversationMemory`."""

    async def _add(self, access: Access, row: records.FeedbackRow, seconds: float) -> None:
        await access.write(partial(add_entry, row), seconds)

    async def _select(self, access: Access, criteria: Mapping[str, Any], page: tuple[int, int]) -> Sequence[Any]:
        rows: Sequence[Any] = await access.read(partial(select_entries, criteria, page))
        return rows

    async def _count(self, access: Access, since: str | None) -> Sequence[Any]:
        rows: Sequence[Any] = await access.read(partial(fetch, SELECT_STATS, (since or "",)))
        return rows

    async def _delete(self, access: Access, feedback_id: str) -> None:
        await access.write(partial(delete_entry, feedback_id), None)

    async def _add_dated(self, access: Access, entries: Sequence[DatedFeedback]) -> list[ImportOutcome]:
        outcomes: list[ImportOutcome] = await access.write(partial(add_entries, entries), None)
        return outcomes

    async def _select_following(self, access: Access, after: tuple[str, str], limit: int) -> Sequence[Any]:
        rows: Sequence[Any] = await access.read(partial(fetch, SELECT_FOLLOWING, (*after, limit)))
        return rows


def add_entries(entries: Sequence[DatedFeedback], db: sqlite3.Connection) -> list[ImportOutcome]:
    """Add entries that are not stored, and return what became of each."""
    outcomes: list[ImportOutcome] = []
    for row, created_at in entries:
        try:
            outcomes.append(ImportOutcome.ADDED if add_entry(row, db, created_at) else ImportOutcome.PRESENT)
        except ConflictError:
            outcomes.append(ImportOutcome.TAKEN)
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
