"""Reads the activity of a SQLite file: its rows, its pages, its log, and the processes that have it open."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from flux_memory.operations.file_connection import run_on_file
from flux_memory.operations.top.readings import NEWEST_SESSIONS, ActiveSession, Application, Reading

COUNT_ROWS: Final = "SELECT count(*), coalesce(sum(message_count), 0) FROM sessions"
# Rows get rising numbers: the end of the b-tree is read, not the table.
SELECT_LAST_ROW: Final = "SELECT coalesce(max(rowid), 0) FROM messages"
SELECT_NEWEST: Final = (
    "SELECT id, user_id, message_count, updated_at FROM sessions ORDER BY updated_at DESC, id DESC LIMIT ?"
)

_COUNTING_SHARE: Final = 0.01
"""Share of the time that counting all sessions may take; a larger file is counted less often."""
_LOCKS: Final = Path("/proc/locks")


class FileActivity:
    """The activity of one file, which is opened for each reading.

    Args:
        path: The file.
        timeout: Seconds that a reading may take.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._counts: tuple[int, int] | None = None
        self._count_again_at = 0.0

    async def read(self) -> Reading:
        """Read the activity.

        Raises:
            FluxMemoryError: There is no such file, or it cannot be read in time.
        """
        return await run_on_file(self._path, self._read, self._timeout)

    async def close(self) -> None:
        """Do nothing: the file is closed after each reading."""

    def _read(self, db: sqlite3.Connection) -> Reading:
        file = Path(self._path).resolve()
        now = datetime.now(UTC)
        missing: list[str] = []
        newest: list[ActiveSession] = []
        inserted = None
        try:
            self._count(db)
            ((inserted,),) = db.execute(SELECT_LAST_ROW).fetchall()
            for id_, user_id, messages, updated_at in db.execute(SELECT_NEWEST, (NEWEST_SESSIONS,)):
                age = (now - datetime.fromisoformat(updated_at)).total_seconds()
                newest.append(ActiveSession(id_, user_id, messages, max(age, 0.0)))
        except (ValueError, TypeError):
            missing.append(
                "the newest sessions: the time of one of them cannot be read; flux-memory check describes it"
            )
        except sqlite3.OperationalError as error:
            if not str(error).startswith("no such "):
                raise
            missing.append(f"the tables: {error}; they are missing or of an earlier version: see flux-memory check")
        pages, page_bytes, free = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size", "freelist_count")
        )
        sessions, messages = self._counts or (None, None)
        processes, unseen = _find_processes(Path(f"{file}-shm"))
        return Reading(
            at=now,
            backend="sqlite",
            target=str(file),
            server=f"SQLite {sqlite3.sqlite_version}",
            sessions=sessions,
            messages=messages,
            inserted=inserted,
            size_bytes=pages * page_bytes,
            connections=None if unseen else len(processes),
            newest=newest,
            applications=processes,
            free_bytes=free * page_bytes,
            log_bytes=_size(Path(f"{file}-wal")),
            missing=[*missing, *unseen],
        )

    def _count(self, db: sqlite3.Connection) -> None:
        began = time.monotonic()
        if began >= self._count_again_at:
            self._counts = db.execute(COUNT_ROWS).fetchone()
            took = time.monotonic() - began
            self._count_again_at = time.monotonic() + took / _COUNTING_SHARE


def _find_processes(shared: Path) -> tuple[list[Application], list[str]]:
    """Return the other processes that have the file open: each holds a lock on the log's shared memory."""
    try:
        inode, locks = shared.stat().st_ino, _LOCKS.read_text(encoding="ascii")
    except FileNotFoundError:
        if _LOCKS.exists():
            return [], []
        return [], ["the processes that have the file open: only Linux shows them"]
    except OSError as error:
        return [], [f"the processes that have the file open: {error.strerror}"]
    pids = set()
    for line in locks.splitlines():
        fields = line.split()
        # A line of a waiting process has an arrow as its second field.
        if len(fields) == 8 and fields[5].endswith(f":{inode}"):
            pids.add(int(fields[4]))
    return [Application(_name(pid), f"pid {pid}", 1) for pid in sorted(pids - {os.getpid()})], []


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return "a process of another container" if pid <= 0 else "?"


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
