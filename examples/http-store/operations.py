"""The operations of the service: functions that read or change the SQLite database of a space.

A write takes the current time, runs in a transaction, and returns the rows of its answer. `flux_memory.records` builds
sessions and messages from such rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from flux_memory import records

TABLES: Final = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, user_id TEXT, title TEXT, created_at TEXT, updated_at TEXT, metadata TEXT, revision TEXT,
    message_count INTEGER
);
CREATE TABLE IF NOT EXISTS messages (
    session_id TEXT REFERENCES sessions ON DELETE CASCADE, seq INTEGER, id TEXT, role TEXT, content TEXT, metadata TEXT,
    created_at TEXT, PRIMARY KEY (session_id, seq), UNIQUE (session_id, id)
);
CREATE TABLE IF NOT EXISTS requests (id TEXT PRIMARY KEY, done_at TEXT, answer TEXT);
CREATE INDEX IF NOT EXISTS requests_done_at ON requests (done_at);
"""
MESSAGES: Final = "SELECT id, role, content, metadata, created_at FROM messages WHERE session_id = :session "
FILTER: Final = "(:user IS NULL OR user_id = :user) AND (:part IS NULL OR contains(metadata, :part)) "

Rows = Sequence[Sequence[Any]]


class StoredSession(NamedTuple):
    """A row of `sessions`."""

    id: str
    user_id: str
    title: str
    created_at: str
    updated_at: str
    metadata: str
    revision: str
    message_count: int


def create(db: sqlite3.Connection, now: str, session: Sequence[str]) -> Rows:
    """Create a session from (id, user_id, title, metadata)."""
    id_, user_id, title, metadata = session
    _insert(db, StoredSession(id_, user_id, title, now, now, metadata, records.make_revision(), 0))
    return []


def add(
    db: sqlite3.Connection, now: str, session_id: str, *, messages: Rows, create_missing: bool, user_id: str
) -> Rows:
    """Append messages (id, role, content, metadata), except those that are stored already."""
    if create_missing and not session(db, session_id):
        if not messages:
            return []
        create(db, now, (session_id, user_id, "", "{}"))
    stored = _find(db, session_id)
    if user_id not in {"", stored.user_id}:
        raise records.owner_conflict(session_id)
    changed = _append(db, now, stored, messages)
    if changed != stored:
        _save(db, now, changed)
    return []


def pop(db: sqlite3.Connection, now: str, session_id: str) -> Rows:
    """Remove the newest message, and return it."""
    rows = history(db, session_id, 1, None, None)
    if records.build_messages(session_id, rows):  # or the error that names a damaged message
        stored = _find(db, session_id)
        _truncate(db, session_id, stored.message_count)
        _save(db, now, stored._replace(message_count=stored.message_count - 1))
    return rows


def update(
    db: sqlite3.Connection,
    now: str,
    session_id: str,
    *,
    expected_revision: str | None,
    title: str | None,
    merge_metadata: str | None,
    remove_metadata: Sequence[str],
    truncate_from: str | None,
    truncate_all: bool,
    messages: Rows,
) -> Rows:
    """Change a session, and return it."""
    changed = _expect(_find(db, session_id), expected_revision)
    if truncate_all or truncate_from is not None:
        first = 1 if truncate_from is None else _seq(db, session_id, truncate_from)
        _truncate(db, session_id, first)
        changed = changed._replace(message_count=first - 1)
    changed = _append(db, now, changed, messages)
    if title is not None:
        changed = changed._replace(title=title)
    records.build_session(changed)  # or the error that names a damaged session
    try:
        metadata = records.merge_metadata(changed.metadata, merge_metadata, remove_metadata)
    except records.TooLongError:
        raise records.metadata_too_large(session_id) from None
    return [_save(db, now, changed._replace(metadata=metadata))]


def fork(
    db: sqlite3.Connection,
    now: str,
    session_id: str,
    *,
    through: str | None,
    new_id: str,
    user_id: str | None,
    title: str | None,
) -> Rows:
    """Copy a session and its messages up to one of them."""
    stored = _find(db, session_id)
    count = stored.message_count if through is None else _seq(db, session_id, through)
    now = max(now, stored.updated_at)
    owner = stored.user_id if user_id is None else user_id
    called = stored.title if title is None else title
    _insert(db, StoredSession(new_id, owner, called, now, now, stored.metadata, records.make_revision(), count))
    columns = "seq, id, role, content, metadata, created_at"
    sql = f"INSERT INTO messages SELECT ?, {columns} FROM messages WHERE session_id = ? AND seq <= ?"
    db.execute(sql, (new_id, session_id, count))
    return []


def rename(db: sqlite3.Connection, now: str, session_id: str, title: str) -> Rows:
    """Change a session's title."""
    _save(db, now, _find(db, session_id)._replace(title=title))
    return []


def delete(db: sqlite3.Connection, _now: str, session_id: str, expected_revision: str | None) -> Rows:
    """Delete a session and its messages."""
    for row in session(db, session_id):
        _expect(StoredSession._make(row), expected_revision)
        db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
    return []


def delete_many(db: sqlite3.Connection, _now: str, user_id: str | None, inactive_since: str | None) -> Rows:
    """Delete the sessions of a user, or those without changes since a time, and return their number."""
    sql = """
        DELETE FROM sessions
        WHERE (:user IS NULL OR user_id = :user) AND (:since IS NULL OR updated_at < :since)
    """
    return [[db.execute(sql, {"user": user_id, "since": inactive_since}).rowcount]]


def clear(db: sqlite3.Connection, _now: str) -> Rows:
    """Delete every session."""
    db.execute("DELETE FROM sessions")
    return []


def history(db: sqlite3.Connection, session_id: str, limit: int, before: str | None, after: str | None) -> Rows:
    """Return the newest messages, or the oldest after one of them; newest first."""
    older = "(:cursor IS NULL OR seq < (SELECT seq FROM messages WHERE session_id = :session AND id = :cursor))"
    newer = "seq > (SELECT seq FROM messages WHERE session_id = :session AND id = :cursor)"
    asked = {"session": session_id, "cursor": before if after is None else after, "limit": limit}
    if after is None:
        return db.execute(f"{MESSAGES} AND {older} ORDER BY seq DESC LIMIT :limit", asked).fetchall()
    return db.execute(f"{MESSAGES} AND {newer} ORDER BY seq LIMIT :limit", asked).fetchall()[::-1]


def message(db: sqlite3.Connection, session_id: str, message_id: str) -> Rows:
    """Return one message, or nothing."""
    return db.execute(f"{MESSAGES} AND id = :id", {"session": session_id, "id": message_id}).fetchall()


def sessions(
    db: sqlite3.Connection,
    *,
    limit: int,
    offset: int,
    user_id: str | None,
    part: str | None,
    before: tuple[str, str] | None,
    with_metadata: bool,
) -> Rows:
    """Return a page of sessions, the most recently changed first."""
    sql = f"""
        SELECT id, user_id, title, created_at, updated_at, CASE WHEN :whole THEN metadata ELSE '{{}}' END, revision,
            message_count
        FROM sessions WHERE {FILTER} AND (:moment IS NULL OR (updated_at, id) < (:moment, :id))
        ORDER BY updated_at DESC, id DESC LIMIT :limit OFFSET :offset
    """
    moment, id_ = before or (None, None)
    asked = {"user": user_id, "part": part, "moment": moment, "id": id_, "whole": with_metadata}
    return db.execute(sql, {**asked, "limit": limit, "offset": offset}).fetchall()


def session(db: sqlite3.Connection, session_id: str) -> Rows:
    """Return one session, or nothing."""
    return db.execute(f"SELECT {', '.join(StoredSession._fields)} FROM sessions WHERE id = ?", (session_id,)).fetchall()


def count(db: sqlite3.Connection, user_id: str | None, part: str | None) -> Rows:
    """Return the number of sessions."""
    sql = f"SELECT count(*) FROM sessions WHERE {FILTER}"
    return db.execute(sql, {"user": user_id, "part": part}).fetchall()


WRITES: Final[dict[str, Callable[..., Rows]]] = {
    each.__name__: each for each in (create, add, pop, update, fork, rename, delete, delete_many, clear)
}
READS: Final[dict[str, Callable[..., Rows]]] = {
    each.__name__: each for each in (history, message, sessions, session, count)
}


def _find(db: sqlite3.Connection, session_id: str) -> StoredSession:
    for row in session(db, session_id):
        return StoredSession._make(row)
    raise records.session_not_found(session_id)


def _expect(stored: StoredSession, revision: str | None) -> StoredSession:
    if revision not in {None, stored.revision}:
        raise records.revision_conflict(stored.id)
    return stored


def _seq(db: sqlite3.Connection, session_id: str, message_id: str) -> int:
    found = db.execute("SELECT seq FROM messages WHERE session_id = ? AND id = ?", (session_id, message_id)).fetchone()
    if found is None:
        raise records.message_not_found(session_id, message_id)
    return int(found[0])


def _insert(db: sqlite3.Connection, new: StoredSession) -> None:
    if not db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", new).rowcount:
        raise records.session_id_taken(new.id)


def _save(db: sqlite3.Connection, now: str, changed: StoredSession) -> StoredSession:
    """Write a changed session with another revision; its time never goes back."""
    changed = changed._replace(updated_at=max(now, changed.updated_at), revision=records.make_revision())
    sql = "UPDATE sessions SET title = ?, updated_at = ?, metadata = ?, revision = ?, message_count = ? WHERE id = ?"
    db.execute(sql, (changed.title, *changed[4:], changed.id))
    return changed


def _truncate(db: sqlite3.Connection, session_id: str, first: int) -> None:
    db.execute("DELETE FROM messages WHERE session_id = ? AND seq >= ?", (session_id, first))


def _append(db: sqlite3.Connection, now: str, stored: StoredSession, messages: Rows) -> StoredSession:
    last = stored.message_count
    for row in map(records.MessageRow._make, messages):
        known = "SELECT role, content, metadata FROM messages WHERE session_id = ? AND id = ?"
        found = db.execute(known, (stored.id, row.id)).fetchone()
        if found is None:
            last += 1
            values = stored.id, last, *row, max(now, stored.updated_at)
            db.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        elif not row.same_as(*found):
            raise records.message_id_taken(stored.id, row.id)
    return stored._replace(message_count=last)
