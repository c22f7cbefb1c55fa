"""A memory written from the contract's words alone: sqlite3 in threads, and nothing of the library but its errors."""

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

from independent_values import NewRow, comparable, contains, count, json_text, key, new_id, new_row, new_rows, text

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    FluxMemoryError,
    MemoryClosedError,
    SessionNotFoundError,
)

Result = TypeVar("Result")

# One row a message, in the order of its rowid: a plan unlike the library's counter on the session's row.
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


def record(row: sqlite3.Row) -> Any:
    """Return a row as callers see it."""
    try:
        metadata = json.loads(row["metadata"])
    except ValueError as error:
        raise FluxMemoryError(f"the metadata of {row['id']!r} is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise FluxMemoryError(f"the metadata of {row['id']!r} is damaged: it is no object")
    return dict(row) | {"metadata": metadata}


def now() -> str:
    """Return the time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def connect(path: Path) -> sqlite3.Connection:
    """Open the store; who comes first makes it."""
    db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys = ON")
    if not db.execute("PRAGMA user_version").fetchone()[0]:
        with written(db):
            if not db.execute("PRAGMA user_version").fetchone()[0]:
                for statement in TABLES.split(";"):
                    db.execute(statement)
                db.execute("PRAGMA user_version = 1")
    return db


@contextmanager
def written(db: sqlite3.Connection) -> Iterator[None]:
    """Everything in the block, or nothing; one writer at a time."""
    db.execute("BEGIN IMMEDIATE")
    with db:
        yield


def next_time(db: sqlite3.Connection, session: str) -> str:
    """Return the time of a change to a session, not before its last one."""
    row = db.execute("SELECT updated_at FROM sessions WHERE id = ?", (session,)).fetchone()
    if row is None:
        raise SessionNotFoundError(f"there is no session {session!r:.60}")
    return max(now(), str(row["updated_at"]))


def said(role: str, content: str, metadata: str) -> tuple[Any, ...]:
    """Return what makes an add a retry, to be compared."""
    return role, content, comparable(metadata)


def append(db: sqlite3.Connection, session: str, rows: Iterable[NewRow]) -> None:
    """Store what is not there."""
    moment = next_time(db, session)
    for row in rows:
        known = db.execute("SELECT * FROM messages WHERE session = ? AND id = ?", (session, row.id)).fetchone()
        if known is None:
            db.execute(INSERT, (session, *row, moment))
            db.execute("UPDATE sessions SET updated_at = ? WHERE id = ?", (moment, session))
        elif said(known["role"], known["content"], known["metadata"]) != said(*row[1:]):
            raise ConflictError(f"the session has another message {row.id!r}")


class IndependentMemory:
    """One connection behind one lock; a call works on it in a thread, and is over when that is, cancelled or not."""

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
        made = new_id() if session_id is None else text("session_id", session_id, 1, 36)
        given = text("user_id", user_id, 0, 255), text("title", title)
        stored = json_text("metadata", metadata)

        def work(db: sqlite3.Connection) -> str:
            moment = now()
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
        return (await self._append(session_id, [new_row(role, content, metadata, message_id)]))[0]

    async def add_messages(self, session_id: str, messages: Any) -> list[str]:
        self._check_open()
        return await self._append(session_id, list(new_rows(messages)))

    async def _append(self, session_id: str, rows: list[NewRow]) -> list[str]:
        session = key("session_id", session_id)
        await self._run(lambda db: append(db, session, rows), write=True)
        return [row.id for row in rows]

    async def get_history(self, session_id: str, limit: int | None = None, *, before: str | None = None) -> list[Any]:
        self._check_open()
        most = None if limit is None else count("limit", limit)
        asked = {"session": key("session_id", session_id), "before": None if before is None else key("before", before)}
        rows = await self._run(lambda db: list(islice(db.execute(HISTORY, asked), most)))
        return [record(row) for row in reversed(rows)]

    async def get_sessions(
        self, limit: int | None = 50, offset: int = 0, *, user_id: str | None = None, metadata: Any = None
    ) -> list[Any]:
        self._check_open()
        start, most = count("offset", offset), None if limit is None else count("limit", limit)
        user = None if user_id is None else key("user_id", user_id)
        wanted = comparable(json_text("metadata", metadata))

        def work(db: sqlite3.Connection) -> list[Any]:
            order = " WHERE :user IS NULL OR user_id = :user ORDER BY updated_at DESC, id DESC"
            rows = db.execute(SESSIONS + order, {"user": user})
            shown = ((record(row), comparable(row["metadata"])) for row in rows)
            found = (one for one, stored in shown if contains(stored, wanted))
            return list(islice(found, start, None if most is None else start + most))

        return await self._run(work)

    async def get_session(self, session_id: str) -> Any:
        self._check_open()
        session = key("session_id", session_id)
        row = await self._run(lambda db: db.execute(SESSIONS + " WHERE id = ?", (session,)).fetchone())
        return row and record(row)

    async def count_sessions(self) -> int:
        self._check_open()
        return int(await self._run(lambda db: db.execute("SELECT count(*) FROM sessions").fetchone()[0]))

    async def update_session_title(self, session_id: str, title: str) -> None:
        self._check_open()
        session, new = key("session_id", session_id), text("title", title)

        def work(db: sqlite3.Connection) -> None:
            moment = next_time(db, session)
            db.execute("UPDATE sessions SET title = ?, updated_at = ? WHERE id = ?", (new, moment, session))

        await self._run(work, write=True)

    async def delete_session(self, session_id: str) -> None:
        self._check_open()
        session = key("session_id", session_id)
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
            # What follows on this handle must find the work done, or never to be done.
            await asyncio.wait({running})
            raise

    def _work(self, work: Callable[[sqlite3.Connection], Result], write: bool) -> Result:
        with self._lock:
            self._check_open()
            try:
                self._db = self._db or connect(self._path)
                with written(self._db) if write else nullcontext():
                    return work(self._db)
            except sqlite3.OperationalError as error:
                raise BackendUnavailableError(f"{self._path}: {error}") from error
            except sqlite3.Error as error:
                raise FluxMemoryError(f"{self._path}: {error}") from error
