"""Feedback as records of a backup, of stores whose schema has the table `feedback`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

from flux_memory.errors import BackupError
from flux_memory.transfer.rows.canonical import Canonicalizer
from flux_memory.transfer.rows.postgres_time import microseconds, time_text

COLUMNS: Final = (
    "id",
    "session_id",
    "message_id",
    "user_id",
    "rating",
    "comment",
    "corrected_answer",
    "metadata",
    "created_at",
)
_METADATA: Final = COLUMNS.index("metadata")
_CREATED_AT: Final = COLUMNS.index("created_at")
_SESSION: Final = COLUMNS.index("session_id")

SQLITE_HAS_TABLE: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'feedback'"
SQLITE_SELECT: Final = """
SELECT id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at
FROM feedback
ORDER BY CAST(id AS TEXT)
"""
SQLITE_INSERT: Final = """
INSERT INTO feedback (id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
POSTGRES_HAS_TABLE: Final = (
    "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'feedback' AND relkind = 'r' AND pg_table_is_visible(oid))"
)
# The time is text in the form of the records.
POSTGRES_SELECT: Final = """
SELECT
    id::text, session_id::text, message_id::text, user_id::text, to_jsonb(rating)::text, comment::text,
    corrected_answer::text, metadata::text, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
FROM feedback
ORDER BY id::text COLLATE "C"
"""


def encode(values: Sequence[Any], canonicalizer: Canonicalizer) -> bytes:
    """Return a row as one JSON object without a line end, equal for equal rows of both engines.

    Args:
        values: The values of `COLUMNS`; metadata is JSON text or NULL, the time is a text.
        canonicalizer: Brings metadata into the form that PostgreSQL prints.

    Raises:
        BackupError: The row has metadata or a time that cannot be read.
    """
    row = dict(zip(COLUMNS, values, strict=True))
    try:
        metadata = canonicalizer.canonical(row.pop("metadata") or "{}")
        row["created_at"] = time_text(microseconds(row["created_at"]))
        head = json.dumps({"kind": "feedback", **row}, ensure_ascii=False, separators=(",", ":"))
        return f'{head[:-1]},"metadata":{metadata}}}'.encode()
    except (ValueError, OverflowError, TypeError) as error:
        raise BackupError(
            f"the feedback record {str(row['id'])!r:.60} cannot be read: {error}; correct it, and run again"
        ) from error


def decode(head: dict[str, Any], metadata: str) -> tuple[Any, ...]:
    """Return the values of `COLUMNS` of a record whose metadata was cut off."""
    row = {**head, "metadata": metadata}
    return tuple(row.get(column) for column in COLUMNS)


def session_of(values: Sequence[Any]) -> Any:
    """Return the session's id of a row."""
    return values[_SESSION]


def sqlite_has_feedback(db: sqlite3.Connection) -> bool:
    """Return whether a file has the table."""
    return db.execute(SQLITE_HAS_TABLE).fetchone() is not None


def read_sqlite(db: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """Iterate over the rows of a file in order of their ids; nothing if there is no table."""
    if sqlite_has_feedback(db):
        yield from db.execute(SQLITE_SELECT)


async def read_postgres(connection: Any) -> AsyncIterator[tuple[Any, ...]]:
    """Iterate over the rows of a database, in the caller's transaction; nothing if there is no table."""
    if not await connection.fetchval(POSTGRES_HAS_TABLE):
        return
    async for row in connection.cursor(POSTGRES_SELECT):
        values = list(row)
        values[4] = None if values[4] is None else json.loads(values[4])
        yield tuple(values)
