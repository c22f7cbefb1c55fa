"""Writes refused rows to a file to be corrected by hand, one JSON object per line, and reads them again."""

from __future__ import annotations

import base64
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.errors import MigrationError
from flux_memory.transfer.rows.raw import FEEDBACK_FIELDS, MESSAGE_FIELDS, SESSION_FIELDS, RawRow
from flux_memory.transfer.rows.spool import RefusedRow
from flux_memory.transfer.target.choosing import choose_path
from flux_memory.transfer.target.server import (
    SELECT_SESSIONS,
    inspect_target,
    open_connection,
    prepare_schema,
    rehearsal,
)
from flux_memory.transfer.tempfiles import publish, unproven_file
from flux_memory.transfer.threads import Stopped

# No keys and no types: an uncorrected row must be stored as it is, to be refused again by the same rules.
SCRATCH: Final = """
CREATE TABLE sessions (id, user_id, title, metadata, created_at, updated_at);
CREATE TABLE messages (session_id, id, role, content, metadata, created_at);
CREATE TABLE feedback (
    id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at
);
CREATE INDEX messages_by_session ON messages (session_id, created_at);
CREATE INDEX sessions_by_id ON sessions (id);
CREATE TEMP TABLE contexts (id, user_id, title, metadata, created_at, updated_at);
"""
INSERT_SESSION: Final = "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)"
INSERT_CONTEXT: Final = "INSERT INTO contexts VALUES (?, ?, ?, ?, ?, ?)"
# A context is the session of a refused message. If it was refused itself, its corrected row is in the file and wins.
ADD_CONTEXTS: Final = """
INSERT INTO sessions
SELECT DISTINCT * FROM contexts WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.id IS contexts.id)
"""
INSERT_MESSAGE: Final = "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)"
INSERT_FEEDBACK: Final = "INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
SELECT_ORPHANED: Final = """
SELECT DISTINCT session_id FROM messages
WHERE typeof(session_id) = 'text'
  AND session_id > ?
  AND session_id NOT IN (SELECT id FROM sessions WHERE id IS NOT NULL)
ORDER BY session_id
LIMIT ?
"""
_FIELDS: Final = {"sessions": SESSION_FIELDS, "messages": MESSAGE_FIELDS, "feedback": FEEDBACK_FIELDS}
_INSERTS: Final = {"sessions": INSERT_SESSION, "messages": INSERT_MESSAGE, "feedback": INSERT_FEEDBACK}
_PAGE_SESSIONS: Final = 1_000


def refuse_unwritable(path: Path) -> None:
    """Refuse, before any row is read, a path where no quarantine file can be created.

    Raises:
        MigrationError: The file exists, or its directory is missing or not writable.
    """
    if not os.access(path.absolute().parent, os.R_OK | os.W_OK | os.X_OK):
        raise MigrationError(
            f"the quarantine file {path} cannot be written: its directory does not exist, or you may not write to it; "
            "give --quarantine-file another path"
        )
    if path.exists() or path.is_symlink():
        raise MigrationError(
            f"the quarantine file {path} exists and is not overwritten; move it away, or give another name"
        )


def write_quarantine(path: Path, rows: Iterable[RefusedRow]) -> None:
    """Write refused rows to a file that only its owner can read, and that appears once it is complete and durable.

    Each line has `table`, `problems`, `row`, and for a message the `session` it belongs to, as stored in the source.
    Bytes that are not text are written as `{"base64": ...}`.

    Raises:
        MigrationError: The file cannot be written completely, or another process has created it; none is left behind.
    """
    try:
        with unproven_file(path) as unproven:
            with unproven.open("w", encoding="utf-8", errors="strict") as file:
                for row in rows:
                    file.write(json.dumps(_entry(row), ensure_ascii=False, allow_nan=False) + "\n")
            publish(unproven, path)
    except OSError as error:
        raise MigrationError(
            f"the quarantine file {path} cannot be written: {error.strerror}; give --quarantine-file another path, "
            "and run again: what was moved is skipped"
        ) from error


def _entry(refused: RefusedRow) -> dict[str, Any]:
    names = _FIELDS[refused.table]
    entry: dict[str, Any] = {
        "table": refused.table,
        "problems": [f"{problem.column}: {problem.kind}: {problem.detail}" for problem in refused.problems],
        "row": _as_json(names, refused.row),
    }
    if refused.session is not None:
        entry["session"] = _as_json(SESSION_FIELDS, refused.session)
    return entry


def _as_json(names: tuple[str, ...], row: RawRow) -> dict[str, Any]:
    return {name: _value(value) for name, value in zip(names, row, strict=False)}


def _value(value: object) -> object:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"text_base64": base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


async def add_sessions_of_target(scratch: Path, dsn: str) -> None:
    """Add sessions of the target to which messages of the file belong: an orphan may have a session there by now.

    Args:
        scratch: The file of `to_scratch`.
        dsn: The target.
    """
    async with open_connection(dsn) as connection:
        target = await inspect_target(connection)
        if target.sessions:
            select = choose_path(target).statement(SELECT_SESSIONS)
            async with rehearsal(connection):
                await prepare_schema(connection)
                with closing(sqlite3.connect(scratch, isolation_level=None)) as db:
                    await _add_sessions(db, connection, select)


async def _add_sessions(db: sqlite3.Connection, connection: Any, select: str) -> None:
    last = ""
    while ids := [id_ for (id_,) in db.execute(SELECT_ORPHANED, (last, _PAGE_SESSIONS))]:
        last = ids[-1]
        # PostgreSQL cannot store a NUL, so no session there has such an id.
        storable = write_texts(id_ for id_ in ids if "\x00" not in id_)
        found = await connection.fetch(select, storable)
        db.executemany(INSERT_SESSION, [tuple(row) for row in found])


def to_scratch(path: Path, scratch: Path, stopped: Stopped) -> None:
    """Convert a quarantine file to a SQLite file, so that corrected rows are moved like any others.

    Args:
        path: The quarantine file.
        scratch: The file to create.
        stopped: Called for each line; returns whether to stop.

    Raises:
        MigrationError: The file cannot be read, and the message names the line; or the conversion was stopped.
    """
    with closing(sqlite3.connect(scratch, isolation_level=None)) as db:
        db.executescript(SCRATCH)
        db.execute("BEGIN")
        for number, entry in _entries(path):
            if stopped():
                raise MigrationError(f"{path} was not read to its end: cancelled")
            try:
                table = entry["table"]
                if table not in _FIELDS:
                    raise ValueError("'table' must be 'sessions', 'messages' or 'feedback'")
                db.execute(_INSERTS[table], _row(_FIELDS[table], entry["row"]))
                if "session" in entry:
                    db.execute(INSERT_CONTEXT, _row(SESSION_FIELDS, entry["session"]))
            except (KeyError, TypeError, ValueError, OverflowError, sqlite3.Error) as error:
                raise MigrationError(f"line {number} of {path} is not a quarantined row: {error}; fix it") from error
        db.execute(ADD_CONTEXTS)
        db.execute("COMMIT")


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    entry = json.loads(line.decode())
                    if not isinstance(entry, dict):
                        raise MigrationError(f"line {number} of {path} is not a JSON object; fix it")
                    yield number, entry
    except OSError as error:
        raise MigrationError(f"{path} cannot be read: {error.strerror}; check --retry") from error
    except (ValueError, RecursionError) as error:
        raise MigrationError(f"line {number} of {path} is not JSON in UTF-8: {error}; fix it") from error


def _row(names: tuple[str, ...], row: Any) -> tuple[Any, ...]:
    if not isinstance(row, dict):
        raise TypeError("'row' and 'session' must be JSON objects")
    if unknown := set(row) - set(names):
        raise ValueError(f"unknown columns {sorted(unknown)}")
    return tuple(_from_json(name, row.get(name)) for name in names)


def _from_json(name: str, value: Any) -> Any:
    """Return the value of a column; metadata may be written as text, or as the JSON object that it is."""
    kind, inner = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else ("", None)
    if kind == "float" and isinstance(inner, str):
        return float(inner)
    if kind in {"base64", "text_base64"} and isinstance(inner, str):
        try:
            # Text that is not UTF-8 cannot be bound; as a BLOB it is refused again until it is corrected.
            return base64.b64decode(inner, validate=True)
        except ValueError:
            raise ValueError(f"'{name}' is not valid base64") from None
    if isinstance(value, dict | list) and name == "metadata":
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict | list):
        raise TypeError(f"'{name}' must be text, a number or null")
    return value
