"""Private directories for what must not stay behind, not even after a process was killed."""

from __future__ import annotations

import fcntl
import os
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
    remove_leftovers()
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


def remove_leftovers() -> None:
    """Remove this user's directories that no process holds any more."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if directory.stat(follow_symlinks=False).st_uid == os.getuid() and not _in_use(directory):
                shutil.rmtree(directory)


def _in_use(directory: Path) -> bool:
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
