"""Reads one state of a SQLite memory, while applications may write to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from flux_memory.errors import BackupError, FluxMemoryError
from flux_memory.operations.backup.contents import Contents, ContentsHasher
from flux_memory.schema import sqlite as schema
from flux_memory.transfer.progress import Advance
from flux_memory.transfer.rows.pgcopy import ValidMessage, ValidSession
from flux_memory.transfer.rows.ratings import FeedbackSpool
from flux_memory.transfer.rows.spool import Spool, all_digests
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.helper import Helper, read_all
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.source.ratings import read_feedback
from flux_memory.transfer.source.reader import Source, inspect_source
from flux_memory.transfer.source.snapshot import Snapshot, snapshot_of
from flux_memory.transfer.threads import run_in_thread

Result = TypeVar("Result")

_BATCH_MESSAGES: Final = 128


@dataclass(frozen=True)
class SqliteState:
    """One state of a SQLite memory."""

    source: Source
    found: PreflightResult
    contents: Contents
    """Of the valid rows."""
    schema_version: int
    """0 for a file of the original application."""


async def read_file(path: Path, work: Callable[[Snapshot], Result]) -> Result:
    """Run work on a snapshot of a file in a thread, once more if another process wrote to the file meanwhile.

    Raises:
        FluxMemoryError: The file cannot be read, or the work failed.
    """
    with snapshot_of(path) as snapshot:

        def attempt() -> Result:
            snapshot.open()
            while True:
                try:
                    result = work(snapshot)
                except (FluxMemoryError, sqlite3.Error, UnicodeDecodeError):
                    if snapshot.interrupted or not snapshot.renew():
                        raise
                else:
                    if not snapshot.renew():
                        return result

        return await run_in_thread(attempt, snapshot.interrupt)


def read_state(
    db: sqlite3.Connection, advance: Advance, *, helper: Helper | None = None, user: str | None = None
) -> SqliteState:
    """Read all rows of a snapshot, and compute the contents of all users or of one.

    Args:
        db: The snapshot.
        advance: Called with the number of rows read.
        helper: A process that has opened the same state.
        user: The user.

    Raises:
        FluxMemoryError: The file is not a memory, or is damaged.
    """
    source = Source(db, inspect_source(db), UTC)
    with Spool() as spool:
        found, parts = read_all(helper, source, RowValidator(UTC), spool, advance, keeps_rows=False)
        source.by_time = found.by_time
        if found.tolerant:
            source.be_tolerant()
        ids = None if user is None else {row.id for row in sessions_of(source, user)}
        hasher = ContentsHasher()
        for digest in all_digests(parts):
            if ids is None or digest.id in ids:
                hasher.add_digest(digest)
        with FeedbackSpool() as entries:
            read_feedback(source, RowValidator(UTC), entries, spool, found)
            for row in entries.rows():
                if user is None or row.user_id == user:
                    hasher.add_feedback(row.id, row.digest())
    version = max(schema.applied_versions(db), default=0)
    return SqliteState(source, found, hasher.contents(), version)


def sessions_of(source: Source, user: str | None) -> Iterator[ValidSession]:
    """Iterate over the valid sessions of all users or of one, in order of ids."""
    validator = RowValidator(source.naive)
    for raw in source.sessions():
        if user is None or raw[1] == user:
            row = validator.validate_session(raw)
            if isinstance(row, ValidSession):
                yield row


def messages_of(source: Source, user: str | None) -> Iterator[tuple[bytes, ValidMessage]]:
    """Iterate over the session's id and the row of each valid message, in order."""
    validator = RowValidator(source.naive)
    if user is not None:
        for session in sessions_of(source, user):
            for raw in source.messages_of(session.id.decode()):
                row = validator.validate_message(raw)
                if isinstance(row, ValidMessage):
                    yield session.id, row
        return
    raws = source.messages()
    while batch := list(islice(raws, _BATCH_MESSAGES)):
        for raw, row in zip(batch, validator.validate_messages(batch), strict=True):
            if isinstance(row, ValidMessage):
                yield raw[0].encode(), row


def refuse_invalid(path: Path, found: PreflightResult) -> None:
    """Refuse rows that no other store can hold.

    Raises:
        BackupError: There are such rows; the message names the first.
    """
    if found.refused:
        first = "; ".join(
            f"{tally.count:,} {tally.table}: {tally.kind}, first {tally.first[0]}" for tally in found.tallies.values()
        )
        raise BackupError(
            f"{path} has {found.refused:,} rows that an archive cannot hold ({first}); correct them, or back up the "
            "file as it is, without --archive"
        )
