"""The tables of `IndependentMemory`, and the functions that read and change their rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from independent_feedback import FEEDBACK_TABLE
from independent_values import Change, NewRow, contains_json, measure_metadata, parse_exact

from flux_memory import ConflictError, FluxMemoryError, SessionNotFoundError

# Messages are ordered by their rowid, and counted: a different design from the library's counter on the session's row.
TABLES: Final = """
CREATE TABLE sessions (id TEXT PRIMARY KEY, user_id TEXT, title TEXT, created_at TEXT, updated_at TEXT, metadata TEXT,
    revision TEXT);
CREATE TABLE messages (place INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT REFERENCES sessions ON DELETE CASCADE,
    id TEXT, role TEXT, content TEXT, metadata TEXT, created_at TEXT, UNIQUE (session, id))
"""
SESSIONS: Final = """
SELECT id, user_id, title, created_at, updated_at, metadata, revision,
    (SELECT count(*) FROM messages WHERE session = sessions.id) AS message_count FROM sessions
"""
LISTED: Final = """
WHERE (:user IS NULL OR user_id = :user) AND (:moment IS NULL OR (updated_at, id) < (:moment, :id))
ORDER BY updated_at DESC, id DESC
"""
MESSAGES: Final = "SELECT id, role, content, metadata, created_at FROM messages WHERE session = :session"
OLDER: Final = """
AND (:before IS NULL OR place < (SELECT place FROM messages WHERE session = :session AND id = :before))
ORDER BY place DESC
"""
NEWER: Final = """
AND place > (SELECT place FROM messages WHERE session = :session AND id = :after) ORDER BY place
"""
INSERT: Final = """
INSERT INTO messages (session, id, role, content, metadata, created_at) VALUES (?, ?, ?, ?, ?, ?)
"""
COPY: Final = """
INSERT INTO messages (session, id, role, content, metadata, created_at)
SELECT ?, id, role, content, metadata, created_at FROM messages WHERE session = ? AND place <= ? ORDER BY place
"""
OUTDATED: Final = """
DELETE FROM sessions WHERE (:user IS NULL OR user_id = :user) AND (:moment IS NULL OR updated_at < :moment)
"""


def open_store(path: Path) -> sqlite3.Connection:
    """Open the store; the first connection creates its tables."""
    db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys = ON")
    # A kill of the process loses nothing; a power cut is none of its promises.
    db.execute("PRAGMA synchronous = OFF")
    if not db.execute("PRAGMA user_version").fetchone()[0]:
        with write_transaction(db):
            if not db.execute("PRAGMA user_version").fetchone()[0]:
                for statement in TABLES.split(";"):
                    db.execute(statement)
                table, _, trigger = FEEDBACK_TABLE.partition(";")
                db.execute(table)
                db.execute(trigger)
                db.execute("PRAGMA user_version = 1")
    return db


@contextmanager
def write_transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run the block in a write transaction; one writer at a time."""
    db.execute("BEGIN IMMEDIATE")
    with db:
        yield


def build_record(row: sqlite3.Row) -> Any:
    """Return a row as callers see it."""
    return dict(row) | {"metadata": read_metadata(row)}


def read_metadata(row: sqlite3.Row) -> dict[str, Any]:
    """Return the metadata of a row."""
    try:
        metadata = json.loads(row["metadata"])
    except ValueError as error:
        raise FluxMemoryError(f"the metadata of {row['id']!r} is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise FluxMemoryError(f"the metadata of {row['id']!r} is damaged: it is not an object")
    return metadata


def current_time() -> str:
    """Return the current time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def find_session(db: sqlite3.Connection, session: str) -> sqlite3.Row:
    """Return the row of a session, which has to exist."""
    row: sqlite3.Row | None = db.execute(SESSIONS + "WHERE id = ?", (session,)).fetchone()
    if row is None:
        raise SessionNotFoundError(f"session {session!r:.60} does not exist")
    return row


def find_place(db: sqlite3.Connection, session: str, message: str) -> int:
    """Return the place of a message, which has to exist."""
    row = db.execute("SELECT place FROM messages WHERE session = ? AND id = ?", (session, message)).fetchone()
    if row is None:
        raise ConflictError(f"the session has no message {message!r:.60}")
    return int(row["place"])


def insert_session(db: sqlite3.Connection, session: str, user: str, title: str, metadata: str, moment: str) -> None:
    """Store a new session."""
    values = session, user, title, moment, moment, metadata, uuid4().hex
    try:
        db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    except sqlite3.IntegrityError as error:
        raise ConflictError(f"there is a session {session!r}") from error


def list_sessions(
    db: sqlite3.Connection, user: str | None, wanted: Any, after: tuple[str, str] | None = None
) -> Iterator[sqlite3.Row]:
    """Yield the sessions of a user whose metadata contains an object, and that follow a place of the list."""
    moment, session = after or (None, None)
    for row in db.execute(SESSIONS + LISTED, {"user": user, "moment": moment, "id": session}):
        if contains_json(parse_exact(row["metadata"]), wanted):
            yield row


def note_change(db: sqlite3.Connection, row: sqlite3.Row, **columns: str) -> str:
    """Give a session another revision and the time of its change, never before its last one, which is returned."""
    moment = max(current_time(), str(row["updated_at"]))
    new = {"title": row["title"], "metadata": row["metadata"]} | columns
    db.execute(
        "UPDATE sessions SET title = ?, metadata = ?, updated_at = ?, revision = ? WHERE id = ?",
        (new["title"], new["metadata"], moment, uuid4().hex, row["id"]),
    )
    return moment


def comparable_values(role: str, content: str, metadata: str) -> tuple[Any, ...]:
    """Return the values that must be equal for an add to count as a retry."""
    return role, content, parse_exact(metadata)


def choose_new(db: sqlite3.Connection, session: str, rows: Sequence[NewRow]) -> list[NewRow]:
    """Return the messages that are not stored yet."""
    new: dict[str, NewRow] = {}
    for row in rows:
        known = db.execute("SELECT * FROM messages WHERE session = ? AND id = ?", (session, row.id)).fetchone()
        before = new.get(row.id) if known is None else NewRow(*(known[name] for name in NewRow._fields))
        if before is None:
            new[row.id] = row
        elif comparable_values(*before[1:]) != comparable_values(*row[1:]):
            raise ConflictError(f"the session has another message {row.id!r}")
    return list(new.values())


def insert_messages(db: sqlite3.Connection, session: str, rows: Sequence[NewRow], moment: str) -> None:
    """Store messages at the end of a session."""
    db.executemany(INSERT, [(session, *row, moment) for row in rows])


def append_messages(db: sqlite3.Connection, session: str, rows: Sequence[NewRow], user: str, create: bool) -> None:
    """Store the messages that are not stored yet."""
    if create and not db.execute("SELECT 1 FROM sessions WHERE id = ?", (session,)).fetchone():
        if not rows:
            return
        insert_session(db, session, user, "", "{}", current_time())
    row = find_session(db, session)
    if user not in {"", row["user_id"]}:
        raise ConflictError(f"the session {session!r} has another owner")
    if new := choose_new(db, session, rows):
        insert_messages(db, session, new, note_change(db, row))


def remove_newest(db: sqlite3.Connection, session: str) -> Any:
    """Remove the newest message and return it."""
    message = db.execute(MESSAGES + OLDER + "LIMIT 1", {"session": session, "before": None}).fetchone()
    if message is None:
        return None
    record = build_record(message)
    db.execute("DELETE FROM messages WHERE session = ? AND id = ?", (session, message["id"]))
    note_change(db, find_session(db, session))
    return record


def check_revision(row: Mapping[str, Any] | sqlite3.Row, expected: str | None) -> None:
    """Refuse a change of a session that has changed."""
    if expected not in {None, row["revision"]}:
        raise ConflictError(f"the session {row['id']!r} has another revision")


def change_session(db: sqlite3.Connection, session: str, expected: str | None, change: Change) -> Any:
    """Apply the parts of a change in their order, and return the session."""
    row = find_session(db, session)
    check_revision(row, expected)
    if change.truncate_all or change.truncate_from is not None:
        start = 0 if change.truncate_from is None else find_place(db, session, change.truncate_from)
        db.execute("DELETE FROM messages WHERE session = ? AND place >= ?", (session, start))
    new = choose_new(db, session, change.rows)
    columns = {} if change.title is None else {"title": change.title}
    if change.merged is not None or change.removed:
        kept = {key: value for key, value in read_metadata(row).items() if key not in change.removed}
        columns["metadata"] = measure_metadata("merge_metadata", kept | json.loads(change.merged or "{}"))
    insert_messages(db, session, new, note_change(db, row, **columns))
    return build_record(find_session(db, session))


def copy_session(
    db: sqlite3.Connection, session: str, through: str | None, new: str, user: str | None, title: str | None
) -> None:
    """Store a copy of a session and of its messages up to one of them."""
    row = find_session(db, session)
    last = 2**62 if through is None else find_place(db, session, through)
    owner, called = row["user_id"] if user is None else user, row["title"] if title is None else title
    insert_session(db, new, owner, called, row["metadata"], max(current_time(), row["updated_at"]))
    db.execute(COPY, (new, session, last))
