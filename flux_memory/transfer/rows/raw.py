"""Rows as SQLite holds them, before they are validated."""

from __future__ import annotations

from typing import Any, Final

SESSION_FIELDS: Final = ("id", "user_id", "title", "metadata", "created_at", "updated_at")
MESSAGE_FIELDS: Final = ("session_id", "id", "role", "content", "metadata", "created_at")
FEEDBACK_FIELDS: Final = (
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

RawRow = tuple[Any, ...]
"""The fields above, then whether an earlier row has the same id, then the rowid."""
