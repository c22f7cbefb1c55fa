"""Selects the messages of a session in a SQLite memory."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from flux_memory.backends.sqlite.fetching import fetch

SELECT_HISTORY: Final = """
SELECT id, role, content, metadata, created_at
FROM messages
WHERE session_id = ?
ORDER BY seq DESC
LIMIT ?
"""
SELECT_HISTORY_BEFORE: Final = """
SELECT id, role, content, metadata, created_at
FROM messages
WHERE session_id = ?
  AND seq < (SELECT seq FROM messages WHERE session_id = ? AND id = ?)
ORDER BY seq DESC
LIMIT ?
"""
SELECT_HISTORY_AFTER: Final = """
SELECT id, role, content, metadata, created_at
FROM messages
WHERE session_id = ?
  AND seq > (SELECT seq FROM messages WHERE session_id = ? AND id = ?)
ORDER BY seq
LIMIT ?
"""
SELECT_MESSAGE: Final = """
SELECT id, role, content, metadata, created_at
FROM messages
WHERE session_id = ? AND id = ?
"""


def select_history(
    session_id: str, limit: int, before: str | None, after: str | None, db: sqlite3.Connection
) -> list[tuple[Any, ...]]:
    """Return the rows of a history, newest first.

    Args:
        session_id: The session's id.
        limit: How many.
        before: The id of the message that they precede, or `None`.
        after: The id of the message that they follow, or `None`; with it, the oldest ones.
        db: The connection.
    """
    if after is not None:
        return fetch(SELECT_HISTORY_AFTER, (session_id, session_id, after, limit), db)[::-1]
    if before is not None:
        return fetch(SELECT_HISTORY_BEFORE, (session_id, session_id, before, limit), db)
    return fetch(SELECT_HISTORY, (session_id, limit), db)
