"""A SQLite file as it was at one moment, read without changing it by a byte and without leaving a file."""

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

from flux_memory.errors import MigrationError
from flux_memory.transfer.source import probe_process
from flux_memory.transfer.source.helper import Helper
from flux_memory.transfer.tempfiles import private_directory

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CACHE: Final = "PRAGMA cache_size = -4000"
# Whoever reads a mapped file that is cut short is killed.
_NO_MAPPING: Final = "PRAGMA mmap_size = 0"
_LIVE: Final = "mode=ro"
_STILL: Final = "mode=ro&immutable=1"
_VERSION: Final = "PRAGMA data_version"
_MAX_ATTEMPTS: Final = 50
"""Times that a state is sought in which nobody writes; a commit in between makes it two."""
_HELPER_MIN_BYTES: Final = 32 * 1024 * 1024
"""Bytes of a file from which on a second process is worth its start."""
_BUSY_SECONDS: Final = 30.0
"""How long to wait for a lock that another process holds."""
_LOCKED: Final = "another process holds the file's lock; stop it, or wait until its transaction ends, and run again"


@contextmanager
def _within_limits() -> Iterator[None]:
    """Name the limit that was reached; whoever holds a connection to the target would blame the network."""
    try:
        yield
    except OSError as error:
        raise MigrationError(
            "the SQLite file cannot be read: the system gives no process or no temporary file for it: "
            f"{error.strerror}; see to its limits and to TMPDIR, and run again"
        ) from error


class Snapshot:
    """A file's state at one moment, once it was opened; what an application writes from then on is not seen.

    Processes that share the file through a write-ahead log are joined as a reader. A file that nobody is at work on is
    read in place, without a lock that its writers would have to wait for; `renew` tells whether one came all the same.
    Any other file is copied; the copy is unlinked before it is read, so that no end of this process leaves it behind.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.helper: Helper | None = None
        """A process that has opened the same state, where the file is large."""
        self.interrupted = False
        """Whether nobody wants it any more."""
        self._path: Final = path
        self._db: sqlite3.Connection | None = None
        self._fingerprint: str | None = None
        """What the file looked like, where it is read in place and its writers are free to go on."""
        self._probe: subprocess.Popen[str] | None = None

    @property
    def db(self) -> sqlite3.Connection:
        """The file, opened."""
        assert self._db is not None  # noqa: S101 - `open` comes first
        return self._db

    @_within_limits()
    def open(self) -> None:
        """Open the file's present state.

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
        """Tell whether what was read so far is void, since somebody wrote to the file; its new state is open then.

        Raises:
            MigrationError: The file cannot be read any more.
        """
        if self._fingerprint is None or self.interrupted or self._run_probe(self._path)[1] == self._fingerprint:
            return False
        self._open(in_place=False)
        return True

    @_within_limits()
    def freeze(self) -> None:
        """Open the file's present state, so that nobody can change it, unless the one that is open cannot be changed.

        The helper keeps what it has read.

        Raises:
            MigrationError: The file cannot be read any more.
        """
        if self._fingerprint is not None:
            self.db.close()
            check_file(self._path)
            self._read(None, in_place=False)

    def interrupt(self) -> None:
        """Stop whatever is being read, from another thread."""
        self.interrupted = True
        # Each may be let go at this moment.
        probe, db, helper = self._probe, self._db, self.helper
        if probe is not None:
            probe.kill()
        if db is not None:
            with suppress(sqlite3.ProgrammingError):
                db.interrupt()
        if helper is not None:
            helper.kill()

    def close(self) -> None:
        """Let go of it."""
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
            code, self._fingerprint = self._prepare(copy, in_place=in_place)
            if code == probe_process.LIVE:
                self._join(helper)
            else:
                read = copy if code == probe_process.COPIED else self._path
                self._db = connect(read, _STILL)
                if helper is not None:
                    helper.open(read, _STILL)

    def _join(self, helper: Helper | None) -> None:
        """Open a file that others write to; the helper's state is the same if nobody committed between the two."""
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

    def _prepare(self, copy: Path, *, in_place: bool) -> tuple[int, str | None]:
        code, fingerprint, error = self._run_probe(self._path.absolute(), copy, _BUSY_SECONDS, in_place)
        if code not in {probe_process.COPIED, probe_process.LIVE, probe_process.IDLE}:
            name, _, reason = error.partition("|")
            raise MigrationError(_advice(self._path, name, reason))
        return code, fingerprint or None

    def _run_probe(self, *arguments: object) -> tuple[int, str, str]:
        """Run `probe_process`; return its exit code and what it said."""
        self._probe = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            [sys.executable, "-P", probe_process.__file__, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C on a terminal is for this process to tell it; an application may have something else in mind.
            start_new_session=True,
        )
        if self.interrupted:
            self._probe.kill()
        said = self._probe.communicate()
        return self._probe.returncode, said[0].strip(), said[1].strip()


@contextmanager
def snapshot_of(path: Path) -> Iterator[Snapshot]:
    """Return a snapshot to be opened, and let go of it in the end.

    Raises:
        MigrationError: The file cannot be read, which may show at any time; the message says what to do.
    """
    snapshot = Snapshot(path)
    try:
        yield snapshot
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    finally:
        snapshot.close()


def check_file(path: Path) -> int:
    """Refuse what is not a SQLite database file, and return its size.

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
    except ValueError as error:
        raise MigrationError(f"{str(path)!r} cannot be a file's name: {error}; check the path") from None
    if not readable:
        raise MigrationError(f"{path} cannot be read: no permission; run as its owner, or grant read access")
    if size == 0:
        raise MigrationError(f"{path} is empty; check --sqlite-path, there is nothing to move")
    return size


def _unreadable(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> MigrationError:
    # What cannot be decoded are SQLite's own words, which quote damaged tables, or the tables' own names.
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
        db.execute(_NO_MAPPING)
        db.execute("BEGIN")
        # The read that takes the snapshot.
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        db.close()
        raise _unreadable(path, error) from error
    return db
