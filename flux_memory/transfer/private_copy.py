"""Run as a process of its own: makes a private copy of a SQLite file that is consistent and needs no recovery.

A process of its own, because closing a file drops every POSIX lock that a process holds on it: a raw read inside an
application would take the locks from under its own SQLite connections. Nothing is written next to the file. Exit
code 0: the copy is there; `LIVE`: processes share the file through a write-ahead log, so it can be read in place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import struct
import sys
from pathlib import Path
from typing import Final

LIVE: Final = 10
FAILED: Final = 11

_WAL_FORMAT: Final = 2
_DEAD_MAN_SWITCH: Final = 128
"""The byte of the `-shm` file on which every connection to a write-ahead log holds a lock."""
_LINUX_LOCK: Final = struct.Struct("hhqqi4x")
_DARWIN_LOCK: Final = struct.Struct("qqihh")
_ATTEMPTS: Final = 5

_Stat = tuple[int, int, int] | None


def copy(source: Path, target: Path, busy_seconds: float) -> int:
    """Copy a SQLite file, with what its log or journal holds, and return the exit code.

    Raises:
        OSError, sqlite3.Error: It cannot be read.
    """
    for _ in range(_ATTEMPTS):
        if _is_wal(source) and _in_use(_beside(source, "-shm")):
            return LIVE
        if _copy_files(source, target, busy_seconds):
            _fold_in(target)
            return 0
    raise OSError("an application kept opening and closing the file while it was copied; stop it, or keep it running")


def _copy_files(source: Path, target: Path, busy_seconds: float) -> bool:
    """Copy the file and its companions; tell whether nobody wrote to them meanwhile."""
    companions = ("-wal",) if _is_wal(source) else ("-journal",)
    before = _stats(source, companions)
    # Keeps writers of a file without a write-ahead log from changing it; they wait for a lock as they always do.
    lock = None if _is_wal(source) else _shared_lock(source, busy_seconds)
    try:
        for suffix in ("", *companions):
            _beside(target, suffix).unlink(missing_ok=True)
            # A journal that belongs to a running transaction is not ours to roll back.
            if _beside(source, suffix).exists() and not (suffix == "-journal" and lock):
                shutil.copyfile(_beside(source, suffix), _beside(target, suffix))
    finally:
        if lock is not None:
            lock.close()
    unchanged = lock is not None or _stats(source, companions) == before
    return unchanged and not (_is_wal(source) and _in_use(_beside(source, "-shm")))


def _shared_lock(source: Path, busy_seconds: float) -> sqlite3.Connection | None:
    """Hold SQLite's shared lock by an open read; `None` where a crash left a journal that readers cannot roll back."""
    db = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=busy_seconds)
    try:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
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


def _fold_in(target: Path) -> None:
    """Let SQLite recover the copy, so that the one file is all there is."""
    db = sqlite3.connect(target, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = DELETE").fetchone()
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        db.close()


def _is_wal(source: Path) -> bool:
    with source.open("rb") as file:
        header = file.read(20)
    return len(header) == 20 and header[18] == _WAL_FORMAT


def _in_use(shared_memory: Path) -> bool:
    """Tell whether a process has the write-ahead log open."""
    try:
        with shared_memory.open("rb") as file:
            # Asks without taking the lock, which an application that starts just now would trip over.
            if sys.platform == "darwin":
                asked = _DARWIN_LOCK.pack(_DEAD_MAN_SWITCH, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
                kind = _DARWIN_LOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))[3]
            else:
                asked = _LINUX_LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _DEAD_MAN_SWITCH, 1, 0)
                kind = _LINUX_LOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))[0]
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
        sys.exit(copy(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
    except (OSError, sqlite3.Error) as problem:
        sys.stderr.write(f"{getattr(problem, 'sqlite_errorname', '')}|{problem}")
        sys.exit(FAILED)
    except UnicodeDecodeError:
        # SQLite's own words, which quote damaged tables.
        sys.stderr.write("SQLITE_CORRUPT|")
        sys.exit(FAILED)
