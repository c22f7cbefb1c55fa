"""Feedback as records of a backup."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import orjson

from flux_memory.errors import BackupError
from flux_memory.transfer.rows.ratings import ValidFeedback
from flux_memory.transfer.rows.raw import FEEDBACK_FIELDS
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.reader import Source
from flux_memory.transfer.target.ratings import SELECT_DIGESTS

# The entries of a user are those whose owner the user is: they outlive their sessions.
DIGESTS_OF_USER: Final = SELECT_DIGESTS.replace(" ORDER BY", " WHERE user_id::text = $1 ORDER BY")
SELECT_FEEDBACK: Final = """
SELECT
    id::text, session_id::text, message_id::text, user_id::text, rating::int4, comment, corrected_answer,
    metadata::text, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
FROM feedback
/* where */
ORDER BY id::text COLLATE "C"
"""
WHERE: Final = "/* where */"
OF_USER: Final = "WHERE user_id::text = $1"


def feedback_line(row: ValidFeedback) -> bytes:
    """Return the line of an archive for an entry."""
    values: dict[str, Any] = row._asdict()
    metadata: str = values.pop("metadata")
    head = orjson.dumps({"kind": "feedback", **values})
    return head[:-1] + b',"metadata":' + metadata.encode() + b"}\n"


def read_line(record: dict[str, Any], metadata: str, validator: RowValidator) -> ValidFeedback:
    """Return the entry of a line, without its metadata, and these.

    Raises:
        ValueError: The entry is not valid.
    """
    raw = tuple(metadata if field == "metadata" else record.get(field) for field in FEEDBACK_FIELDS)
    row = validator.validate_feedback(raw, repeated=False)
    if isinstance(row, list):
        raise ValueError(  # noqa: TRY004 - a value is wrong, not a type
            f"the feedback is not valid: {row[0].column}: {row[0].detail}"
        )
    return row


def feedback_of(source: Source, user: str | None) -> Iterator[ValidFeedback]:
    """Iterate over the entries in a file, of all users or of one, in order of their ids.

    Raises:
        BackupError: An entry is not valid.
    """
    validator = RowValidator(source.naive)
    last: object = None
    for raw in source.feedback():
        row = validator.validate_feedback(raw, repeated=raw[0] == last)
        last = raw[0]
        if not isinstance(row, ValidFeedback):
            raise BackupError(
                f"the feedback entry {str(raw[0])!r:.80} is not valid: {row[0].column}: {row[0].detail}; correct it, "
                "and run again"
            )
        if user is None or row.user_id == user:
            yield row


async def database_feedback(connection: Any, user: str | None) -> AsyncIterator[ValidFeedback]:
    """Iterate over the entries in a database, of all users or of one, in the caller's transaction."""
    query, values = (SELECT_FEEDBACK, ()) if user is None else (SELECT_FEEDBACK.replace(WHERE, OF_USER), (user,))
    async for row in connection.cursor(query, *values):
        if None in {*row[:2], *row[3:6], *row[7:]}:
            raise BackupError(
                f"the feedback entry {str(row[0])!r:.80} has a NULL that has no meaning there; correct it"
            )
        yield ValidFeedback(*row)


async def database_digests(connection: Any, user: str | None) -> AsyncIterator[tuple[str, bytes]]:
    """Iterate over the id and the digest of each entry in a database, in the caller's transaction."""
    query, values = (SELECT_DIGESTS, ()) if user is None else (DIGESTS_OF_USER, (user,))
    async for id_, digest in connection.cursor(query, *values):
        yield id_, digest
