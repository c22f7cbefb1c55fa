"""Makes a backup of a SQLite memory: a copy of the file, or an archive."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import IO

from flux_memory.errors import BackupError
from flux_memory.operations.backup.archive_lines import header_line
from flux_memory.operations.backup.archive_writer import ArchiveWriter
from flux_memory.operations.backup.compression import Compression, compressing
from flux_memory.operations.backup.contents import refuse_unknown_user
from flux_memory.operations.backup.feedback import feedback_of
from flux_memory.operations.backup.hidden import GuardedFile
from flux_memory.operations.backup.manifest import Kind, Manifest
from flux_memory.operations.backup.planning import BackupPlan, begin_manifest
from flux_memory.operations.backup.proving import prove_archive, prove_copy, refuse_different
from flux_memory.operations.backup.sqlite_copy import copy_pages
from flux_memory.operations.backup.sqlite_reading import (
    SqliteState,
    messages_of,
    read_file,
    read_state,
    refuse_invalid,
    sessions_of,
)
from flux_memory.transfer.progress import Watcher
from flux_memory.transfer.source.snapshot import Snapshot, check_file

_PROGRESS_ROWS = 1000


async def copy_file(plan: BackupPlan, created_at: datetime, watcher: Watcher, path: Path | None) -> Manifest:
    """Copy a SQLite file, and prove the copy.

    Args:
        plan: The settings.
        created_at: The time of the backup.
        watcher: Receives the progress.
        path: The file to fill; `None` only reads.

    Raises:
        FluxMemoryError: The file cannot be read, or the copy cannot be written or differs.
    """
    source_path = _source(plan)

    def read(snapshot: Snapshot) -> SqliteState:
        state = read_state(snapshot.db, watcher.advance, helper=snapshot.helper)
        if path is not None:
            copy_pages(snapshot.db, path, lambda: snapshot.interrupted)
        return state

    watcher.phase("Copy", None)
    state = await read_file(source_path, read)
    manifest = _manifest(plan, Kind.SQLITE, created_at, state)
    watcher.say(f"Read {state.contents}")
    if state.found.refused:
        watcher.say(f"Not valid, and copied as they are: {state.found.refused:,} rows; a migration would refuse them")
    if path is not None and plan.verify:
        watcher.phase("Verify", None)
        refuse_different("the copy", await prove_copy(path, state.contents, state.found.refused, watcher.advance))
    return manifest


async def archive_file(
    plan: BackupPlan, created_at: datetime, compression: Compression, watcher: Watcher, path: Path | None
) -> Manifest:
    """Write the rows of a SQLite file to an archive, and prove it.

    Args:
        plan: The settings.
        created_at: The time of the backup.
        compression: The archive's.
        watcher: Receives the progress.
        path: The file to fill; `None` only reads.

    Raises:
        FluxMemoryError: The file cannot be read or has invalid rows, or the archive cannot be written or differs.
    """
    source_path = _source(plan)

    def read(snapshot: Snapshot) -> SqliteState:
        state = read_state(snapshot.db, lambda _: None, helper=snapshot.helper, user=plan.user)
        refuse_invalid(source_path, state.found)
        refuse_unknown_user(plan.user, state.contents)
        if path is not None:
            with GuardedFile(path) as file, compressing(file, compression) as lines:
                _write(plan, created_at, state, snapshot, lines, watcher=watcher)
        return state

    watcher.phase("Archive", None)
    state = await read_file(source_path, read)
    watcher.say(f"Read {state.contents}")
    if unknown := state.source.layout.unknown:
        watcher.say(f"Left out, since they are not conversation memory: {', '.join(unknown)}")
    if path is not None and plan.verify:
        watcher.phase("Verify", None)
        refuse_different("the archive", await prove_archive(path, state.contents, watcher.advance))
    return _manifest(plan, Kind.ARCHIVE, created_at, state)


def _write(
    plan: BackupPlan,
    created_at: datetime,
    state: SqliteState,
    snapshot: Snapshot,
    lines: IO[bytes],
    *,
    watcher: Watcher,
) -> None:
    lines.write(header_line(_manifest(plan, Kind.ARCHIVE, created_at, state).as_header()))
    writer = ArchiveWriter(lines)
    rows = 0
    for session in sessions_of(state.source, plan.user):
        writer.add_session(session)
        rows += 1
    watcher.advance(rows)
    rows = 0
    for session_id, message in messages_of(state.source, plan.user):
        writer.add_message(session_id, message)
        rows += 1
        if rows == _PROGRESS_ROWS:
            watcher.advance(rows)
            rows = 0
            if snapshot.interrupted:
                raise BackupError("it was cancelled")
    watcher.advance(rows)
    for entry in feedback_of(state.source, plan.user):
        writer.add_feedback(entry)
    refuse_different("the archive", state.contents.differences(writer.finish()))


def _manifest(plan: BackupPlan, kind: Kind, created_at: datetime, state: SqliteState) -> Manifest:
    path = _source(plan)
    return begin_manifest(
        plan,
        kind,
        created_at=created_at,
        default_name=path.stem,
        store=f"sqlite:{path.resolve()}",
        engine="sqlite",
        schema_version=state.schema_version,
        contents=state.contents,
    )


def _source(plan: BackupPlan) -> Path:
    assert plan.sqlite_path is not None  # noqa: S101 - of a SQLite memory
    check_file(plan.sqlite_path)
    return plan.sqlite_path
