"""Files that are invisible until they are complete and durable, in the directory where they will be seen."""

from __future__ import annotations

import fcntl
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from flux_memory.errors import BackupError
from flux_memory.transfer.tempfiles import COMPANIONS, is_locked, locked_file, publish, remove_database

_PREFIX: Final = ".flux-memory-backup-"


@contextmanager
def hidden_file(directory: Path) -> Iterator[Path]:
    """Create an empty file for its owner only, and remove it at the end, unless it was published.

    The file is locked while in use, so that `remove_leftovers` of another process keeps it.
    """
    with locked_file(directory / f"{_PREFIX}{secrets.token_hex(8)}") as path:
        yield path


def remove_leftovers(directory: Path) -> int:
    """Remove the hidden files that killed processes left behind, and return their number."""
    removed = 0
    for path in sorted(directory.glob(f"{_PREFIX}*")):
        if path.name.endswith(COMPANIONS[:-1]):
            # The file itself is removed last: without it, its companions are left over.
            if not path.with_name(path.name.rpartition("-")[0]).exists():
                path.unlink(missing_ok=True)
            continue
        with suppress(OSError):
            if not is_locked(path):
                remove_database(path)
                removed += 1
    return removed


class GuardedFile(io.BufferedWriter):
    """A file whose errors are those of a backup: beside a connection, an OSError would be taken for the network's.

    Args:
        path: A file that exists.
    """

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        super().__init__(io.FileIO(path, "w"))

    def write(self, data: Any) -> int:
        """Write bytes.

        Raises:
            BackupError: The disk is full or failed.
        """
        try:
            return super().write(data)
        except OSError as error:
            raise self._explain(error) from error

    def flush(self) -> None:
        """Hand all bytes to the system.

        Raises:
            BackupError: The disk is full or failed.
        """
        try:
            super().flush()
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> BackupError:
        return BackupError(
            f"the backup cannot be written to {self._directory}: {error.strerror or error}; check the directory, its "
            "rights and its room. No file was left there"
        )


def write_file(directory: Path, wanted: Path, text: str) -> None:
    """Write a text to a new file that is seen only complete.

    Raises:
        OSError: The name is taken, or the disk failed.
    """
    with hidden_file(directory) as hidden:
        hidden.write_text(text, encoding="utf-8")
        publish(hidden, wanted)


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Let one process at a time give files their names, or remove named ones."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
