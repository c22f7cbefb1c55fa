"""SQLite files for the tests of reading a source: opened as a migration does, and written as an application does."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from transfer_memories import insert_message, insert_session

from flux_memory.transfer.source.snapshot import snapshot_of


@contextmanager
def open_snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file as a migration does."""
    with snapshot_of(path) as snapshot:
        snapshot.open()
        yield snapshot.db


def count_sessions(path: Path) -> int:
    """Return the number of sessions that a migration reads from a file."""
    with open_snapshot(path) as db:
        return int(db.execute("SELECT count(*) FROM sessions").fetchone()[0])


def use_write_ahead_log(path: Path) -> None:
    """Switch a file to WAL mode."""
    write_without_waiting(path, "PRAGMA journal_mode = WAL")


def write_without_waiting(path: Path, *statements: str) -> None:
    """Open a file, write to it without waiting for locks, and close it."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        for statement in statements:
            db.execute(statement)


def append_session(path: Path) -> None:
    """Add a session with a message, in one transaction, without waiting for locks."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        db.execute("BEGIN")
        insert_session(db, "added")
        insert_message(db, "added", "added")
        db.execute("COMMIT")
