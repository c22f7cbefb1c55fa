"""The lines of an archive: a header, sessions, messages and feedback as JSON, and an end with counts and digests."""

from __future__ import annotations

import json
from typing import Any, Final

import orjson

from flux_memory.operations.backup.contents import Contents
from flux_memory.transfer.rows.pgcopy import ValidMessage, ValidSession
from flux_memory.transfer.rows.postgres_time import time_text

FORMAT: Final = 1
# Text within JSON has a backslash before each quote, so the first match is the key itself.
METADATA: Final = b',"metadata":'
"""The last key of a record. Its value is kept as it is written: a parser would change numbers."""
ORDER: Final = ("session", "message", "feedback")
"""The kinds of records in the order of the archive."""


def header_line(record: dict[str, Any]) -> bytes:
    """Return the first line."""
    return json.dumps({"flux_memory_archive": FORMAT, **record}).encode() + b"\n"


def session_line(row: ValidSession) -> bytes:
    """Return the line of a session."""
    head = orjson.dumps(
        {
            "kind": "session",
            "id": row.id.decode(),
            "user_id": row.user_id.decode(),
            "title": row.title.decode(),
            "created_at": time_text(row.created_at),
            "updated_at": time_text(row.updated_at),
        }
    )
    return head[:-1] + METADATA + row.metadata + b"}\n"


def message_line(session_id: str, row: ValidMessage) -> bytes:
    """Return the line of a message."""
    head = orjson.dumps(
        {
            "kind": "message",
            "session_id": session_id,
            "id": row.id.decode(),
            "role": row.role.decode(),
            "content": row.content.decode(),
            "created_at": time_text(row.created_at),
        }
    )
    return head[:-1] + METADATA + row.metadata + b"}\n"


def end_line(contents: Contents) -> bytes:
    """Return the last line; an archive without it was cut off."""
    return json.dumps({"kind": "end", **contents.as_dict()}).encode() + b"\n"


def split_line(line: bytes) -> tuple[dict[str, Any], str | None]:
    """Return a record without its metadata, and its metadata as text; `None` if it has none.

    Raises:
        ValueError: The line is not a record.
    """
    if not line.endswith(b"}\n"):
        raise ValueError("the line is cut off")
    head, found, metadata = line.partition(METADATA)
    record = orjson.loads(head + b"}" if found else line)
    if not isinstance(record, dict):
        raise TypeError("the line is not an object")
    return record, metadata[:-2].decode() if found else None
