"""Fills a new SQLite file with rows of a backup, whole or of one user."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from flux_memory.errors import BackupError
from flux_memory.operations.backup.archive_reader import ArchiveReader
from flux_memory.operations.backup.contents import Contents, RowsHasher
from flux_memory.operations.backup.feedback import feedback_of
from flux_memory.operations.backup.sqlite_reading import messages_of, sessions_of
from flux_memory.schema import sqlite as schema
from flux_memory.transfer.progress import Advance
from flux_memory.transfer.rows.new_file import (
    COUNT_MESSAGES,
    INSERT_DETAILS,
    INSERT_FEEDBACK,
    INSERT_MESSAGE,
    INSERT_SESSION,
)
from flux_memory.transfer.rows.pgcopy import ValidMessage, ValidSession
from flux_memory.transfer.rows.postgres_time import time_text
from flux_memory.transfer.rows.ratings import ValidFeedback
from flux_memory.transfer.rows.raw import FEEDBACK_FIELDS
from flux_memory.transfer.source.reader import Source
from flux_memory.transfer.threads import Stopped

_OWNER: Final = FEEDBACK_FIELDS.index("user_id")
_BATCH_ROWS: Final = 500
_BATCH_BYTES: Final = 4 * 1024 * 1024


def fill_from_archive(
    reader: ArchiveReader, path: Path, user: str | None, advance: Advance, stopped: Stopped
) -> Contents:
    """Fill a file with the rows of an archive, or with those of a user; return its contents.

    The archive is read to its end, and so verified, in either case.

    Raises:
        BackupError: The archive is damaged, the file cannot be written, or `stopped` returned true.
    """
    ids: set[str] | None = None if user is None else set()
    with closing(_Filler(path, advance, stopped)) as filler:
        for kind, row, raw in reader.records():
            if kind == "session":
                if ids is not None:
                    if raw[1] != user:
                        continue
                    ids.add(raw[0])
                filler.add_session(ValidSession(*row))
            elif kind == "message":
                if ids is None or raw[0] in ids:
                    filler.add_message(raw[0], ValidMessage(*row))
            elif user is None or row[_OWNER] == user:
                filler.add_feedback(ValidFeedback(*row))
        return filler.finish()


def fill_from_source(source: Source, path: Path, user: str, *, advance: Advance, stopped: Stopped) -> Contents:
    """Fill a file with the rows of a user in another file; return its contents.

    Args:
        source: The other file.
        path: The file to fill.
        user: The user.
        advance: Called with the number of rows.
        stopped: Whether the work was cancelled.

    Raises:
        BackupError: The file cannot be written, or `stopped` returned true.
    """
    with closing(_Filler(path, advance, stopped)) as filler:
        for session in sessions_of(source, user):
            filler.add_session(session)
        for session_id, message in messages_of(source, user):
            filler.add_message(session_id.decode(), message)
        for entry in feedback_of(source, user):
            filler.add_feedback(entry)
        return filler.finish()


class _Filler:
    """Inserts rows in one transaction, in batches."""

    def __init__(self, path: Path, advance: Advance, stopped: Stopped) -> None:
        self._path = path
        self._advance = advance
        self._stopped = stopped
        self._hasher = RowsHasher()
        self._rows: dict[str, list[tuple[Any, ...]]] = {}
        self._count = self._size = 0
        self._session_id = ""
        self._seq = 0
        self._db = sqlite3.connect(path, isolation_level=None)
        self._guard(self._begin)

    def add_session(self, row: ValidSession) -> None:
        """Insert a session."""
        self._hasher.add_session(row)
        id_ = row.id.decode()
        times = time_text(row.created_at), time_text(row.updated_at)
        self._gather(INSERT_SESSION, (id_, row.user_id.decode(), *times), 0)
        self._gather(INSERT_DETAILS, (id_, row.title.decode(), row.metadata.decode()), len(row.title + row.metadata))

    def add_message(self, session_id: str, row: ValidMessage) -> None:
        """Insert the next message of a session."""
        self._hasher.add_message(session_id.encode(), row)
        self._seq = self._seq + 1 if session_id == self._session_id else 1
        self._session_id = session_id
        texts = (row.id.decode(), row.role.decode(), row.content.decode(), row.metadata.decode())
        values = (session_id, self._seq, *texts, time_text(row.created_at))
        self._gather(INSERT_MESSAGE, values, len(row.content) + len(row.metadata))

    def add_feedback(self, row: ValidFeedback) -> None:
        """Insert an entry of feedback."""
        self._hasher.add_feedback(row)
        self._gather(INSERT_FEEDBACK, row, len(row.comment) + len(row.metadata))

    def finish(self) -> Contents:
        """Commit, and return what was inserted."""
        self._flush()
        self._guard(self._commit)
        return self._hasher.contents()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _begin(self) -> None:
        schema.bring_up_to_date(self._db)
        # The file is discarded, unless it is flushed as a whole later.
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("BEGIN")

    def _commit(self) -> None:
        self._db.execute(COUNT_MESSAGES)
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA journal_mode = DELETE")

    def _gather(self, sql: str, values: tuple[Any, ...], size: int) -> None:
        self._rows.setdefault(sql, []).append(values)
        self._count += 1
        self._size += size
        if self._count >= _BATCH_ROWS or self._size >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._stopped():
            raise BackupError("it was cancelled")
        rows, self._rows, self._count, self._size = self._rows, {}, 0, 0
        # In the order of insertion: a session comes before its messages.
        for sql, values in rows.items():
            self._guard(lambda sql=sql, values=values: self._db.executemany(sql, values))  # type: ignore[misc]  # defaults bind
            if sql in {INSERT_SESSION, INSERT_MESSAGE}:
                self._advance(len(values))

    def _guard(self, work: Callable[[], object]) -> None:
        try:
            work()
        except sqlite3.IntegrityError as error:
            raise BackupError(
                f"the backup has rows that a memory cannot hold: {error}; it was made by another program, or altered"
            ) from error
        except sqlite3.Error as error:
            raise BackupError(
                f"the rows cannot be written to {self._path.parent}: {error}; make room there, or set TMPDIR to a "
                "larger directory"
            ) from error
