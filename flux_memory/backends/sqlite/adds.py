"""Creates sessions in a SQLite file and adds messages to them, and the SQL of both."""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from flux_memory import records
from flux_memory.backends.sqlite.errors import check_changed
from flux_memory.backends.sqlite.fetching import fetch
from flux_memory.records import timestamps
from flux_memory.records.checking import MAX_INTEGER, check_session_time

INSERT_SESSION: Final = """
INSERT INTO sessions (id, user_id, created_at, updated_at, message_count, revision)
VALUES (?, ?, ?, ?, ?, ?)
"""
# A row of a session that another program deleted without its details is overwritten.
INSERT_DETAILS: Final = """
INSERT INTO session_details (session_id, title, metadata)
VALUES (?, ?, ?)
ON CONFLICT (session_id) DO UPDATE SET title = excluded.title, metadata = excluded.metadata
"""
# max() compares texts: the pattern keeps a corrupt time from becoming a message's. SQLite makes the revision faster
# than Python does, by a fifth of the whole call.
BUMP_COUNTER: Final = """
UPDATE sessions
SET message_count = message_count + 1, updated_at = max(updated_at, ?), revision = lower(hex(randomblob(16)))
WHERE id = ?
    AND ? IN ('', user_id)
    AND typeof(updated_at) = 'text'
    AND updated_at GLOB '[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].??????+00:00'
RETURNING message_count, updated_at
"""
INSERT_MESSAGE: Final = """
INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""
SELECT_STATE: Final = "SELECT message_count, updated_at, user_id, revision FROM sessions WHERE id = ?"
UPDATE_STATE: Final = "UPDATE sessions SET message_count = ?, updated_at = ?, revision = ? WHERE id = ?"
SELECT_SAME_ID: Final = "SELECT role, content, metadata FROM messages WHERE session_id = ? AND id = ? AND seq <= ?"


class AddTarget(NamedTuple):
    """The session that messages are added to."""

    session_id: str
    create: bool
    """Whether to create it if it does not exist."""
    user_id: str
    """The owner of a session that is created, and the one that it must have if this is not empty."""


def check_target(session_id: object, create: object, user_id: object) -> AddTarget:
    """Return the checked arguments of an add that name its session.

    Args:
        session_id: The session's id.
        create: Whether to create the session.
        user_id: The owner.

    Raises:
        InvalidInputError: An argument is invalid.
        SessionNotFoundError: No session can have the id, and it is not to be created.
    """
    creates, owner = records.check_flag("create", create), records.check_owner(user_id)
    if creates:
        return AddTarget(records.check_id("session_id", session_id), creates, owner)
    return AddTarget(records.check_session_id(session_id), creates, owner)


def create_session(row: records.SessionRow, db: sqlite3.Connection) -> str:
    """Create a session and return its id."""
    if fetch(SELECT_STATE, (row.id,), db):
        raise records.session_id_taken(row.id)
    _insert_session(row, timestamps.utc_now(), 0, db)
    return row.id


def add_message(target: AddTarget, row: records.MessageRow, db: sqlite3.Connection) -> None:
    """Add a message whose id is new, so that no stored message can have it."""
    counter = db.execute(BUMP_COUNTER, (timestamps.utc_now(), target.session_id, target.user_id)).fetchall()
    if not counter:
        # No such session, another owner, or a corrupt time: `add_messages` creates it, or raises the right error.
        add_messages(target, [row], db)
        return
    ((seq, now),) = counter
    values = (target.session_id, row.id, seq, row.role, row.content, row.metadata, now)
    check_changed(db.execute(INSERT_MESSAGE, values).rowcount)


def add_messages(target: AddTarget, rows: list[records.MessageRow], db: sqlite3.Connection) -> None:
    """Add the messages of a batch that are not stored."""
    session_id, create, user_id = target
    session = fetch(SELECT_STATE, (session_id,), db)
    if not session and create:
        if rows:
            now = timestamps.utc_now()
            _insert_session(records.SessionRow(session_id, user_id, "", "{}"), now, len(rows), db)
            insert_messages(session_id, rows, 0, now, db)
        return
    if not session:
        raise records.session_not_found(session_id)
    ((count, updated_at, owner, _),) = session
    if user_id not in {"", owner}:
        raise records.owner_conflict(session_id)
    if fresh := select_fresh(session_id, rows, db):
        now = later(session_id, updated_at)
        insert_messages(session_id, fresh, count, now, db)
        change_state(session_id, count + len(fresh), now, records.make_revision(), db)


def select_fresh(
    session_id: str, rows: list[records.MessageRow], db: sqlite3.Connection, *, kept: int = MAX_INTEGER
) -> list[records.MessageRow]:
    """Return the messages that are not among the first `kept` stored ones.

    Raises:
        ConflictError: Another message among them has the id of one.
    """
    fresh = []
    for row in rows:
        stored = fetch(SELECT_SAME_ID, (session_id, row.id, kept), db)
        if not stored:
            fresh.append(row)
        elif not row.same_as(*stored[0]):
            raise records.message_id_taken(session_id, row.id)
    return fresh


def later(session_id: str, updated_at: object) -> str:
    """Return the time of a change: now, or the session's own time if the clock is behind it.

    Raises:
        FluxMemoryError: The session's time is corrupt.
    """
    return max(check_session_time(session_id, updated_at), timestamps.utc_now())


def insert_messages(
    session_id: str, rows: list[records.MessageRow], count: int, now: str, db: sqlite3.Connection
) -> None:
    """Insert messages after the first `count`."""
    values = [
        (session_id, row.id, seq, row.role, row.content, row.metadata, now) for seq, row in enumerate(rows, count + 1)
    ]
    check_changed(db.executemany(INSERT_MESSAGE, values).rowcount, len(rows))


def change_state(session_id: str, count: int, now: str, revision: str, db: sqlite3.Connection) -> None:
    """Set what changes with every change of a session."""
    check_changed(db.execute(UPDATE_STATE, (count, now, revision, session_id)).rowcount)


def _insert_session(row: records.SessionRow, now: str, count: int, db: sqlite3.Connection) -> None:
    values = (row.id, row.user_id, now, now, count, records.make_revision())
    check_changed(db.execute(INSERT_SESSION, values).rowcount)
    check_changed(db.execute(INSERT_DETAILS, (row.id, row.title, row.metadata)).rowcount)
