"""A conversation store as an HTTP service: `python service.py DIRECTORY --port 8080`.

Each call is a POST of a JSON object to the path of an operation. Ids are in the object, never in a URL: they may be
any text. A space is a store of its own, in a SQLite file of its own. Every write carries a request's id and is done
once, however often it is sent.
"""

from __future__ import annotations

import argparse
import re
import socket
import sqlite3
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from flux_memory import ConflictError, FluxMemoryError, InvalidInputError, SessionNotFoundError, records

TABLES: Final = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, user_id TEXT, title TEXT, created_at TEXT, updated_at TEXT, metadata TEXT,
    message_count INTEGER DEFAULT 0
);
CREATE TABLE IF NOT EXISTS messages (
    session_id TEXT REFERENCES sessions ON DELETE CASCADE, seq INTEGER, id TEXT, role TEXT, content TEXT, metadata TEXT,
    created_at TEXT, PRIMARY KEY (session_id, seq), UNIQUE (session_id, id)
);
CREATE TABLE IF NOT EXISTS requests (id TEXT PRIMARY KEY, done_at TEXT);
CREATE INDEX IF NOT EXISTS requests_done_at ON requests (done_at);
"""
SESSIONS: Final = "SELECT id, user_id, title, created_at, updated_at, metadata, message_count FROM sessions "
REPEATED_FOR: Final = timedelta(hours=1)
"""How long a request is known: longer than any client repeats it."""
STATUS: Final = {InvalidInputError: 400, SessionNotFoundError: 404, ConflictError: 409}


def create(db: sqlite3.Connection, now: str, session: Sequence[str]) -> None:
    """Create a session from (id, user_id, title, metadata)."""
    id_, user_id, title, metadata = session
    values = (id_, user_id, title, now, now, metadata)
    sql = "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING"
    if not db.execute(sql, values).rowcount:
        raise records.session_id_taken(id_)


def add(db: sqlite3.Connection, now: str, session_id: str, messages: Sequence[Sequence[str]]) -> None:
    """Append messages (id, role, content, metadata), except those that are stored already."""
    found = db.execute("SELECT message_count, updated_at FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if found is None:
        raise records.session_not_found(session_id)
    count, updated_at = found
    now = max(now, updated_at)
    for row in map(records.MessageRow._make, messages):
        known = "SELECT role, content, metadata FROM messages WHERE session_id = ? AND id = ?"
        stored = db.execute(known, (session_id, row.id)).fetchone()
        if stored is None:
            count += 1
            db.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)", (session_id, count, *row, now))
        elif not row.same_as(*stored):
            raise records.message_id_taken(session_id, row.id)
    if count > found[0]:
        db.execute("UPDATE sessions SET message_count = ?, updated_at = ? WHERE id = ?", (count, now, session_id))


def rename(db: sqlite3.Connection, now: str, session_id: str, title: str) -> None:
    """Change a session's title."""
    sql = "UPDATE sessions SET title = ?, updated_at = max(updated_at, ?) WHERE id = ?"
    if not db.execute(sql, (title, now, session_id)).rowcount:
        raise records.session_not_found(session_id)


def delete(db: sqlite3.Connection, _now: str, session_id: str) -> None:
    """Delete a session and its messages."""
    db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))


def clear(db: sqlite3.Connection, _now: str) -> None:
    """Delete every session."""
    db.execute("DELETE FROM sessions")


def history(db: sqlite3.Connection, session_id: str, limit: int, before: str | None) -> list[Any]:
    """Return the newest messages, newest first."""
    sql = """
        SELECT id, role, content, metadata, created_at FROM messages WHERE session_id = :session AND (:before IS NULL
        OR seq < (SELECT seq FROM messages WHERE session_id = :session AND id = :before)) ORDER BY seq DESC LIMIT :limit
    """
    return db.execute(sql, {"session": session_id, "before": before, "limit": limit}).fetchall()


def sessions(db: sqlite3.Connection, limit: int, offset: int, user_id: str | None, part: str | None) -> list[Any]:
    """Return a page of sessions, the most recently changed first."""
    sql = (
        SESSIONS
        + """
        WHERE (:user IS NULL OR user_id = :user) AND (:part IS NULL OR contains(metadata, :part))
        ORDER BY updated_at DESC, id DESC LIMIT :limit OFFSET :offset
    """
    )
    return db.execute(sql, {"user": user_id, "part": part, "limit": limit, "offset": offset}).fetchall()


def session(db: sqlite3.Connection, session_id: str) -> list[Any]:
    """Return one session, or nothing."""
    return db.execute(SESSIONS + "WHERE id = ?", (session_id,)).fetchall()


def count(db: sqlite3.Connection) -> list[Any]:
    """Return the number of sessions."""
    return db.execute("SELECT count(*) FROM sessions").fetchall()


WRITES: Final[dict[str, Callable[..., None]]] = {each.__name__: each for each in (create, add, rename, delete, clear)}
READS: Final[dict[str, Callable[..., list[Any]]]] = {
    each.__name__: each for each in (history, sessions, session, count)
}


class Service:
    """The spaces in a directory. A call does not await anything, so calls run one after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._databases: dict[str, sqlite3.Connection] = {}
        self._stopped_at: datetime | None = None

    async def call(self, request: web.Request) -> web.Response:
        """Answer a call: 200 with rows, or the status of an error with its text."""
        name, body = request.match_info["operation"], await request.json()
        try:
            db = self._database(body.pop("space"))
            if name in READS:
                return web.json_response(READS[name](db, **body))
            with db:
                self._write(db, WRITES[name], **body)
            return web.json_response([])
        except FluxMemoryError as error:
            return web.json_response(str(error), status=STATUS.get(type(error), 500))

    def _write(self, db: sqlite3.Connection, write: Callable[..., None], request: str, **arguments: Any) -> None:
        now = self._stopped_at or datetime.now(UTC)
        db.execute("DELETE FROM requests WHERE done_at < ?", (records.format_time(now - REPEATED_FOR),))
        if db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (request, records.format_time(now))).rowcount:
            write(db, records.format_time(now), **arguments)

    def _database(self, space: str) -> sqlite3.Connection:
        if space not in self._databases:
            if not re.fullmatch("[a-z0-9]{1,40}", space):
                raise InvalidInputError("a space has 1 to 40 lower-case letters and digits")
            db = sqlite3.connect(self._directory / f"{space}.db", isolation_level="IMMEDIATE")
            db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; {TABLES}")
            db.create_function("contains", 2, records.contains, deterministic=True)
            self._databases[space] = db
        return self._databases[space]

    async def stop_clock(self, request: web.Request) -> web.Response:
        """Stop the clock at a time, or let it run again: for tests."""
        at = await request.json()
        self._stopped_at = at and datetime.fromisoformat(at)
        return web.json_response([])

    async def drop(self, request: web.Request) -> web.Response:
        """Delete a space: for tests."""
        space = await request.json()
        if db := self._databases.pop(space, None):
            db.close()
            (self._directory / f"{space}.db").unlink()
        return web.json_response([])


def main() -> None:
    """Serve until interrupted; with `--for-tests`, the clock can be stopped and spaces be dropped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--for-tests", action="store_true")
    arguments = parser.parse_args()
    service = Service(arguments.directory)
    app = web.Application(client_max_size=0)
    operations = "|".join([*WRITES, *READS])
    app.router.add_post(f"/call/{{operation:{operations}}}", service.call)
    if arguments.for_tests:
        app.router.add_post("/clock", service.stop_clock)
        app.router.add_post("/drop", service.drop)
    with socket.create_server(("127.0.0.1", arguments.port)) as listener:
        sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        web.run_app(app, sock=listener, print=None, access_log=None)


if __name__ == "__main__":
    main()
