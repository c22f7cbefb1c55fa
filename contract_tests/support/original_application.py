"""Databases of each generation of the original application, created without the library's code."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

SQLITE_TABLES: Final = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY,
    title TEXT DEFAULT '',
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    metadata TEXT DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS messages (
    id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    metadata TEXT DEFAULT '{}',
    created_at TEXT NOT NULL,
    FOREIGN KEY (session_id) REFERENCES sessions(id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS idx_messages_session ON messages(session_id, created_at);
"""
POSTGRES_TABLES: Final = """
CREATE TABLE IF NOT EXISTS sessions (
    id VARCHAR(36) PRIMARY KEY,
    title TEXT DEFAULT '',
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    metadata JSONB DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS messages (
    id VARCHAR(36) PRIMARY KEY,
    session_id VARCHAR(36) NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    metadata JSONB DEFAULT '{}',
    created_at TIMESTAMP NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_messages_session ON messages(session_id, created_at);
"""
USERS: Final = """
ALTER TABLE sessions ADD COLUMN user_id TEXT DEFAULT '';
CREATE INDEX IF NOT EXISTS idx_sessions_user ON sessions(user_id, updated_at);
"""
INSERT_SESSION: Final = "INSERT INTO sessions (id, title, created_at, updated_at, metadata) VALUES (?, ?, ?, ?, ?)"
INSERT_MESSAGE: Final = (
    "INSERT INTO messages (id, session_id, role, content, metadata, created_at) VALUES (?, ?, ?, ?, ?, ?)"
)


def make_file(path: Path, *, generation: int = 1) -> sqlite3.Connection:
    """Create an empty file of a generation and return a connection in autocommit mode; the caller closes it."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(SQLITE_TABLES + (USERS if generation > 1 else ""))
    return db


def make_file_with_data(path: Path, *, generation: int = 1) -> None:
    """Create a file with two sessions whose messages were not written in the order of their times."""
    with closing(make_file(path, generation=generation)) as db:
        add_sessions(db, "one", "two")
        for number, (session, when) in enumerate(
            [("one", 3), ("two", 1), ("one", 1), ("one", 2), ("two", 1), ("one", 3)], start=1
        ):
            add_message(db, f"m{number}", session, f"2026-02-05T15:17:0{when}.407069")


def add_sessions(db: sqlite3.Connection, *ids: str, when: str | float = "2026-02-05T15:17:45.407069") -> None:
    """Store sessions as the original application did."""
    for id_ in ids:
        db.execute(INSERT_SESSION, (id_, f"title of {id_}", when, when, '{"lang": "ko"}'))


def add_message(db: sqlite3.Connection, id_: str | None, session_id: str, when: str | float) -> None:
    """Store a message as the original application did."""
    db.execute(INSERT_MESSAGE, (id_, session_id, "user", f"content of {id_}", '{"n": 1.0}', when))


def dump_file(path: Path) -> list[str]:
    """Return a file's whole content as SQL, read without the library."""
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def read_rows(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Read rows from a file without the library."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql, values).fetchall()
