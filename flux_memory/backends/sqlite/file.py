"""The file of a SQLite memory: made for its owner alone, and watched while it is open."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from flux_memory.backends.sqlite.errors import is_passing
from flux_memory.errors import BackendUnavailableError, FluxMemoryError

_TRUSTED_SECONDS: Final = 0.05
"""Seconds for which reads trust that the file is still what it was, and writes that its log is."""
_TRUNCATED: Final = (
    "{} was truncated while it was open; stop what did it, copy what is left, -wal included, and restore a backup"
)


class OpenFile:
    """Notices that an open file was replaced, deleted, emptied or truncated.

    SQLite itself goes on with a file that has lost its name: what it acknowledges then is in no store.

    Args:
        path: The file; `:memory:` is watched by nobody.
        db: The connection to it.
        frozen: The file was opened as one that nobody changes.
    """

    def __init__(self, path: str, db: sqlite3.Connection, *, frozen: bool = False) -> None:
        self._path = path
        self._log = path + "-wal"
        self._db = db
        self._frozen = frozen
        watched = [] if path == ":memory:" else [path] if frozen else [path, self._log]
        self._known_stats = {name: os.stat(name) for name in watched if os.path.exists(name)}  # noqa: PTH110, PTH116 - quicker
        self._known_sizes = {name: known.st_size for name, known in self._known_stats.items()}
        self._truncated = False
        self._verified = time.monotonic()
        self._committed = time.time_ns()

    def verify_before_read(self) -> None:
        """Do what `verify` does, unless that was done a moment ago."""
        if not self._just_verified():
            self.verify()

    def verify_before_write(self) -> None:
        """Do what `verify` does; of the log only that it is there and no smaller, where that was done a moment ago.

        Since Linux 6.13 a file that was asked for its times gets finer ones at its next change, which makes the flush
        of a commit by a third slower. Each commit changes the log, and no other file.
        """
        if not (self._just_verified() and self._seems_whole()):
            self.verify()

    def verify(self) -> None:
        """Make sure that the file and its log are those that were opened, and whole.

        Raises:
            FluxMemoryError: They are not; the message says what to do.
            sqlite3.Error: A lock or a deadline ended the check before its verdict; the next call checks again.
        """
        self._verified = -math.inf
        if self._truncated:
            raise FluxMemoryError(_TRUNCATED.format(self._path))
        found = {name: self._found(name, known) for name, known in self._known_stats.items()}
        if self._frozen and (
            found[self._path].st_mtime_ns != self._known_stats[self._path].st_mtime_ns or _size(self._log)
        ):
            raise BackendUnavailableError(
                f"{self._path} was opened as a file that nobody changes, and somebody did; open the store again"
            )
        shrunk = any(stat.st_size < self._known_sizes[name] for name, stat in found.items())
        if shrunk and not self._is_whole():
            self._truncated = True
            raise FluxMemoryError(_TRUNCATED.format(self._path))
        # Not before the verdict: what is known now is what tells the next call that something was cut.
        self._known_stats = found
        self._known_sizes = {name: stat.st_size for name, stat in found.items()}
        self._verified = time.monotonic()

    def note_commit(self) -> None:
        """Remember the time and the log's size: who changes the log later is somebody else.

        It never fails: what was committed is stored, whatever cannot be found out about the log, as when the process
        has no file descriptor left.
        """
        self._committed = time.time_ns()
        if self._log in self._known_sizes:
            with suppress(OSError):
                self._known_sizes[self._log] = _size_alone(self._log)

    def _just_verified(self) -> bool:
        return not self._frozen and time.monotonic() - self._verified <= _TRUSTED_SECONDS

    def _seems_whole(self) -> bool:
        try:
            for name, was in self._known_stats.items():
                if name == self._log:
                    if _size_alone(name) < self._known_sizes[name]:
                        return False
                else:
                    found = os.stat(name)  # noqa: PTH116 - quicker, and this is done for each write
                    if (found.st_ino, found.st_dev, found.st_size) != (was.st_ino, was.st_dev, self._known_sizes[name]):
                        return False
        except OSError:
            return False
        return True

    def _found(self, name: str, was: os.stat_result) -> os.stat_result:
        try:
            found = os.stat(name)  # noqa: PTH116 - quicker
            what = "replaced by another file"
        except FileNotFoundError:
            what = "deleted or renamed"
        else:
            if (found.st_ino, found.st_dev) == (was.st_ino, was.st_dev):
                return found
        if name == self._path:
            self._checkpoint()
        raise BackendUnavailableError(
            f"{name} was {what} while it was open; see that no process uses the old file and that no "
            f"{Path(self._log).name} of it is left, and open the store again"
        )

    def _checkpoint(self) -> None:
        """Put what the log holds into the file that is open, wherever that is now.

        Left where it is, the log would be applied to the file that has the name next, and damage it. Skipped if another
        process wrote to the log, which may by now belong to the new file.
        """
        with suppress(sqlite3.Error, OSError):
            if Path(self._log).stat().st_mtime_ns <= self._committed:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _is_whole(self) -> bool:
        """Return whether every page is there: VACUUM makes a file smaller too, and a checkpoint its log."""
        if not _size(self._path):
            # Whoever opens it next throws the log away.
            return False
        self._db.execute("PRAGMA shrink_memory")
        try:
            return bool(self._db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        except sqlite3.Error as error:
            if is_passing(error):
                raise
            return False


def make_private(path: Path) -> None:
    """Make a missing file, and its directory, for their owner alone: conversations are nobody else's business.

    Raises:
        FluxMemoryError: The file was emptied, and what its write-ahead log holds would be lost.
        OSError: It cannot be made.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
    if _size(f"{path}-wal") and not _size(path):
        raise FluxMemoryError(
            f"{path} is empty or missing and {path}-wal beside it is not: the file was lost. Restore a backup of it; "
            "or move what is there away, and a new store is made"
        )
    if path.exists():
        return
    # Each by itself: mkdir(parents=True) gives the mode to the last one only.
    for directory in reversed(path.parents):
        directory.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def refuse_cut_page(path: str, db: sqlite3.Connection) -> None:
    """Refuse a file that ends within a page: SQLite would take the rest of the page for zeros.

    Raises:
        FluxMemoryError: It does, and no log is there that may hold the page.
    """
    size = 0 if path == ":memory:" else _size(path)
    if size % db.execute("PRAGMA page_size").fetchone()[0] and not _size(f"{path}-wal"):
        raise FluxMemoryError(
            f"{path} ends in the middle of a page: the file is damaged, somebody cut it; keep it, and restore a backup"
        )


def can_only_be_read(path: str) -> bool:
    """Tell whether everything is in the one file, and nobody here may write beside it."""
    return (
        os.access(path, os.R_OK) and not os.access(Path(path).absolute().parent, os.W_OK) and not _size(f"{path}-wal")
    )


def _size_alone(path: str) -> int:
    """Return a file's size without asking for its times."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def _size(path: str | Path) -> int:
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0
