"""Argument checks, JSON texts and records: public, for authors of backends, and used by the backends of the library.

A method of a backend checks its arguments first (`check_new_session`, `check_new_message`, `check_batch`,
`check_session_id`, `check_lookup`, `check_limit`, `check_filter`, `check_update`, `check_fork`), stores the rows that
the checks return, and builds what it returns from stored rows (`build_messages`, `build_session`). Metadata is stored
as JSON text, in which every number keeps its type and value.

    row = check_new_message(role, content, metadata, message_id)
    store(check_session_id(session_id), *row, utc_now())
    return row.id
"""

from __future__ import annotations

from flux_memory.records.building import build_messages, build_session, build_sessions
from flux_memory.records.changes import (
    Fork,
    SessionUpdate,
    check_cursors,
    check_deletion,
    check_flag,
    check_fork,
    check_moment,
    check_revision,
    check_session_cursor,
    check_update,
    make_revision,
    message_not_found,
    metadata_too_large,
    owner_conflict,
    revision_conflict,
)
from flux_memory.records.checking import (
    MessageRow,
    SessionRow,
    check_batch,
    check_count,
    check_limit,
    check_lookup,
    check_new_message,
    check_new_session,
    check_owner,
    check_seconds,
    check_session_id,
    drop_repeats,
    message_id_taken,
    session_id_taken,
    session_not_found,
)
from flux_memory.records.filters import check_filter, contains
from flux_memory.records.ids import make_id
from flux_memory.records.metadata import TooLongError, decode_metadata, encode_metadata, merge_metadata
from flux_memory.records.ratings import (
    FeedbackRow,
    build_feedback,
    build_stats,
    check_feedback_filter,
    check_new_feedback,
    check_rating,
    feedback_id_taken,
)
from flux_memory.records.text import check_id, check_text
from flux_memory.records.timestamps import format_time, utc_now

__all__ = [
    "FeedbackRow",
    "Fork",
    "MessageRow",
    "SessionRow",
    "SessionUpdate",
    "TooLongError",
    "build_feedback",
    "build_messages",
    "build_session",
    "build_sessions",
    "build_stats",
    "check_batch",
    "check_count",
    "check_cursors",
    "check_deletion",
    "check_feedback_filter",
    "check_filter",
    "check_flag",
    "check_fork",
    "check_id",
    "check_limit",
    "check_lookup",
    "check_moment",
    "check_new_feedback",
    "check_new_message",
    "check_new_session",
    "check_owner",
    "check_rating",
    "check_revision",
    "check_seconds",
    "check_session_cursor",
    "check_session_id",
    "check_text",
    "check_update",
    "contains",
    "decode_metadata",
    "drop_repeats",
    "encode_metadata",
    "feedback_id_taken",
    "format_time",
    "make_id",
    "make_revision",
    "merge_metadata",
    "message_id_taken",
    "message_not_found",
    "metadata_too_large",
    "owner_conflict",
    "revision_conflict",
    "session_id_taken",
    "session_not_found",
    "utc_now",
]
