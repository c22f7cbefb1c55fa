"""sqlite3's errors turned into ours: one table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from flux_memory.errors import BackendUnavailableError, FluxMemoryError, SchemaError

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: (
        BackendUnavailableError,
        "another process holds the lock; retry, or raise timeout=",
    ),
    sqlite3.SQLITE_LOCKED: (
        BackendUnavailableError,
        "another connection holds the lock; retry, or raise timeout=",
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
    sqlite3.SQLITE_NOTADB: (SchemaError, "the file is not a SQLite database; check the path"),
    sqlite3.SQLITE_CORRUPT: (
        FluxMemoryError,
        "the file is damaged; copy it, then try the sqlite3 shell's .recover",
    ),
}
"""SQLite's primary result codes: our error for each, and what to do."""


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn the driver's errors, and the file system's, into ours."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None) or 0
        kind, advice = _ADVICE.get(code & 0xFF, (FluxMemoryError, "see the cause"))
        raise kind(f"SQLite on {path}: {error}: {advice}") from error
    except FluxMemoryError:
        raise
    except OSError as error:
        raise BackendUnavailableError(f"SQLite on {path}: {error.strerror or error}; check the path") from error
