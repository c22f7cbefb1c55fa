"""Creates the file of a SQLite memory for its owner alone, and watches it while it is open."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from flux_memory.backends.sqlite.errors import is_transient
from flux_memory.errors import BackendUnavailableError, FluxMemoryError

LOG_BYTES: Final = 8 * 1024 * 1024
"""Bytes to which SQLite cuts the log when it restarts it; an ordinary log stays smaller, at 1,000 pages."""
_LOG_HEADER_BYTES: Final = 32
_TRUSTED_SECONDS: Final = 0.05
"""Seconds until a read verifies the file again, and a write the log's times."""
_CREATING: Final = threading.Lock()
_TRUNCATED: Final = (
    "{} was truncated while it was open; stop the process that cut it, copy the rest with -wal, and restore a backup"
)


class OpenFile:
    """Notices that an open file was replaced, deleted, emptied or truncated.

    SQLite itself continues on a file that has lost its name, and acknowledges writes that no store will have.

    Args:
        path: The file; `:memory:` is not watched.
        db: The connection to it.
        frozen: The connection takes the file for immutable.
    """

    def __init__(self, path: str, db: sqlite3.Connection, *, frozen: bool = False) -> None:
        self._path = path
        # SQLite follows a link to the file, and places the log beside what the link names.
        self._log = os.path.realpath(path) + "-wal"
        self._db = db
        self._frozen = frozen
        watched = [] if path == ":memory:" else [path] if frozen else [path, self._log]
        self._known_stats = {name: os.stat(name) for name in watched if os.path.exists(name)}  # noqa: PTH110, PTH116 - quicker
        self._known_sizes = {name: known.st_size for name, known in self._known_stats.items()}
        self._log_header = b""
        self._log_header = self._read_log_header()
        self._truncated = False
        self._verified = time.monotonic()
        self._committed = time.time_ns()

    def verify_before_read(self) -> None:
        """Call `verify`, unless it has just succeeded."""
        if not self._just_verified():
            self.verify()

    def verify_before_write(self) -> None:
        """Call `verify`; if it has just succeeded, check only inodes and sizes, and of the log only its size.

        Since Linux 6.13 a `stat` of a file makes its next change take a finer timestamp, which slows the flush of a
        commit by a third. A commit changes the log and no other file.
        """
        if not (self._just_verified() and self._seems_whole()):
            self.verify()

    def verify(self) -> None:
        """Check that the file and its log are those that were opened, and whole.

        Raises:
            FluxMemoryError: One of them was replaced, deleted, changed or truncated.
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
                f"{self._path} was opened as a file that no process changes, and it was changed; open the store again"
            )
        header = self._read_log_header()
        shrunk = {name for name, stat in found.items() if stat.st_size < self._known_sizes[name]}
        if shrunk == {self._log} and found[self._log].st_size >= LOG_BYTES and header != self._log_header:
            # A process restarted the log, which it does only once the whole log is in the file.
            shrunk.clear()
        if shrunk and not self._is_whole():
            self._truncated = True
            raise FluxMemoryError(_TRUNCATED.format(self._path))
        self._log_header = header
        # Only after the verdict: a check that a lock ended must find the same truncation next time.
        self._known_stats = found
        self._known_sizes = {name: stat.st_size for name, stat in found.items()}
        self._verified = time.monotonic()

    def note_commit(self) -> None:
        """Remember the time, and the log's size and header; a later change of the log is another process's.

        It never raises: the commit is stored, even if the log's size cannot be read because the process has no file
        descriptor left.
        """
        self._committed = time.time_ns()
        if self._log in self._known_sizes:
            with suppress(OSError):
                self._known_sizes[self._log], self._log_header = _size_and_header(self._log)

    def _read_log_header(self) -> bytes:
        """Return the beginning of the log, which changes whenever a process restarts the log."""
        try:
            return _size_and_header(self._log)[1]
        except OSError:
            # There is no log, or the process has no file descriptor left.
            return self._log_header

    def _just_verified(self) -> bool:
        return not self._frozen and time.monotonic() - self._verified <= _TRUSTED_SECONDS

    def _seems_whole(self) -> bool:
        try:
            for name, was in self._known_stats.items():
                if name == self._log:
                    if _size_and_header(name)[0] < self._known_sizes[name]:
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
        """Checkpoint the log into the file that is open, under its new name if it has one.

        SQLite would apply a log that is left behind to the next file of this name, and damage that. Skipped if another
        process wrote to the log, which may by now belong to the new file.
        """
        with suppress(sqlite3.Error, OSError):
            if Path(self._log).stat().st_mtime_ns <= self._committed:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _is_whole(self) -> bool:
        """Return whether every page is there: VACUUM also makes the file smaller, and a checkpoint the log."""
        if not _size(self._path):
            # The next process to open it discards the log.
            return False
        self._db.execute("PRAGMA shrink_memory")
        try:
            return bool(self._db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        except sqlite3.Error as error:
            if is_transient(error):
                raise
            return False


def refuse_special_files(path: str | Path) -> None:
    """Refuse a link to nothing, and anything but regular files in the places of the file and its companions.

    Opening a FIFO blocks forever. Opening a link to nothing would create a file where only the link's author chose, or
    an empty store where a volume is not mounted.

    Raises:
        FluxMemoryError: There is such a file; the message names it.
    """
    real = os.path.realpath(path)
    for name in (str(path), *(f"{real}{suffix}" for suffix in ("-wal", "-shm", "-journal"))):
        try:
            # SQLite itself follows links to the file only.
            mode = os.stat(name, follow_symlinks=name == str(path)).st_mode  # noqa: PTH116 - a text
        except (FileNotFoundError, NotADirectoryError):
            if name == str(path) and Path(path).is_symlink():
                raise FluxMemoryError(
                    f"{path} is a link to {real}, which does not exist; mount or create that, or remove the link"
                ) from None
            continue
        if not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and name == str(path))):
            raise FluxMemoryError(f"{name} is not a regular file; find out what created it, and remove it")


def check_usable(file: Path) -> None:
    """Check that an existing file is one that this process may read and write.

    Raises:
        FluxMemoryError: It is a directory, or the process lacks the rights.
    """
    if file.is_dir():
        raise BackendUnavailableError(f"SQLite on {file}: is a directory; give the path of a file in it")
    if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
        raise BackendUnavailableError(
            f"SQLite on {file}: the file or its directory cannot be written; SQLite needs both for its journal. "
            "Give the process rights there"
        )


def hint_at_original(path: str | Path) -> str:
    """Return a hint if the file is missing and the original application's file is in the same directory, or ''."""
    original = Path(path).with_name("memory.db")
    if Path(path).exists() or not original.is_file():
        return ""
    return (
        f"the original application's file {original.absolute()} exists and is not used: to use it, give that path, or "
        f"set DATABASE_URL=sqlite+aiosqlite:///{quote(str(original))}"
    )


def make_private(path: Path) -> None:
    """Create a missing file and its directories with access for their owner alone.

    Raises:
        FluxMemoryError: A link to nothing or a special file is in the way, or the file is empty or missing beside a
            write-ahead log, whose contents would be lost.
        OSError: The file cannot be created.
    """
    refuse_special_files(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
    if _size(f"{path}-wal") and not _size(path):
        raise FluxMemoryError(
            f"{path} is empty or missing and {path}-wal beside it is not: the file was lost. Restore a backup of it; "
            "or move both away, and a new store is created"
        )
    # Closing any descriptor of a file drops the process's locks on it, also those of a handle that opened it meanwhile.
    with _CREATING:
        if path.exists():
            return
        # One by one: mkdir(parents=True) applies the mode to the last one only.
        for directory in reversed(path.parents):
            directory.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600))


def refuse_cut_page(path: str, db: sqlite3.Connection) -> None:
    """Refuse a file that ends within a page: SQLite would read the rest of the page as zeros.

    Raises:
        FluxMemoryError: The file ends within a page, and has no log that may hold the page.
    """
    size = 0 if path == ":memory:" else _size(path)
    if size % db.execute("PRAGMA page_size").fetchone()[0] and not _size(f"{path}-wal"):
        raise FluxMemoryError(
            f"{path} ends in the middle of a page: the file was cut and is damaged; keep it, and restore a backup"
        )


def can_only_be_read(path: str) -> bool:
    """Return whether the file has no log, and this process may read it but not write in its directory."""
    return (
        os.access(path, os.R_OK) and not os.access(Path(path).absolute().parent, os.W_OK) and not _size(f"{path}-wal")
    )


def _size_and_header(path: str) -> tuple[int, bytes]:
    """Return a log's size and beginning without a `stat`; see `verify_before_write`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        header = os.read(descriptor, _LOG_HEADER_BYTES)
        return os.lseek(descriptor, 0, os.SEEK_END), header
    finally:
        os.close(descriptor)


def _size(path: str | Path) -> int:
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0
