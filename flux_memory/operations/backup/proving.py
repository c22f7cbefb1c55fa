"""Proves a backup: restores it into a throwaway store, and compares that with the state that was backed up."""

from __future__ import annotations

from pathlib import Path

from flux_memory.dsn import parse_dsn
from flux_memory.errors import BackupError
from flux_memory.operations.backup.archive_reader import open_archive
from flux_memory.operations.backup.contents import Contents
from flux_memory.operations.backup.dumping import checksum_tables, find_own_tables, restore_dump
from flux_memory.operations.backup.filling import fill_from_archive
from flux_memory.operations.backup.manifest import Manifest
from flux_memory.operations.backup.postgres_reading import read_contents
from flux_memory.operations.backup.programs import find_program
from flux_memory.operations.backup.scratch import scratch_database
from flux_memory.operations.backup.sqlite_copy import reading_copy
from flux_memory.operations.backup.sqlite_reading import SqliteState, read_state
from flux_memory.schema import history
from flux_memory.transfer.progress import Advance
from flux_memory.transfer.target.server import inspect_target, open_connection, read_transaction, refuse_distributed
from flux_memory.transfer.tempfiles import private_directory
from flux_memory.transfer.threads import Stopped, run_in_thread, run_stoppable


async def prove_copy(path: Path, expected: Contents, refused: int, advance: Advance) -> list[str]:
    """Return how a copy of a SQLite file differs from the state it was made of.

    Args:
        path: The copy.
        expected: The contents of the valid rows.
        refused: The number of rows that only this file can hold.
        advance: Called with the number of rows read.
    """

    def read() -> SqliteState:
        with reading_copy(path) as db:
            return read_state(db, advance)

    state = await run_in_thread(read, lambda: None)
    differences = expected.differences(state.contents)
    if state.found.refused != refused:
        differences.append(f"{refused:,} invalid rows became {state.found.refused:,}")
    return differences


async def prove_archive(path: Path, expected: Contents, advance: Advance) -> list[str]:
    """Return how a SQLite memory that is restored from an archive differs from the state that was archived."""

    def prove(stopped: Stopped) -> list[str]:
        with private_directory() as directory:
            restored = directory / "restored.db"
            with open_archive(path) as reader:
                fill_from_archive(reader, restored, None, lambda _: None, stopped)
            with reading_copy(restored) as db:
                return expected.differences(read_state(db, advance).contents)

    return await run_stoppable(prove)


async def prove_dump(path: Path, manifest: Manifest, dsn: str | None, major: int, dump_major: int) -> list[str]:
    """Return how a database that is restored from a dump differs from the state that was dumped.

    Args:
        path: The dump.
        manifest: What it should hold.
        dsn: A memory on a server on which the role may be allowed to create databases, or `None`.
        major: The server's major version.
        dump_major: The major version of pg_dump.

    Raises:
        BackupError: The dump cannot be restored.
    """
    assert manifest.schema is not None  # noqa: S101 - of a dump
    program = find_program("pg_restore", major, oldest_major=dump_major)
    async with scratch_database(dsn, major, manifest.schema) as scratch:
        await restore_dump(program, parse_dsn(scratch), path)
        return await compare_database(scratch, manifest)


async def compare_database(dsn: str, manifest: Manifest) -> list[str]:
    """Return how a database differs from the state that was dumped."""
    async with open_connection(dsn) as connection:
        if is_current(manifest.schema_version):
            refuse_distributed(await inspect_target(connection, for_reading=True))
        async with read_transaction(connection):
            tables, _ = await find_own_tables(connection, manifest.schema_version)
            found = await checksum_tables(connection, [table for table in tables if table in manifest.tables])
            differences = [
                f"the table {table} had {said}, and has {found.get(table, 'nothing')}"
                for table, said in manifest.tables.items()
                if found.get(table) != said
            ]
            if manifest.contents is not None:
                differences += manifest.contents.differences((await read_contents(connection))[0])
    return differences


def is_current(schema_version: int) -> bool:
    """Return whether the PostgreSQL schema is that of this library."""
    return schema_version == history("postgres")[-1].version


def refuse_different(what: str, differences: list[str]) -> None:
    """Raise `BackupError` if there are differences."""
    if differences:
        raise BackupError(
            f"DIFFERENT: {what} is not what was backed up: {'; '.join(differences[:5])}. No backup was written; check "
            "the disk, and run again"
        )
