"""Changes sessions in a SQLite file other than by adding to them: updates, pops, forks and deletions, and their SQL."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from flux_memory import records
from flux_memory.backends.sqlite.adds import (
    INSERT_DETAILS,
    SELECT_STATE,
    change_state,
    insert_messages,
    later,
    select_fresh,
)
from flux_memory.backends.sqlite.errors import check_changed
from flux_memory.backends.sqlite.feedback import clear_feedback, erase_of_sessions
from flux_memory.backends.sqlite.fetching import fetch
from flux_memory.backends.sqlite.listing import SELECT_SESSION
from flux_memory.errors import FluxMemoryError
from flux_memory.protocol import Message, Session
from flux_memory.records.checking import MAX_INTEGER, check_session_time

UPDATE_TITLE: Final = """
INSERT INTO session_details (session_id, title)
VALUES (?, ?)
ON CONFLICT (session_id) DO UPDATE SET title = excluded.title
"""
SELECT_SEQ: Final = "SELECT seq FROM messages WHERE session_id = ? AND id = ?"
SELECT_LAST_SEQ: Final = "SELECT coalesce(max(seq), 0) FROM messages WHERE session_id = ?"
COUNT_UP_TO: Final = "SELECT count(*) FROM messages WHERE session_id = ? AND seq <= ?"
DELETE_TAIL: Final = "DELETE FROM messages WHERE session_id = ? AND seq > ?"
SELECT_TAIL: Final = "SELECT 1 FROM messages WHERE session_id = ? AND seq > ? LIMIT 1"
SELECT_LAST_MESSAGE: Final = """
SELECT seq, id, role, content, metadata, created_at
FROM messages
WHERE session_id = ?
ORDER BY seq DESC
LIMIT 1
"""
DELETE_MESSAGE: Final = "DELETE FROM messages WHERE session_id = ? AND seq = ?"
COPY_SESSION: Final = """
INSERT INTO sessions (id, user_id, created_at, updated_at, message_count, revision)
SELECT ?, coalesce(?, user_id), ?, ?, ?, ? FROM sessions WHERE id = ?
"""
COPY_DETAILS: Final = """
INSERT INTO session_details (session_id, title, metadata)
SELECT ?, coalesce(?, title, ''), coalesce(metadata, '{}')
FROM sessions LEFT JOIN session_details ON session_id = id
WHERE id = ?
ON CONFLICT (session_id) DO UPDATE SET title = excluded.title, metadata = excluded.metadata
"""
COPY_MESSAGES: Final = """
INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
SELECT ?, id, seq, role, content, metadata, created_at
FROM messages
WHERE session_id = ? AND seq <= ?
ORDER BY seq
"""
DELETE_SESSION: Final = "DELETE FROM sessions WHERE id = ?"
SELECT_SOME_OF_USER: Final = """
SELECT id, updated_at, message_count FROM sessions WHERE user_id = ? ORDER BY updated_at, id LIMIT ?
"""
SELECT_SOME_INACTIVE: Final = """
SELECT id, updated_at, message_count FROM sessions WHERE updated_at < ? ORDER BY updated_at, id LIMIT ?
"""
SELECT_SOME_INACTIVE_OF_USER: Final = """
SELECT id, updated_at, message_count
FROM sessions
WHERE user_id = ? AND updated_at < ?
ORDER BY updated_at, id
LIMIT ?
"""
COUNT_SESSIONS: Final = "SELECT count(*) FROM sessions"
DELETE_SESSIONS: Final = "DELETE FROM sessions"

_BATCH_SESSIONS: Final = 200
"""Sessions that are deleted in one transaction; others wait for it."""
_BATCH_MESSAGES: Final = 2_000
"""Messages after which no further session is deleted in the same transaction."""


def update_title(session_id: str, title: str, db: sqlite3.Connection) -> None:
    """Change a session's title."""
    count, updated_at, _, _ = _state(session_id, db)
    now = later(session_id, updated_at)
    check_changed(db.execute(UPDATE_TITLE, (session_id, title)).rowcount)
    change_state(session_id, count, now, records.make_revision(), db)


def update_session(session_id: str, update: records.SessionUpdate, db: sqlite3.Connection) -> Session:
    """Apply an update and return the session as it is then."""
    rows = fetch(SELECT_SESSION, (session_id,), db)
    if not rows:
        raise records.session_not_found(session_id)
    _, user_id, title, created_at, updated_at, metadata, revision, count = rows[0]
    _check_revision(session_id, update.expected_revision, revision)
    kept = MAX_INTEGER
    if update.truncate_all:
        kept = 0
    elif update.truncate_from is not None:
        kept = _seq(session_id, update.truncate_from, db) - 1
    fresh = select_fresh(session_id, update.messages, db, kept=kept)
    changes_metadata = update.merge_metadata is not None or bool(update.remove_metadata)
    if changes_metadata:
        metadata = _merge(session_id, metadata, update)
    title = title if update.title is None else update.title
    now, revision, count = later(session_id, updated_at), records.make_revision(), min(count, kept)
    # Built before anything changes: it raises if the row is corrupt.
    session = records.build_session(
        (session_id, user_id, title, created_at, now, metadata, revision, count + len(fresh))
    )
    if kept != MAX_INTEGER:
        db.execute(DELETE_TAIL, (session_id, kept))
        check_changed(len(fetch(SELECT_TAIL, (session_id, kept), db)), 0)
    if fresh:
        insert_messages(session_id, fresh, count, now, db)
    change_state(session_id, count + len(fresh), now, revision, db)
    if changes_metadata:
        check_changed(db.execute(INSERT_DETAILS, (session_id, title, metadata)).rowcount)
    elif update.title is not None:
        check_changed(db.execute(UPDATE_TITLE, (session_id, title)).rowcount)
    return session


def pop_message(session_id: str, db: sqlite3.Connection) -> Message | None:
    """Remove the newest message and return it."""
    session = fetch(SELECT_STATE, (session_id,), db)
    rows = fetch(SELECT_LAST_MESSAGE, (session_id,), db)
    if not session or not rows:
        return None
    seq, *row = rows[0]
    # Built before anything changes: it raises if the row is corrupt.
    (message,) = records.build_messages(session_id, [row])
    now = later(session_id, session[0][1])
    check_changed(db.execute(DELETE_MESSAGE, (session_id, seq)).rowcount)
    change_state(session_id, seq - 1, now, records.make_revision(), db)
    return message


def fork_session(session_id: str, fork: records.Fork, db: sqlite3.Connection) -> str:
    """Copy a session and its messages."""
    _, updated_at, _, _ = _state(session_id, db)
    if fork.through is None:
        ((last,),) = fetch(SELECT_LAST_SEQ, (session_id,), db)
    else:
        last = _seq(session_id, fork.through, db)
    if fetch(SELECT_STATE, (fork.new_id,), db):
        raise records.session_id_taken(fork.new_id)
    now = later(session_id, updated_at)
    copy = (fork.new_id, fork.user_id, now, now, last, records.make_revision(), session_id)
    check_changed(db.execute(COPY_SESSION, copy).rowcount)
    check_changed(db.execute(COPY_DETAILS, (fork.new_id, fork.title, session_id)).rowcount)
    copied = db.execute(COPY_MESSAGES, (fork.new_id, session_id, last)).rowcount
    check_changed(copied, fetch(COUNT_UP_TO, (session_id, last), db)[0][0])
    return fork.new_id


def delete_session(session_id: str, expected_revision: str | None, db: sqlite3.Connection) -> None:
    """Delete a session, if it has the expected revision."""
    if expected_revision is not None:
        for _, _, _, revision in fetch(SELECT_STATE, (session_id,), db):
            _check_revision(session_id, expected_revision, revision)
    db.execute(DELETE_SESSION, (session_id,))
    check_changed(len(fetch(SELECT_STATE, (session_id,), db)), 0)


def delete_some(user_id: str | None, inactive_since: str | None, db: sqlite3.Connection) -> int:
    """Delete a batch of the sessions that meet the criteria, and return how many; 0 if there are none.

    The feedback on them is kept, unless all sessions of a user are deleted.

    Raises:
        FluxMemoryError: The time that decides about a session is corrupt.
    """
    if inactive_since is None:
        rows = fetch(SELECT_SOME_OF_USER, (user_id, _BATCH_SESSIONS), db)
    elif user_id is None:
        rows = fetch(SELECT_SOME_INACTIVE, (inactive_since, _BATCH_SESSIONS), db)
    else:
        rows = fetch(SELECT_SOME_INACTIVE_OF_USER, (user_id, inactive_since, _BATCH_SESSIONS), db)
    ids: list[tuple[str]] = []
    messages = 0
    for session_id, updated_at, count in rows:
        if inactive_since is not None:
            check_session_time(session_id, updated_at)
        ids.append((session_id,))
        messages += count
        if messages >= _BATCH_MESSAGES:
            break
    if user_id and inactive_since is None:
        erase_of_sessions((session_id for (session_id,) in ids), user_id, db)
    if ids:
        check_changed(db.executemany(DELETE_SESSION, ids).rowcount, len(ids))
    return len(ids)


def clear(db: sqlite3.Connection) -> None:
    """Delete every session, and all feedback."""
    db.execute(DELETE_SESSIONS)
    check_changed(fetch(COUNT_SESSIONS, (), db)[0][0], 0)
    clear_feedback(db)


def _state(session_id: str, db: sqlite3.Connection) -> tuple[Any, ...]:
    rows = fetch(SELECT_STATE, (session_id,), db)
    if not rows:
        raise records.session_not_found(session_id)
    return rows[0]


def _seq(session_id: str, message_id: str, db: sqlite3.Connection) -> int:
    rows = fetch(SELECT_SEQ, (session_id, message_id), db)
    if not rows:
        raise records.message_not_found(session_id, message_id)
    return int(rows[0][0])


def _check_revision(session_id: str, expected: str | None, revision: object) -> None:
    if expected is not None and expected != revision:
        raise records.revision_conflict(session_id)


def _merge(session_id: str, metadata: Any, update: records.SessionUpdate) -> str:
    try:
        if type(metadata) is not str:
            raise TypeError(f"{metadata!r:.60} where text belongs")
        return records.merge_metadata(metadata, update.merge_metadata, update.remove_metadata)
    except records.TooLongError as error:
        raise records.metadata_too_large(session_id) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise FluxMemoryError(f"session {session_id!r} cannot be read: {error}") from error
