"""Temporary files that are removed even after a kill, and files that appear once they are complete and durable."""

from __future__ import annotations

import errno
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

from flux_memory.errors import MigrationError

COMPANIONS: Final = ("-journal", "-wal", "-shm", "")
"""SQLite's files beside a database, and the file itself, last: it holds the lock."""
_PREFIX: Final = "flux-memory-transfer-"
_LOCK: Final = "in-use"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


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
    """Create an empty file beside the wanted one, and remove those that killed processes left behind."""
    for old in wanted.parent.glob(f".{glob.escape(wanted.name)}.*.unproven"):
        with suppress(OSError):
            if not is_locked(old):
                remove_database(old)
    with locked_file(wanted.with_name(f".{wanted.name}.{secrets.token_hex(4)}.unproven")) as path:
        yield path


@contextmanager
def locked_file(path: Path) -> Iterator[Path]:
    """Create an empty file for its owner only; at the end, remove it with SQLite's companion files.

    The file is locked while in use, so that another process can distinguish it from one that a killed process left.
    """
    lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        remove_database(path)
        os.close(lock)


def publish(unproven: Path, wanted: Path) -> None:
    """Give a complete file its name, and wait until both are on the disk.

    Raises:
        OSError: The name is taken, or the disk failed; the name is left unchanged.
    """
    sync(unproven)
    try:
        # Unlike a rename, a link does not replace a file that another process has created.
        os.link(unproven, wanted)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # File systems without hard links: exFAT, some network shares.
        if wanted.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(wanted)) from None
        unproven.rename(wanted)
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


def refuse_existing(path: Path) -> None:
    """Raise `MigrationError` if a path to which a file is to be written is taken."""
    if path.exists() or path.is_symlink():
        raise MigrationError(f"{path} exists and is not overwritten; move it away, or give another name")


def remove_database(path: Path) -> None:
    """Remove a SQLite file and the files beside it."""
    for suffix in COMPANIONS:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _remove_old_directories() -> None:
    """Remove this user's directories that no process has locked."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if directory.stat(follow_symlinks=False).st_uid == os.getuid() and not is_locked(directory / _LOCK):
                shutil.rmtree(directory)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file."""
    lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
