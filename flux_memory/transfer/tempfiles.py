"""Files on their way: whole and on the disk before they get their name, or removed, by the next process if need be."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "flux-memory-transfer-"
_LOCK: Final = "in-use"


@contextmanager
def private_directory() -> Iterator[Path]:
    """Make a temporary directory that only its owner can enter, and remove those that killed processes left.

    A directory in use holds a file that is locked; the lock goes with the process, however that ends.
    """
    _remove_old_directories()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        lock = os.open(directory / "unlocked", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Under this name nobody sees it before it is locked.
            (directory / "unlocked").rename(directory / _LOCK)
            yield directory
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def unproven_file(wanted: Path) -> Iterator[Path]:
    """Make an empty file beside the one that is wanted, and remove those that killed processes left.

    It is locked while it is in use, and removed at the end with what SQLite put beside it.
    """
    for old in wanted.parent.glob(f".{glob.escape(wanted.name)}.*.unproven"):
        with suppress(OSError):
            if not _is_locked(old):
                _remove_database(old)
    path = wanted.with_name(f".{wanted.name}.{secrets.token_hex(4)}.unproven")
    lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        _remove_database(path)
        os.close(lock)


def publish(unproven: Path, wanted: Path) -> None:
    """Give a finished file its name, and return when both are on the disk.

    Raises:
        OSError: The name is taken, or the disk failed; the name is left as it was.
    """
    sync(unproven)
    # Unlike a rename, a link does not replace a file that another process made meanwhile.
    os.link(unproven, wanted)
    try:
        # A new name is on the disk only when its directory is.
        sync(wanted.absolute().parent)
    except BaseException:
        wanted.unlink()
        raise


def sync(path: Path) -> None:
    """Return when a file or a directory is on the disk as it is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_database(path: Path) -> None:
    for suffix in ("-journal", "-wal", "-shm", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _remove_old_directories() -> None:
    """Remove this user's directories that no process holds any more."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if directory.stat(follow_symlinks=False).st_uid == os.getuid() and not _is_locked(directory / _LOCK):
                shutil.rmtree(directory)


def _is_locked(path: Path) -> bool:
    lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
