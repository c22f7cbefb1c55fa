"""Runs as a separate process: decides how a SQLite file can be read unchanged, or makes a private copy of it.

Closing a file drops every POSIX lock that the process holds on it: a raw read inside an application would release the
locks of the application's own SQLite connections. The process writes nothing next to the file.

Given only a file, it prints the file's fingerprint, which changes with the next write. Given also a path for a copy, a
lock timeout in seconds, and whether the file may be read in place, its exit code says which file to read.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import struct
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Final

COPIED: Final = 0
"""Read the copy: it is consistent and needs no recovery."""
LIVE: Final = 10
"""Read the file: processes share it through a write-ahead log, so that a reader sees one state."""
IDLE: Final = 12
"""Read the file: no process uses it. An unchanged fingerprint proves afterwards that none wrote to it."""
FAILED: Final = 11

_CHECK_CELLS: Final = "PRAGMA cell_size_check = ON"
_WAL_FORMAT: Final = 2
_DEAD_MAN_SWITCH: Final = 128
"""Offset of the byte in the `-shm` file on which each connection to a write-ahead log holds a lock."""
_LINUX_LOCK: Final = struct.Struct("hhqqi4x")
_DARWIN_LOCK: Final = struct.Struct("qqihh")
_MAX_ATTEMPTS: Final = 5
_SETTLED_NANOSECONDS: Final = 2_000_000_000
"""Nanoseconds after which the next write gets a different mtime, even on a file system with coarse times."""
_HEADER_BYTES: Final = 100

_Stat = tuple[int, int, int] | None


def prepare(source: Path, target: Path, busy_seconds: float, *, in_place: bool) -> int:
    """Copy a SQLite file with its log or journal, unless it can be read in place; return the exit code.

    Raises:
        OSError, sqlite3.Error: The file cannot be read.
    """
    for _ in range(_MAX_ATTEMPTS):
        if _is_wal(source) and _in_use(_beside(source, "-shm")):
            # Wait here for an exclusive lock on the file: this process can be killed, a thread cannot.
            if lock := _shared_lock(source, busy_seconds):
                lock.close()
            return LIVE
        if in_place and (found := _idle_fingerprint(source, busy_seconds)):
            print(found)
            return IDLE
        if _copy_files(source, target, busy_seconds):
            _recover(target)
            return COPIED
    raise OSError("an application kept opening and closing the file while it was copied; stop it, or keep it running")


def fingerprint(source: Path) -> str:
    """Return a text that changes with the next write to the file, unless it was written to within the last seconds.

    The file is opened because a network file system may return stale times for a file that is not open.
    """
    with source.open("rb") as file:
        header, found = file.read(_HEADER_BYTES), os.fstat(file.fileno())
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {header.hex()}"


def _idle_fingerprint(source: Path, busy_seconds: float) -> str | None:
    """Return the fingerprint of a file that no process uses and whose log or journal is empty."""
    if _is_wal(source):
        return None if _has_content(_beside(source, "-wal")) else _settled_fingerprint(source)
    lock = _shared_lock(source, busy_seconds)
    if lock is None:
        return None
    with closing(lock):
        return None if _has_content(_beside(source, "-journal")) else _settled_fingerprint(source)


def _has_content(companion: Path) -> bool:
    """Return whether a log or journal has content; some journal modes leave an empty file."""
    found = _stat(companion)
    return found is not None and found[1] > 0


def _settled_fingerprint(source: Path) -> str | None:
    found = fingerprint(source)
    return found if source.stat().st_mtime_ns < time.time_ns() - _SETTLED_NANOSECONDS else None


def _copy_files(source: Path, target: Path, busy_seconds: float) -> bool:
    """Copy the file and its companions; return whether they stayed unchanged meanwhile."""
    companions = ("-wal",) if _is_wal(source) else ("-journal",)
    before = _stats(source, companions)
    # Blocks writers of a file without a write-ahead log; they wait for the lock as usual.
    lock = None if _is_wal(source) else _shared_lock(source, busy_seconds)
    try:
        for suffix in ("", *companions):
            _beside(target, suffix).unlink(missing_ok=True)
            # Under our lock, a journal belongs to a running transaction and must not be rolled back in the copy.
            if _beside(source, suffix).exists() and not (suffix == "-journal" and lock):
                shutil.copyfile(_beside(source, suffix), _beside(target, suffix))
    finally:
        if lock is not None:
            lock.close()
    unchanged = lock is not None or _stats(source, companions) == before
    return unchanged and not (_is_wal(source) and _in_use(_beside(source, "-shm")))


def _shared_lock(source: Path, busy_seconds: float) -> sqlite3.Connection | None:
    """Hold SQLite's shared lock by an open read; `None` if a crash left a journal that a reader cannot roll back."""
    db = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=busy_seconds)
    try:
        for statement in (_CHECK_CELLS, "BEGIN", "SELECT count(*) FROM sqlite_master"):
            db.execute(statement).fetchone()
    except sqlite3.OperationalError as error:
        db.close()
        if _beside(source, "-journal").exists() and error.sqlite_errorcode & 0xFF in {
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_CANTOPEN,
        }:
            return None
        raise
    except BaseException:
        db.close()
        raise
    return db


def _recover(target: Path) -> None:
    """Let SQLite recover the copy into its main file."""
    with closing(sqlite3.connect(target, isolation_level=None)) as db:
        for statement in (_CHECK_CELLS, "PRAGMA journal_mode = DELETE", "SELECT count(*) FROM sqlite_master"):
            db.execute(statement).fetchone()


def _is_wal(source: Path) -> bool:
    with source.open("rb") as file:
        header = file.read(20)
    return len(header) == 20 and header[18] == _WAL_FORMAT


def _in_use(shared_memory: Path) -> bool:
    """Return whether a process has the write-ahead log open."""
    try:
        with shared_memory.open("rb") as file:
            # F_GETLK takes no lock, which would disturb an application that starts at this moment.
            if sys.platform == "darwin":
                request = _DARWIN_LOCK.pack(_DEAD_MAN_SWITCH, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
                kind = _DARWIN_LOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, request))[3]
            else:
                request = _LINUX_LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _DEAD_MAN_SWITCH, 1, 0)
                kind = _LINUX_LOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, request))[0]
    except FileNotFoundError:
        return False
    return bool(kind != fcntl.F_UNLCK)


def _stats(source: Path, companions: tuple[str, ...]) -> list[_Stat]:
    return [_stat(_beside(source, suffix)) for suffix in ("", *companions)]


def _stat(path: Path) -> _Stat:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


if __name__ == "__main__":
    try:
        name, *how = sys.argv[1:]
        # SQLite, too, resolves links before it places a log or a journal.
        path = Path(name).resolve()
        if not how:
            print(fingerprint(path))
            sys.exit()
        sys.exit(prepare(path, Path(how[0]), float(how[1]), in_place=how[2] == "True"))
    except (OSError, sqlite3.Error) as problem:
        sys.stderr.write(f"{getattr(problem, 'sqlite_errorname', '')}|{problem}")
        sys.exit(FAILED)
    except UnicodeDecodeError:
        # SQLite's message quotes the damaged schema.
        sys.stderr.write("SQLITE_CORRUPT|")
        sys.exit(FAILED)
