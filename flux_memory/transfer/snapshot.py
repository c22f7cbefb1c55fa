"""A SQLite file as it was at one moment, read without changing it by a byte and without leaving a file."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flux_memory.errors import MigrationError
from flux_memory.transfer import private_copy
from flux_memory.transfer.helper import Helper
from flux_memory.transfer.leftovers import private_directory

_MAGIC: Final = b"SQLite format 3\x00"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CACHE: Final = "PRAGMA cache_size = -8000"
_LIVE: Final = "mode=ro"
_STILL: Final = "mode=ro&immutable=1"
_VERSION: Final = "PRAGMA data_version"
_ATTEMPTS: Final = 50
"""Times that a state is sought in which nobody writes; a commit in between makes it two."""
_LARGE: Final = 32 * 1024 * 1024
"""Bytes of a file from which on a second process is worth its start."""
_BUSY_SECONDS = 30.0
"""How long to wait for a lock that another process holds."""
_BUSY: Final = "another process holds the file's lock; stop it, or wait until its transaction ends, and run again"


@dataclass
class Snapshot:
    """A file's state, opened."""

    db: sqlite3.Connection
    helper: Helper | None
    """A process that has opened the same state, where the file is large."""

    def interrupt(self) -> None:
        """Stop whatever is being read, from another thread."""
        self.db.interrupt()
        if self.helper is not None:
            self.helper.kill()


@contextmanager
def open_snapshot(path: Path) -> Iterator[Snapshot]:
    """Open a file's present state; what an application writes from now on is not seen.

    Processes that share the file through a write-ahead log are joined as a reader. Any other file is copied, since
    a reader would keep its writers waiting or leave files beside it; the copy is unlinked before it is read, so that
    no end of this process leaves it behind.

    Raises:
        MigrationError: The file cannot be read; the message says what to do.
    """
    check_file(path)
    with ExitStack() as stack:
        helper = None
        if path.stat().st_size >= _LARGE and (os.cpu_count() or 1) > 1:
            helper = Helper()
            stack.callback(helper.close)
        with private_directory() as directory:
            copy = directory / "snapshot.db"
            if _copy(path, copy) == private_copy.LIVE:
                snapshot = _join(path, helper)
            else:
                snapshot = Snapshot(connect(copy, _STILL), helper)
                if helper is not None:
                    helper.open(copy, _STILL)
        stack.callback(snapshot.db.close)
        try:
            yield snapshot
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from error


def _join(path: Path, helper: Helper | None) -> Snapshot:
    """Open a file that others write to; the helper's state is the same if nobody committed between the two."""
    if helper is None:
        return Snapshot(connect(path, _LIVE), None)
    with closing(connect(path, _LIVE)) as watch:
        watch.execute("COMMIT")
        for _ in range(_ATTEMPTS):
            version = watch.execute(_VERSION).fetchone()
            db = connect(path, _LIVE)
            helper.open(path, _LIVE)
            if watch.execute(_VERSION).fetchone() == version:
                return Snapshot(db, helper)
            db.close()
    return Snapshot(connect(path, _LIVE), None)


def check_file(path: Path) -> None:
    """Refuse what is not a SQLite database file.

    Raises:
        MigrationError: The message says what it is, and what to do.
    """
    try:
        if path.is_dir():
            raise MigrationError(f"{path} is a directory; give --sqlite-path the database file in it")
        size = path.stat().st_size
        readable = os.access(path, os.R_OK)
    except FileNotFoundError:
        raise MigrationError(f"there is no file {path}; check --sqlite-path and the working directory") from None
    except OSError as error:
        raise MigrationError(f"{path} cannot be read: {error.strerror}; check the path and its rights") from error
    if not readable:
        raise MigrationError(f"{path} cannot be read: no permission; run as its owner, or grant read access")
    if size == 0:
        raise MigrationError(f"{path} is empty; check --sqlite-path, there is nothing to move")


def _copy(path: Path, target: Path) -> int:
    result = subprocess.run(  # noqa: S603 - this interpreter, our own module
        [sys.executable, "-P", private_copy.__file__, path.absolute(), target, str(_BUSY_SECONDS)],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if result.returncode in {0, private_copy.LIVE}:
        return result.returncode
    name, _, reason = result.stderr.strip().partition("|")
    raise MigrationError(_advice(path, name, reason))


def _unreadable(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> MigrationError:
    # What cannot be decoded are SQLite's own words, which quote damaged tables, or the tables' own names.
    damaged = isinstance(error, UnicodeDecodeError) or "decode to UTF-8" in str(error)
    name = "SQLITE_CORRUPT" if damaged else getattr(error, "sqlite_errorname", "")
    return MigrationError(_advice(path, name, str(error)))


def _advice(path: Path, name: str, reason: str) -> str:
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"{path} is locked: {_BUSY}"
    if name == "SQLITE_NOTADB":
        return f"{path} is not a SQLite database; check --sqlite-path"
    if name == "SQLITE_CORRUPT":
        return f"{path} is damaged; copy it, try the sqlite3 shell's .recover on the copy, and move that"
    if name == "SQLITE_FULL" or any(os.strerror(code) in reason for code in _NO_ROOM):
        place = tempfile.gettempdir()
        return f"the temporary directory {place} has no room for a copy of {path}; set TMPDIR to a larger one"
    return f"{path} cannot be read: {reason or name or 'the copying process was killed'}; check the file and its rights"


def connect(path: Path, parameters: str) -> sqlite3.Connection:
    """Open a file's present state by itself.

    Raises:
        MigrationError: It cannot be opened.
    """
    try:
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?{parameters}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=_BUSY_SECONDS,
        )
    except sqlite3.Error as error:
        raise MigrationError(f"{path} cannot be opened: {error}; check its rights") from error
    try:
        db.execute(_CACHE)
        db.execute("BEGIN")
        # The read that takes the snapshot.
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        db.close()
        raise _unreadable(path, error) from error
    return db
