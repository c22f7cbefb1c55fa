"""Migrates PostgreSQL to a new SQLite file, proven by the same digests."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC
from pathlib import Path
from typing import Any, Final

from flux_memory.dsn import SecretText, mask_dsn
from flux_memory.errors import FluxMemoryError, MigrationError
from flux_memory.schema import sqlite as schema
from flux_memory.transfer.progress import NullWatcher, Watcher
from flux_memory.transfer.report import Report, Status
from flux_memory.transfer.rows.new_file import (
    COUNT_MESSAGES,
    INSERT_DETAILS,
    INSERT_FEEDBACK,
    INSERT_MESSAGE,
    INSERT_SESSION,
)
from flux_memory.transfer.rows.pgcopy import CopyReader
from flux_memory.transfer.rows.postgres_time import time_text
from flux_memory.transfer.rows.ratings import FeedbackSpool
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.preflight import preflight
from flux_memory.transfer.source.ratings import read_feedback
from flux_memory.transfer.source.reader import EVERYTHING, Source, inspect_source
from flux_memory.transfer.target.choosing import choose_path
from flux_memory.transfer.target.copy_out import copy_out
from flux_memory.transfer.target.merge_result import MergeResult
from flux_memory.transfer.target.ratings import compare_feedback
from flux_memory.transfer.target.server import inspect_target, open_connection
from flux_memory.transfer.target.transfer_path import TransferPath
from flux_memory.transfer.target.verify import Comparison, compare
from flux_memory.transfer.tempfiles import publish, refuse_existing, unproven_file
from flux_memory.transfer.threads import run_in_thread

SELECT_SESSIONS: Final = """
SELECT id, user_id, created_at, updated_at
FROM sessions
ORDER BY id COLLATE "C"
"""
SELECT_DETAILS: Final = """
SELECT session_id, title, metadata::text
FROM session_details
ORDER BY session_id COLLATE "C"
"""
SELECT_MESSAGES: Final = """
SELECT
    session_id,
    row_number() OVER (PARTITION BY session_id ORDER BY seq),
    id,
    role,
    content,
    metadata::text,
    created_at
FROM messages
ORDER BY session_id COLLATE "C", seq
"""
SELECT_FEEDBACK: Final = """
SELECT
    id, session_id, message_id, user_id, rating::text, comment, corrected_answer, metadata::text, created_at
FROM feedback
ORDER BY id COLLATE "C"
"""
SELECT_MISNUMBERED: Final = """
SELECT sessions.id
FROM sessions
LEFT JOIN (
    SELECT session_id, count(*) AS messages, min(seq) AS first, max(seq) AS last FROM messages GROUP BY session_id
) ON session_id = sessions.id
WHERE (message_count, ifnull(messages, 0), ifnull(first, 1)) IS NOT (ifnull(last, 0), message_count, 1)
"""
_BATCH_ROWS: Final = 500
_BATCH_BYTES: Final = 4 * 1024 * 1024


async def migrate_back(postgres_dsn: str, sqlite_path: Path, watcher: Watcher | None = None) -> Report:
    """Write a PostgreSQL memory to a new SQLite file, and prove that both have the same content.

    The file appears once it is complete and proven. PostgreSQL is not changed. Later writes of applications are not
    seen.

    Args:
        postgres_dsn: The memory to read.
        sqlite_path: The file to create; an existing file is not overwritten.
        watcher: Receives the progress.

    Raises:
        FluxMemoryError: The migration failed; the message says why, and what to do.
    """
    postgres_dsn = SecretText(postgres_dsn)
    refuse_existing(sqlite_path)
    watcher = watcher or NullWatcher()
    report = Report(mask_dsn(postgres_dsn), str(sqlite_path))
    try:
        with unproven_file(sqlite_path) as unproven:
            await _write_and_prove(postgres_dsn, unproven, report, watcher)
            if report.status is not Status.DIFFERENT:
                await run_in_thread(lambda: publish(unproven, sqlite_path), lambda: None, undo=sqlite_path.unlink)
    except FluxMemoryError:
        # An unreachable server is an OSError, too.
        raise
    except OSError as error:
        raise MigrationError(
            f"{sqlite_path} cannot be written: {error.strerror or error}; check the directory, its rights and its room"
        ) from error
    except sqlite3.Error as error:
        raise MigrationError(f"{sqlite_path} cannot be written: {error}; check the directory and its room") from error
    return report


async def _write_and_prove(postgres_dsn: str, unproven: Path, report: Report, watcher: Watcher) -> None:
    async with open_connection(postgres_dsn) as connection:
        found = await inspect_target(connection, for_reading=True)
        watcher.say(f"Found {found.sessions:,} sessions, {found.messages:,} messages at {report.source}")
        path = choose_path(found)
        async with path.read(connection, postgres_dsn) as is_one_moment:
            with report.phase(watcher, "Load", found.sessions + found.messages):
                report.moved = await _write(connection, unproven, watcher)
            with report.phase(watcher, "Verify", None):
                await _verify(connection, unproven, report, path, is_one_moment=is_one_moment)


async def _write(connection: Any, path: Path, watcher: Watcher) -> MergeResult:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as db:
        schema.bring_up_to_date(db)
        # An unproven file is discarded, so only `publish` waits for the disk.
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        sessions = _Inserter(db, INSERT_SESSION, _session, watcher)
        await copy_out(connection, SELECT_SESSIONS, sessions.receive)
        await sessions.flush()
        details = _Inserter(db, INSERT_DETAILS, _details, NullWatcher())
        await copy_out(connection, SELECT_DETAILS, details.receive)
        await details.flush()
        messages = _Inserter(db, INSERT_MESSAGE, _message, watcher)
        await copy_out(connection, SELECT_MESSAGES, messages.receive)
        await messages.flush()
        feedback = _Inserter(db, INSERT_FEEDBACK, _feedback, NullWatcher(), nullable=True)
        await copy_out(connection, SELECT_FEEDBACK, feedback.receive)
        await feedback.flush()
        await run_in_thread(lambda: _finish(db), db.interrupt)
    return MergeResult(sessions.rows, messages.rows, feedback=feedback.rows)


class _Inserter:
    """Collects rows from COPY output, and inserts them in batches."""

    def __init__(
        self,
        db: sqlite3.Connection,
        sql: str,
        convert: Callable[[Any], tuple[object, ...]],
        watcher: Watcher,
        *,
        nullable: bool = False,
    ) -> None:
        self.rows = 0
        self._db = db
        self._sql = sql
        self._convert = convert
        self._watcher = watcher
        self._nullable = nullable
        self._gathered: list[tuple[object, ...]] = []
        self._size = 0
        self._reader = CopyReader()

    async def receive(self, data: bytes) -> None:
        """Receive a chunk of the output."""
        self._size += len(data)
        for values in self._reader.rows(data):
            if None in values and not self._nullable:
                raise MigrationError(
                    f"session {(values[0] or b'').decode()} of the PostgreSQL memory, or a message of it, has a NULL, "
                    "which has no meaning there; set it to '', or metadata to '{}', first"
                )
            self._gathered.append(self._convert(values))
        if len(self._gathered) >= _BATCH_ROWS or self._size >= _BATCH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Insert the collected rows."""
        rows, self._gathered, self._size = self._gathered, [], 0
        if rows:
            await run_in_thread(lambda: self._insert(rows), self._db.interrupt)
            self.rows += len(rows)
            self._watcher.advance(len(rows))

    def _insert(self, rows: list[tuple[object, ...]]) -> None:
        # Does not return the cursor: freed in another thread, it would reset the statement while rows are bound.
        self._db.executemany(self._sql, rows)


def _session(values: Sequence[bytes]) -> tuple[object, ...]:
    id_, user_id, created_at, updated_at = values
    return id_.decode(), user_id.decode(), _time(created_at), _time(updated_at)


def _details(values: Sequence[bytes]) -> tuple[object, ...]:
    session_id, title, metadata = values
    return session_id.decode(), title.decode(), metadata.decode()


def _message(values: Sequence[bytes]) -> tuple[object, ...]:
    session_id, seq, id_, role, content, metadata, created_at = values
    return (
        session_id.decode(),
        int.from_bytes(seq),
        id_.decode(),
        role.decode(),
        content.decode(),
        metadata.decode(),
        _time(created_at),
    )


def _feedback(values: Sequence[bytes | None]) -> tuple[object, ...]:
    *texts, created_at = values
    id_, session_id, message_id, user_id, rating, *rest = (None if text is None else text.decode() for text in texts)
    moment = None if created_at is None else _time(created_at)
    return id_, session_id, message_id, user_id, None if rating is None else int(rating), *rest, moment


def _time(value: bytes) -> str:
    try:
        return time_text(int.from_bytes(value, signed=True))
    except OverflowError:
        raise MigrationError(
            "the PostgreSQL memory has a time outside the years 1 to 9999, which no backend reads; fix it first"
        ) from None


def _finish(db: sqlite3.Connection) -> None:
    db.execute(COUNT_MESSAGES)
    db.execute("COMMIT")


async def _verify(connection: Any, file: Path, report: Report, path: TransferPath, *, is_one_moment: bool) -> None:
    """Read the file as a migration would, and compare it with the snapshot that it was written from."""
    with closing(_open_to_read(file)) as db:
        source = Source(db, inspect_source(db))
        validator = RowValidator(UTC)
        with Spool() as spool, FeedbackSpool() as entries:
            spool.keeps_rows = False
            report.preflight = await run_in_thread(
                lambda: preflight(source, validator, spool, lambda _: None, EVERYTHING), source.interrupt
            )

            await run_in_thread(
                lambda: read_feedback(source, validator, entries, spool, report.preflight), source.interrupt
            )

            async def opened() -> Source:
                return source

            found = report.verification = Comparison(is_one_moment=is_one_moment)
            await compare(found, connection, opened, validator, spool.digests(), statement=path.statement)
            await compare_feedback(found, connection, entries)
            for (id_,) in await run_in_thread(lambda: db.execute(SELECT_MISNUMBERED).fetchall(), db.interrupt):
                found.add("messages numbered wrongly in the file", id_)
    if found.identical and not report.preflight.refused:
        report.status = Status.IDENTICAL
    elif found.same_rows and not report.preflight.refused:
        report.status = Status.CONTAINED


def _open_to_read(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    schema.distrust(db)
    return db
