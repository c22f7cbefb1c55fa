"""Translates sqlite3's errors into the library's, by one table."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from flux_memory.errors import BackendUnavailableError, FluxMemoryError, SchemaError

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: (
        BackendUnavailableError,
        "another process holds the lock, and nothing was stored; retry, or raise timeout=",
    ),
    sqlite3.SQLITE_LOCKED: (
        BackendUnavailableError,
        "another connection holds the lock, and nothing was stored; retry, or raise timeout=",
    ),
    sqlite3.SQLITE_CANTOPEN: (BackendUnavailableError, "check that the directory exists and can be written"),
    sqlite3.SQLITE_READONLY: (
        BackendUnavailableError,
        "the file or its directory is read-only; check who owns them",
    ),
    sqlite3.SQLITE_PERM: (BackendUnavailableError, "check who owns the file"),
    sqlite3.SQLITE_FULL: (
        BackendUnavailableError,
        "the disk is full; nothing was stored. Make room and retry",
    ),
    sqlite3.SQLITE_IOERR: (BackendUnavailableError, "the disk failed or is full; see the system's log"),
    sqlite3.SQLITE_INTERRUPT: (
        BackendUnavailableError,
        "the call took longer than its deadline, and nothing was stored; raise timeout=",
    ),
    sqlite3.SQLITE_CONSTRAINT: (
        FluxMemoryError,
        "nothing was stored; drop a trigger or a constraint that flux-memory did not create, or restore a backup",
    ),
    sqlite3.SQLITE_ERROR: (
        SchemaError,
        "the tables are not those that flux-memory creates; run flux-memory check to see what differs",
    ),
    sqlite3.SQLITE_NOTADB: (SchemaError, "the file is not a SQLite database; check the path"),
    sqlite3.SQLITE_CORRUPT: (
        FluxMemoryError,
        "the file is damaged; copy it, then try the sqlite3 shell's .recover",
    ),
}
"""The library's error, and the advice in its message, by SQLite's primary result code."""

_STOPPED: Final = "user-defined function raised exception"
"""sqlite3's error where the comparison with a metadata filter was stopped; our function raises in no other case."""


def check_changed(changed: int, wanted: int = 1) -> None:
    """Raise unless a write changed as many rows as it should: a trigger that is added to an open file can drop rows.

    Raises:
        sqlite3.IntegrityError: Not a `FluxMemoryError`, so that the worker rolls the whole write back.
    """
    if changed != wanted:
        error = sqlite3.IntegrityError(f"a write changed {changed} of {wanted} rows")
        error.sqlite_errorcode = sqlite3.SQLITE_CONSTRAINT
        raise error


def is_busy(error: BaseException | None) -> bool:
    """Return whether another connection's lock was in the way."""
    return _primary_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_transient(error: BaseException) -> bool:
    """Return whether a lock or a deadline caused the error, so that the file itself may be sound."""
    return is_busy(error) or _primary_code(error) == sqlite3.SQLITE_INTERRUPT


def is_read_only(error: BaseException) -> bool:
    """Return whether the file, or a file that SQLite needs beside it, cannot be written."""
    return _primary_code(error) in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}


def leaves_commit_unknown(error: BaseException) -> bool:
    """Return whether a COMMIT with this error may have taken effect, now or after a crash."""
    return not isinstance(error, sqlite3.Error) or _primary_code(error) == sqlite3.SQLITE_IOERR


def _primary_code(error: BaseException | None) -> int:
    if str(error) == _STOPPED:
        return sqlite3.SQLITE_INTERRUPT
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _why_not_opened(path: str) -> str | None:
    """Return advice for a file that SQLite cannot open, for which it has one message."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return "the process has no file descriptor left; close files, or raise the limit of open files"
    directory = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120 - Path raises where a directory is closed
    if not os.access(directory, os.X_OK):
        return f"this user may not enter {directory}, or it does not exist; check who owns it"
    needed = ((path, os.R_OK), (f"{path}-wal", os.R_OK | os.W_OK), (f"{path}-shm", os.R_OK | os.W_OK))
    for name, rights in needed:
        if os.path.lexists(name) and not os.access(name, rights):
            return f"this user may not use {name}; check who owns it, and its mode"
    return None


@contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Translate the errors of the driver and of the file system into the library's."""
    try:
        yield
    except Exception as error:
        translated = translate(error, path)
        if translated is error:
            raise
        raise translated from error


def translate(error: Exception, path: str) -> Exception:
    """Return the library's error for one of the driver or of the file system, and any other error as it is."""
    if isinstance(error, sqlite3.Error):
        kind, advice = _ADVICE.get(
            _primary_code(error), (FluxMemoryError, "look up its words in SQLite's documentation")
        )
        if _primary_code(error) == sqlite3.SQLITE_CANTOPEN:
            advice = _why_not_opened(path) or advice
        reason = "interrupted" if str(error) == _STOPPED else error
        return kind(f"SQLite on {path}: {reason}: {advice}")
    if isinstance(error, UnicodeDecodeError):
        # The message of an SQLite error that quotes a damaged table.
        kind, advice = _ADVICE[sqlite3.SQLITE_CORRUPT]
        return kind(f"SQLite on {path}: {error.object.decode(errors='backslashreplace')}: {advice}")
    if isinstance(error, OSError) and not isinstance(error, FluxMemoryError):
        return BackendUnavailableError(f"SQLite on {path}: {error.strerror or error}; check the path")
    return error
