"""Counts, dates and vacuums the sessions of a SQLite file for `flux-memory prune`."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from flux_memory.errors import FluxMemoryError
from flux_memory.operations.file_connection import run_on_file
from flux_memory.operations.file_tables import check_file_tables
from flux_memory.operations.prune.steps import Doomed, PruneCriteria, Vacuumed
from flux_memory.records import check_deletion

COUNT_DOOMED: Final = "SELECT count(*), coalesce(sum(message_count), 0) FROM sessions WHERE {criteria}"
SELECT_CUT: Final = "SELECT id, updated_at FROM sessions WHERE {criteria} ORDER BY updated_at, id LIMIT 1 OFFSET ?"
COUNT_FEEDBACK: Final = "SELECT count(*) FROM feedback WHERE user_id = ?"
OF_USER: Final = "user_id = ?"
INACTIVE: Final = "updated_at < ?"

_VACUUM_SECONDS: Final = 86_400.0
_ELSEWHERE: Final = "Backups and copies of the file keep what they have, and so may the disk where the old file lay."


class PrunedFile:
    """A SQLite file.

    Args:
        path: The file.
        timeout: Seconds that a statement may take, and that it waits for another process's lock.
    """

    remains = (
        "Deleted rows may remain in free pages of the file and in its -wal until they are overwritten; --vacuum "
        f"removes both. {_ELSEWHERE}"
    )

    def __init__(self, path: str, timeout: float) -> None:
        self.shown = path
        self._path = path
        self._timeout = timeout

    async def check_schema(self) -> None:
        """Check that the file has current tables: the command creates and upgrades none.

        Raises:
            FluxMemoryError: There is no such file, or its tables are missing, of an earlier version, or unusable.
        """
        await check_file_tables(self._path, self._timeout)

    async def count(self, criteria: PruneCriteria) -> Doomed:
        """Count the sessions that meet the criteria, and their messages."""
        sql, values = _with_criteria(COUNT_DOOMED, criteria)

        def read(db: sqlite3.Connection) -> Doomed:
            db.execute("BEGIN")
            sessions, messages = db.execute(sql, values).fetchone()
            feedback = 0
            if criteria.erases_feedback:
                (feedback,) = db.execute(COUNT_FEEDBACK, (criteria.user_id,)).fetchone()
            db.execute("ROLLBACK")
            return Doomed(sessions, messages, feedback)

        return await run_on_file(self._path, read, self._timeout)

    async def find_cut(self, criteria: PruneCriteria, sessions: int) -> datetime | None:
        """Return the last change of the session with this many older ones that meet the criteria."""
        sql, values = _with_criteria(SELECT_CUT, criteria)
        row = await run_on_file(
            self._path, lambda db: db.execute(sql, (*values, sessions - 1)).fetchone(), self._timeout
        )
        if row is None:
            return None
        session_id, updated_at = row
        try:
            return datetime.fromisoformat(updated_at)
        except (TypeError, ValueError) as error:
            raise FluxMemoryError(f"the stored session {session_id!r:.80} cannot be read: {error}") from error

    async def read_clock(self) -> datetime:
        """Return the time, by the clock that dates the sessions."""
        return datetime.now(UTC)

    async def vacuum(self) -> Vacuumed:
        """Write the file anew without the pages of deleted rows, and empty the log.

        Writers wait meanwhile, and the disk needs room for the file twice.
        """
        return await run_on_file(
            self._path, partial(_vacuum, self._path), _VACUUM_SECONDS, writes=True, lock_seconds=self._timeout
        )


def _with_criteria(sql: str, criteria: PruneCriteria) -> tuple[str, list[str]]:
    values = check_deletion(criteria.user_id, criteria.inactive_since)
    given = [
        (condition, value) for condition, value in zip((OF_USER, INACTIVE), values, strict=True) if value is not None
    ]
    return sql.format(criteria=" AND ".join(condition for condition, _ in given)), [value for _, value in given]


def _vacuum(path: str, db: sqlite3.Connection) -> Vacuumed:
    before = _size(path)
    db.execute("VACUUM")
    # VACUUM writes the new file to the log; this moves it over the old one, and empties the log.
    busy, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    done, left = ["wrote the file anew: it has no free page with deleted rows"], []
    if busy:
        done = ["wrote the file anew, into the log"]
        left.append(
            f"{path}-wal could not be emptied, because another process reads the file; run --vacuum again when it is "
            "idle"
        )
    else:
        done.append("emptied the log")
    return Vacuumed(before, _size(path), tuple(done), (*left, _ELSEWHERE))


def _size(path: str) -> int:
    # SQLite places the log beside the file that a link names.
    file = Path(path).resolve()
    return sum(each.stat().st_size for each in (file, Path(f"{file}-wal")) if each.exists())
