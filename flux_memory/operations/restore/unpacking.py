"""Turns any backup into a SQLite file with its rows, whole or those of one user, which is proven before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flux_memory.dsn import parse_dsn
from flux_memory.errors import BackupError
from flux_memory.operations.backup.archive_reader import open_archive
from flux_memory.operations.backup.contents import Contents
from flux_memory.operations.backup.dumping import restore_dump
from flux_memory.operations.backup.filling import fill_from_archive, fill_from_source
from flux_memory.operations.backup.manifest import Kind
from flux_memory.operations.backup.programs import find_program
from flux_memory.operations.backup.scratch import scratch_database
from flux_memory.operations.backup.sqlite_copy import reading_copy
from flux_memory.operations.backup.sqlite_reading import read_state
from flux_memory.operations.restore.recognizing import Backup
from flux_memory.transfer import Status, migrate_back
from flux_memory.transfer.progress import Advance, Watcher
from flux_memory.transfer.target.server import open_connection, prepare_schema
from flux_memory.transfer.threads import Stopped, run_stoppable


@dataclass(frozen=True)
class Unpacked:
    """A SQLite file with the rows of a backup."""

    path: Path
    contents: Contents
    unknown: tuple[str, ...] = ()
    """Tables and columns in it that are not conversation memory."""


async def unpack(backup: Backup, user: str | None, directory: Path, dsn: str | None, watcher: Watcher) -> Unpacked:
    """Read a whole backup, prove it, and return a SQLite file with its rows.

    Args:
        backup: The backup.
        user: The only user whose rows to take.
        directory: Receives the file, unless the backup itself is one.
        dsn: A memory on a server where a dump may be restored into a scratch database; `None` for a local server.
        watcher: Receives the progress.

    Raises:
        FluxMemoryError: The backup is damaged or cannot be unpacked; the message says what to do.
    """
    watcher.phase("Read", None)
    if backup.kind is Kind.ARCHIVE:
        unpacked = directory / "unpacked.db"
        held = await run_stoppable(lambda stopped: _read_archive(backup, unpacked, user, watcher.advance, stopped))
        return await run_stoppable(lambda _: _prove(unpacked, held))
    source = backup.path
    if backup.kind is Kind.DUMP:
        source = directory / "dump.db"
        await _read_dump(backup, source, dsn)
    expected = None if backup.manifest is None else backup.manifest.contents
    if user is None:
        return await run_stoppable(lambda _: _prove(source, expected))
    one = directory / "user.db"
    taken = await run_stoppable(
        lambda stopped: _take_user(source, expected, one, user, advance=watcher.advance, stopped=stopped)
    )
    return await run_stoppable(lambda _: _prove(one, taken))


def _read_archive(backup: Backup, path: Path, user: str | None, advance: Advance, stopped: Stopped) -> Contents:
    with open_archive(backup.path) as reader:
        filled = fill_from_archive(reader, path, user, advance, stopped)
        said = reader.contents
    manifest = backup.manifest
    if manifest is not None and manifest.contents is not None and said is not None:
        _refuse(backup.path, manifest.contents.differences(said))
    return filled


async def _read_dump(backup: Backup, path: Path, dsn: str | None) -> None:
    manifest = backup.manifest
    if manifest is None or manifest.schema is None:
        raise BackupError(
            f"{backup.path} has no manifest, so its schema and its digests are not known; restore it with pg_restore, "
            "or into a database without a memory"
        )
    major, dump_major = (int(part.rpartition(" ")[2]) for part in manifest.engine.split(","))
    program = find_program("pg_restore", major, oldest_major=dump_major)
    async with scratch_database(dsn, major, manifest.schema) as scratch:
        await restore_dump(program, parse_dsn(scratch), backup.path)
        async with open_connection(scratch) as connection:
            # A dump of an earlier version.
            await prepare_schema(connection)
        report = await migrate_back(scratch, path)
    if report.status is not Status.IDENTICAL:
        first = "; ".join(report.verification.first_differences[:3]) if report.verification else ""
        raise BackupError(
            f"the rows of {backup.path} cannot be held by another store: {first}; restore it into a PostgreSQL "
            "database without a memory"
        )


def _take_user(
    source: Path, expected: Contents | None, path: Path, user: str, *, advance: Advance, stopped: Stopped
) -> Contents:
    with reading_copy(source) as db:
        state = read_state(db, lambda _: None)
        if expected is not None:
            _refuse(source, expected.differences(state.contents))
        return fill_from_source(state.source, path, user, advance=advance, stopped=stopped)


def _prove(path: Path, expected: Contents | None) -> Unpacked:
    with reading_copy(path) as db:
        state = read_state(db, lambda _: None)
    if expected is not None:
        _refuse(path, expected.differences(state.contents))
    return Unpacked(path, state.contents, state.source.layout.unknown)


def _refuse(path: Path, differences: list[str]) -> None:
    if differences:
        raise BackupError(f"{path} was altered: {'; '.join(differences)}. Nothing was changed; use another backup")
