"""A second implementation of the contract, written from its text: sqlite3 in threads, the library's errors only."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from independent_values import (
    NewRow,
    check_key,
    check_row,
    check_row_count,
    check_rows,
    check_text,
    contains_json,
    encode_json,
    make_id,
    parse_exact,
)

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    FluxMemoryError,
    MemoryClosedError,
    SessionNotFoundError,
)

Result = TypeVar("Result")

# Messages are ordered by their rowid: a different design from the library's counter on the session's row.
TABLES: Final = """
CREATE TABLE sessions (id TEXT PRIMARY KEY, user_id TEXT, title TEXT, created_at TEXT, updated_at TEXT, metadata TEXT);
CREATE TABLE messages (place INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT REFERENCES sessions ON DELETE CASCADE,
    id TEXT, role TEXT, content TEXT, metadata TEXT, created_at TEXT, UNIQUE (session, id))
"""
SESSIONS: Final = """
SELECT id, user_id, title, created_at, updated_at, metadata,
    (SELECT count(*) FROM messages WHERE session = sessions.id) AS message_count FROM sessions
"""
HISTORY: Final = """
SELECT id, role, content, metadata, created_at FROM messages WHERE session = :session AND (:before IS NULL
    OR place < (SELECT place FROM messages WHERE session = :session AND id = :before)) ORDER BY place DESC
"""
INSERT: Final = """
INSERT INTO messages (session, id, role, content, metadata, created_at) VALUES (?, ?, ?, ?, ?, ?)
"""


def build_record(row: sqlite3.Row) -> Any:
    """Return a row as callers see it."""
    try:
        metadata = json.loads(row["metadata"])
    except ValueError as error:
        raise FluxMemoryError(f"the metadata of {row['id']!r} is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise FluxMemoryError(f"the metadata of {row['id']!r} is damaged: it is not an object")
    return dict(row) | {"metadata": metadata}


def current_time() -> str:
    """Return the current time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


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
                db.execute("PRAGMA user_version = 1")
    return db


@contextmanager
def write_transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run the block in a write transaction; one writer at a time."""
    db.execute("BEGIN IMMEDIATE")
    with db:
        yield


def next_time(db: sqlite3.Connection, session: str) -> str:
    """Return the time of a change to a session, never before its last change."""
    row = db.execute("SELECT updated_at FROM sessions WHERE id = ?", (session,)).fetchone()
    if row is None:
        raise SessionNotFoundError(f"there is no session {session!r:.60}")
    return max(current_time(), str(row["updated_at"]))


def comparable_values(role: str, content: str, metadata: str) -> tuple[Any, ...]:
    """Return the values that must be equal for an add to count as a retry."""
    return role, content, parse_exact(metadata)


def append_messages(db: sqlite3.Connection, session: str, rows: Iterable[NewRow]) -> None:
    """Store the messages that are not stored yet."""
    moment = next_time(db, session)
    for row in rows:
        known = db.execute("SELECT * FROM messages WHERE session = ? AND id = ?", (session, row.id)).fetchone()
        if known is None:
            db.execute(INSERT, (session, *row, moment))
            db.execute("UPDATE sessions SET updated_at = ? WHERE id = ?", (moment, session))
        elif comparable_values(known["role"], known["content"], known["metadata"]) != comparable_values(*row[1:]):
            raise ConflictError(f"the session has another message {row.id!r}")


class IndependentMemory:
    """One connection behind one lock. A call runs in a thread and ends with it, even when cancelled."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._closed = False

    def __del__(self) -> None:
        if self._db is not None:
            warnings.warn(f"{self._path} was never closed", ResourceWarning, stacklevel=1)
            self._db.close()

    async def create_session(
        self, title: str = "", metadata: Any = None, *, session_id: str | None = None, user_id: str = ""
    ) -> str:
        self._check_open()
        made = make_id() if session_id is None else check_text("session_id", session_id, 1, 36)
        given = check_text("user_id", user_id, 0, 255), check_text("title", title)
        stored = encode_json("metadata", metadata)

        def work(db: sqlite3.Connection) -> str:
            moment = current_time()
            try:
                db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)", (made, *given, moment, moment, stored))
            except sqlite3.IntegrityError as error:
                raise ConflictError(f"there is a session {made!r}") from error
            return made

        return await self._run(work)

    async def add_message(
        self, session_id: str, role: str, content: str, metadata: Any = None, *, message_id: str | None = None
    ) -> str:
        self._check_open()
        return (await self._append(session_id, [check_row(role, content, metadata, message_id)]))[0]

    async def add_messages(self, session_id: str, messages: Any) -> list[str]:
        self._check_open()
        return await self._append(session_id, list(check_rows(messages)))

    async def _append(self, session_id: str, rows: list[NewRow]) -> list[str]:
        session = check_key("session_id", session_id)
        await self._run(lambda db: append_messages(db, session, rows), write=True)
        return [row.id for row in rows]

    async def get_history(self, session_id: str, limit: int | None = None, *, before: str | None = None) -> list[Any]:
        self._check_open()
        most = None if limit is None else check_row_count("limit", limit)
        asked = {
            "session": check_key("session_id", session_id),
            "before": None if before is None else check_key("before", before),
        }
        rows = await self._run(lambda db: list(islice(db.execute(HISTORY, asked), most)))
        return [build_record(row) for row in reversed(rows)]

    async def get_sessions(
        self, limit: int | None = 50, offset: int = 0, *, user_id: str | None = None, metadata: Any = None
    ) -> list[Any]:
        self._check_open()
        start, most = check_row_count("offset", offset), None if limit is None else check_row_count("limit", limit)
        user = None if user_id is None else check_key("user_id", user_id)
        wanted = parse_exact(encode_json("metadata", metadata))

        def work(db: sqlite3.Connection) -> list[Any]:
            order = " WHERE :user IS NULL OR user_id = :user ORDER BY updated_at DESC, id DESC"
            rows = db.execute(SESSIONS + order, {"user": user})
            shown = ((build_record(row), parse_exact(row["metadata"])) for row in rows)
            found = (one for one, stored in shown if contains_json(stored, wanted))
            return list(islice(found, start, None if most is None else start + most))

        return await self._run(work)

    async def get_session(self, session_id: str) -> Any:
        self._check_open()
        session = check_key("session_id", session_id)
        row = await self._run(lambda db: db.execute(SESSIONS + " WHERE id = ?", (session,)).fetchone())
        return row and build_record(row)

    async def count_sessions(self) -> int:
        self._check_open()
        return int(await self._run(lambda db: db.execute("SELECT count(*) FROM sessions").fetchone()[0]))

    async def update_session_title(self, session_id: str, title: str) -> None:
        self._check_open()
        session, new = check_key("session_id", session_id), check_text("title", title)

        def work(db: sqlite3.Connection) -> None:
            moment = next_time(db, session)
            db.execute("UPDATE sessions SET title = ?, updated_at = ? WHERE id = ?", (new, moment, session))

        await self._run(work, write=True)

    async def delete_session(self, session_id: str) -> None:
        self._check_open()
        session = check_key("session_id", session_id)
        await self._run(lambda db: db.execute("DELETE FROM sessions WHERE id = ?", (session,)).close())

    async def clear_all(self) -> None:
        self._check_open()
        await self._run(lambda db: db.execute("DELETE FROM sessions").close())

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryClosedError("this memory is closed")

    async def _run(self, work: Callable[[sqlite3.Connection], Result], *, write: bool = False) -> Result:
        running = asyncio.ensure_future(asyncio.to_thread(self._work, work, write))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # The next call on this handle must find the work done, or never to be done.
            await asyncio.wait({running})
            raise

    def _work(self, work: Callable[[sqlite3.Connection], Result], write: bool) -> Result:
        with self._lock:
            self._check_open()
            try:
                self._db = self._db or open_store(self._path)
                with write_transaction(self._db) if write else nullcontext():
                    return work(self._db)
            except sqlite3.OperationalError as error:
                raise BackendUnavailableError(f"{self._path}: {error}") from error
            except sqlite3.Error as error:
                raise FluxMemoryError(f"{self._path}: {error}") from error
