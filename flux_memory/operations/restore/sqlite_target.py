"""Restores rows into a SQLite memory: as a new file, in place of all rows, or in place of a user's."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from flux_memory.backends.sqlite.opening import connect
from flux_memory.errors import BackupError, FluxMemoryError
from flux_memory.operations.backup import hidden
from flux_memory.operations.backup.contents import Contents
from flux_memory.operations.backup.sqlite_copy import copy_pages, reading_copy
from flux_memory.operations.backup.sqlite_reading import read_state
from flux_memory.operations.restore.populated import Populated
from flux_memory.operations.restore.unpacking import Unpacked
from flux_memory.transfer.source.reader import inspect_source
from flux_memory.transfer.tempfiles import publish
from flux_memory.transfer.threads import Stopped

COUNT_USER: Final = """
SELECT count(*), coalesce(sum((SELECT count(*) FROM messages WHERE session_id = sessions.id)), 0)
FROM sessions
WHERE user_id = ?
"""
COUNT: Final = "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM messages)"
COUNT_FEEDBACK: Final = "SELECT count(*) FROM feedback"
COUNT_FEEDBACK_OF_USER: Final = "SELECT count(*) FROM feedback WHERE user_id = ?"
HAS_TABLES: Final = "SELECT count(*) FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
ATTACH: Final = "ATTACH ? AS backup"
SELECT_TAKEN: Final = """
SELECT main.sessions.id
FROM backup.sessions JOIN main.sessions ON main.sessions.id = backup.sessions.id
WHERE main.sessions.user_id <> backup.sessions.user_id
LIMIT 3
"""
# Details and messages go with their sessions.
DELETE_USER: Final = (
    "DELETE FROM main.sessions WHERE user_id = ?",
    "DELETE FROM main.feedback WHERE user_id = ?",
)
COPY_USER: Final = (
    """
    INSERT INTO main.sessions (id, user_id, created_at, updated_at, message_count, revision)
    SELECT id, user_id, created_at, updated_at, message_count, lower(hex(randomblob(16))) FROM backup.sessions
    """,
    """
    INSERT INTO main.session_details (session_id, title, metadata)
    SELECT session_id, title, metadata FROM backup.session_details
    """,
    """
    INSERT INTO main.messages (session_id, seq, id, role, content, metadata, created_at)
    SELECT session_id, seq, id, role, content, metadata, created_at FROM backup.messages
    """,
    """
    INSERT INTO main.feedback (
        id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at
    )
    SELECT id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at
    FROM backup.feedback
    """,
)
_LOCK_SECONDS: Final = 30.0
_PAGES: Final = 2048
_STEP_CODES: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def inspect_file(path: Path, user: str | None) -> Populated:
    """Return what a restore would replace in a file; nothing if the file does not exist.

    Raises:
        FluxMemoryError: The file is not a memory, or cannot be read.
    """
    if not path.exists():
        if path.is_symlink():
            raise BackupError(f"{path} is a link to a file that does not exist; remove it, or give another path")
        if not path.absolute().parent.is_dir():
            raise BackupError(f"the directory {path.absolute().parent} does not exist; create it first")
        return Populated(exists=False)
    if path.stat().st_size == 0:
        return Populated(exists=True)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_LOCK_SECONDS)) as db:
            if not db.execute(HAS_TABLES).fetchone()[0]:
                return Populated(exists=True)
            layout = inspect_source(db)
            if user is not None:
                # A file of the original application's first generation knows no users.
                counts = db.execute(COUNT_USER, (user,)).fetchone() if layout.has_user_id else (0, 0)
                feedback = db.execute(COUNT_FEEDBACK_OF_USER, (user,)).fetchone()[0] if layout.has_feedback else 0
                return Populated(counts[0], counts[1], feedback)
            sessions, messages = db.execute(COUNT).fetchone()
            feedback = db.execute(COUNT_FEEDBACK).fetchone()[0] if layout.has_feedback else 0
            return Populated(sessions, messages, feedback, layout.unknown)
    except sqlite3.Error as error:
        raise BackupError(
            f"{path} cannot be read: {error}; check that it is a SQLite memory, and its rights"
        ) from error


def create_file(unpacked: Unpacked, path: Path, stopped: Stopped) -> None:
    """Create a file with the rows of a backup; it appears once it is complete, proven and durable.

    Raises:
        FluxMemoryError: The file cannot be written, or exists by now.
    """
    try:
        with hidden.hidden_file(path.absolute().parent) as made:
            with reading_copy(unpacked.path) as db:
                copy_pages(db, made, stopped)
            with reading_copy(made) as db:
                _compare(unpacked, read_state(db, lambda _: None).contents)
            publish(made, path)
    except FileExistsError:
        raise BackupError(f"another process has created {path} meanwhile; stop it, and run again") from None
    except OSError as error:
        raise BackupError(
            f"{path} cannot be written: {error.strerror or error}; check the directory, its rights and its room"
        ) from error


def overwrite_file(unpacked: Unpacked, path: Path, stopped: Stopped) -> None:
    """Give an existing file all the rows of a backup in place of its own, in one transaction of SQLite.

    Raises:
        FluxMemoryError: The file cannot be written; it has its rows as before.
    """
    began = time.monotonic()

    def look(status: int, _remaining: int, _total: int) -> None:
        if stopped():
            raise BackupError("it was cancelled")
        if status in _STEP_CODES and time.monotonic() > began + _LOCK_SECONDS:
            raise BackupError(f"another process holds the lock of {path}; nothing was changed. Stop it, and run again")

    with _explained(path), reading_copy(unpacked.path) as db:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as target:
            db.backup(target, pages=_PAGES, progress=look, sleep=0.05)
        restored, _ = connect(str(path), _LOCK_SECONDS)
        with closing(restored) as target:
            _compare(unpacked, read_state(target, lambda _: None).contents)


def replace_user(unpacked: Unpacked, path: Path, user: str, stopped: Stopped) -> None:
    """Give an existing file the rows of one user, in place of that user's rows, in one transaction.

    Raises:
        FluxMemoryError: The file cannot be written, or a session's id belongs to another user; nothing was changed.
    """
    with _explained(path):
        db, _ = connect(str(path), _LOCK_SECONDS)
        with closing(db):
            db.set_progress_handler(stopped, 10_000)
            db.execute(ATTACH, (str(unpacked.path),))
            db.execute("BEGIN IMMEDIATE")
            if taken := [id_ for (id_,) in db.execute(SELECT_TAKEN)]:
                raise BackupError(
                    f"sessions of the backup belong to another user in {path}: {', '.join(taken)}; nothing was "
                    "changed. Restore into another file"
                )
            for sql in DELETE_USER:
                db.execute(sql, (user,))
            for sql in COPY_USER:
                db.execute(sql)
            db.set_progress_handler(None, 0)
            _compare(unpacked, read_state(db, lambda _: None, user=user).contents)
            db.execute("COMMIT")


def _compare(unpacked: Unpacked, found: Contents) -> None:
    if differences := unpacked.contents.differences(found):
        raise BackupError(
            f"DIFFERENT: the restored rows are not those of the backup: {'; '.join(differences)}. Drop the triggers "
            "that change rows, check the disk, and run again"
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FluxMemoryError:
        raise
    except (sqlite3.Error, OSError) as error:
        raise BackupError(
            f"{path} cannot be written: {error}; nothing was changed. Stop the processes that use it, check its rights "
            "and its room, and run again"
        ) from error
