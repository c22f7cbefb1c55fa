"""Temporary files that are removed even after a kill, and files that appear once they are complete and durable."""

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
    """Create a temporary directory for its owner only, and remove those that killed processes left behind.

    A directory in use contains a locked file; the lock ends with the process, even if it is killed.
    """
    _remove_old_directories()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        lock = os.open(directory / "unlocked", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Other processes look for the final name, so they never see the file unlocked.
            (directory / "unlocked").rename(directory / _LOCK)
            yield directory
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def unproven_file(wanted: Path) -> Iterator[Path]:
    """Create an empty file beside the wanted one, and remove those that killed processes left behind.

    The file is locked while in use, and removed at the end with SQLite's companion files.
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
    """Give a complete file its name, and wait until both are on the disk.

    Raises:
        OSError: The name is taken, or the disk failed; the name is left unchanged.
    """
    sync(unproven)
    # Unlike a rename, a link does not replace a file that another process has created.
    os.link(unproven, wanted)
    try:
        # The name is durable once the directory is.
        sync(wanted.absolute().parent)
    except BaseException:
        wanted.unlink()
        raise


def sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_database(path: Path) -> None:
    for suffix in ("-journal", "-wal", "-shm", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _remove_old_directories() -> None:
    """Remove this user's directories that no process has locked."""
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
