"""Opens one consistent state of a SQLite file without changing a byte of it or leaving a file behind."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from flux_memory.backends.sqlite.file import hint_at_original, refuse_special_files
from flux_memory.errors import FluxMemoryError, MigrationError
from flux_memory.schema.sqlite import distrust
from flux_memory.transfer.source import probe_process
from flux_memory.transfer.source.helper import Helper
from flux_memory.transfer.tempfiles import private_directory

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CACHE: Final = "PRAGMA cache_size = -4000"
# Truncating a mapped file kills the process that reads it.
_NO_MAPPING: Final = "PRAGMA mmap_size = 0"
_LIVE: Final = "mode=ro"
_STILL: Final = "mode=ro&immutable=1"
_VERSION: Final = "PRAGMA data_version"
_MAX_ATTEMPTS: Final = 50
"""Attempts to open the same state twice; each commit in between costs one."""
_HELPER_MIN_BYTES: Final = 32 * 1024 * 1024
"""Size of a file from which a helper process pays off."""
_BUSY_SECONDS: Final = 30.0
"""Timeout for a lock held by another process."""
_LOCKED: Final = "another process holds the file's lock; stop it, or wait until its transaction ends, and run again"


@contextmanager
def _within_limits() -> Iterator[None]:
    """Report a limit of the system; `open_connection` would report an OSError as a network error."""
    try:
        yield
    except OSError as error:
        raise MigrationError(
            "the SQLite file cannot be read: the system gives no process or no temporary file for it: "
            f"{error.strerror}; check its limits and TMPDIR, and run again"
        ) from error


class Snapshot:
    """A file's state at the moment of `open`; later writes are not seen.

    A file that processes share through a write-ahead log is opened as one more reader. A file that no process uses is
    read in place without a lock, which would block writers; `renew` returns whether a process wrote to it after all.
    Any other file is copied. The copy is unlinked before it is read, so that it never outlives this process.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.helper: Helper | None = None
        """A process that has opened the same state of a large file."""
        self.interrupted = False
        """Whether `interrupt` was called."""
        self._path: Final = path
        self._db: sqlite3.Connection | None = None
        self._fingerprint: str | None = None
        """The fingerprint of a file that is read in place without a lock."""
        self._probe: subprocess.Popen[str] | None = None

    @property
    def db(self) -> sqlite3.Connection:
        """The open connection."""
        assert self._db is not None  # noqa: S101 - `open` comes first
        return self._db

    @_within_limits()
    def open(self) -> None:
        """Open the file's current state.

        Raises:
            MigrationError: The file cannot be read; the message says what to do.
        """
        try:
            self._open(in_place=True)
        except MigrationError:
            if not self.renew():
                raise

    @_within_limits()
    def renew(self) -> bool:
        """Open the new state if the file was written to, and return whether it was: earlier reads are then invalid.

        Raises:
            MigrationError: The file can no longer be read.
        """
        if self._fingerprint is None or self.interrupted or self._run_probe(self._path)[1] == self._fingerprint:
            return False
        self._open(in_place=False)
        return True

    @_within_limits()
    def freeze(self) -> None:
        """Ensure that the open state cannot change: copy the file, or join its log, if it is read in place.

        The helper keeps its rows.

        Raises:
            MigrationError: The file can no longer be read.
        """
        if self._fingerprint is not None:
            self.db.close()
            check_file(self._path)
            self._read(None, in_place=False)

    def interrupt(self) -> None:
        """Stop all reading, in each process; safe from any thread."""
        self.interrupted = True
        # Another thread may clear these attributes meanwhile.
        probe, db, helper = self._probe, self._db, self.helper
        if probe is not None:
            probe.kill()
        if db is not None:
            with suppress(sqlite3.ProgrammingError):
                db.interrupt()
        if helper is not None:
            helper.kill()

    def close(self) -> None:
        """Close the connection and the helper."""
        if self._db is not None:
            self._db.close()
        if self.helper is not None:
            self.helper.close()
        self._db = self.helper = None

    def _open(self, *, in_place: bool) -> None:
        self.close()
        if check_file(self._path) >= _HELPER_MIN_BYTES and (os.cpu_count() or 1) > 1:
            self.helper = Helper()
        self._read(self.helper, in_place=in_place)

    def _read(self, helper: Helper | None, *, in_place: bool) -> None:
        with private_directory() as directory:
            copy = directory / "snapshot.db"
            code, fingerprint, error = self._run_probe(self._path.absolute(), copy, _BUSY_SECONDS, in_place)
            if code not in {probe_process.COPIED, probe_process.LIVE, probe_process.IDLE}:
                name, _, reason = error.partition("|")
                raise MigrationError(_advice(self._path, name, reason))
            self._fingerprint = fingerprint or None
            if code == probe_process.LIVE:
                self._join(helper)
            else:
                read = copy if code == probe_process.COPIED else self._path
                self._db = connect(read, _STILL)
                if helper is not None:
                    helper.open(read, _STILL)

    def _join(self, helper: Helper | None) -> None:
        """Join a file in use; both processes see the same state if no commit falls between opening them."""
        path = self._path
        if helper is None:
            self._db = connect(path, _LIVE)
            return
        with closing(connect(path, _LIVE)) as watch:
            watch.execute("COMMIT")
            for _ in range(_MAX_ATTEMPTS):
                version = watch.execute(_VERSION).fetchone()
                self._db = connect(path, _LIVE)
                helper.open(path, _LIVE)
                if watch.execute(_VERSION).fetchone() == version:
                    return
                self._db.close()
        helper.close()
        self._db, self.helper = connect(path, _LIVE), None

    def _run_probe(self, *arguments: object) -> tuple[int, str, str]:
        """Run `probe_process`; return its exit code and output."""
        self._probe = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            [sys.executable, "-P", probe_process.__file__, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C on a terminal must reach only this process, which may handle it in its own way.
            start_new_session=True,
        )
        if self.interrupted:
            self._probe.kill()
        said = self._probe.communicate()
        return self._probe.returncode, said[0].strip(), said[1].strip()


@contextmanager
def snapshot_of(path: Path) -> Iterator[Snapshot]:
    """Yield a snapshot to open, and close it at the end.

    Raises:
        MigrationError: The file could not be read inside the block; the message says what to do.
    """
    snapshot = Snapshot(path)
    try:
        yield snapshot
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    finally:
        snapshot.close()


def check_file(path: Path) -> int:
    """Return the size of a readable, non-empty file.

    Raises:
        MigrationError: There is no such file; the message says what to do.
    """
    try:
        if path.is_dir():
            raise MigrationError(f"{path} is a directory; give --sqlite-path the database file in it")
        refuse_special_files(path)
        size = path.stat().st_size
        readable = os.access(path, os.R_OK)
    except FluxMemoryError:
        raise
    except FileNotFoundError:
        hint = hint_at_original(path)
        raise MigrationError(
            f"the file {path} does not exist; check --sqlite-path and the working directory"
            f"{f'; {hint}' if hint else ''}"
        ) from None
    except OSError as error:
        raise MigrationError(f"{path} cannot be read: {error.strerror}; check the path and its rights") from error
    except ValueError as error:
        raise MigrationError(f"{str(path)!r} cannot be a file's name: {error}; check the path") from None
    if not readable:
        raise MigrationError(f"{path} cannot be read: no permission; run as its owner, or grant read access")
    if size == 0:
        raise MigrationError(f"{path} is empty and holds no conversation memory; check --sqlite-path")
    return size


def _unreadable(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> MigrationError:
    # A UnicodeDecodeError comes from SQLite's message, which quotes a damaged schema, or from names of tables.
    damaged = isinstance(error, UnicodeDecodeError) or "decode to UTF-8" in str(error)
    name = "SQLITE_CORRUPT" if damaged else getattr(error, "sqlite_errorname", "")
    return MigrationError(_advice(path, name, str(error)))


def _advice(path: Path, name: str, reason: str) -> str:
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"{path} is locked: {_LOCKED}"
    if name == "SQLITE_NOTADB":
        return f"{path} is not a SQLite database; check --sqlite-path"
    if name == "SQLITE_CORRUPT":
        return f"{path} is damaged; copy it, try the sqlite3 shell's .recover on the copy, and move that"
    if name == "SQLITE_FULL" or any(os.strerror(code) in reason for code in _NO_ROOM):
        place = tempfile.gettempdir()
        return f"the temporary directory {place} has no room for a copy of {path}; set TMPDIR to a larger one"
    return f"{path} cannot be read: {reason or name or 'the copying process was killed'}; check the file and its rights"


def connect(path: Path, parameters: str) -> sqlite3.Connection:
    """Open a file and begin a read transaction, which fixes the state.

    Raises:
        MigrationError: The file cannot be opened.
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
        db.execute(_NO_MAPPING)
        db.execute("BEGIN")
        # Its first read takes the snapshot.
        distrust(db)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        db.close()
        raise _unreadable(path, error) from error
    return db
