"""Copies a SQLite file page by page from one state of it, while applications write."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from flux_memory.errors import BackupError
from flux_memory.transfer.source.snapshot import connect
from flux_memory.transfer.threads import Stopped

_PAGES: Final = 2048
"""Pages copied between two looks at a cancellation."""
_READ_ONLY: Final = "mode=ro&immutable=1"


def copy_pages(source: sqlite3.Connection, path: Path, stopped: Stopped) -> None:
    """Copy the state that a connection sees to an empty file, which needs no log beside it.

    Args:
        source: In a read transaction.
        path: The file to fill.
        stopped: Whether the copying was cancelled.

    Raises:
        BackupError: The file cannot be written, or `stopped` returned true.
    """

    def look(_status: int, _remaining: int, _total: int) -> None:
        if stopped():
            raise BackupError("it was cancelled")

    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as target:
            # The file is discarded, unless it is flushed as a whole later.
            target.execute("PRAGMA synchronous = OFF")
            source.backup(target, pages=_PAGES, progress=look)
            target.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise BackupError(
            f"the copy cannot be written to {path.parent}: {error}; make room there, or give another directory"
        ) from error


@contextmanager
def reading_copy(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection to a file that no process writes, after SQLite's own check of all its pages.

    Raises:
        FluxMemoryError: The file is damaged.
    """
    with closing(connect(path, _READ_ONLY)) as db:
        try:
            said = [text for (text,) in db.execute("PRAGMA integrity_check(3)")]
        except sqlite3.DatabaseError as error:
            said = [str(error)]
        if said != ["ok"]:
            raise BackupError(f"{path} is damaged: {'; '.join(said)[:300]}. Use another backup")
        yield db
