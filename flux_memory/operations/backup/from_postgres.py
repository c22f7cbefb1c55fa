"""Makes a backup of a PostgreSQL memory: a dump of its tables, or an archive."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from flux_memory.dsn import SecretText, parse_dsn
from flux_memory.errors import BackupError
from flux_memory.operations.backup.addresses import identify
from flux_memory.operations.backup.archive_lines import header_line
from flux_memory.operations.backup.archive_writer import ArchiveWriter
from flux_memory.operations.backup.compression import Compression, compressing
from flux_memory.operations.backup.contents import Contents, refuse_unknown_user
from flux_memory.operations.backup.dumping import (
    EXPORT_SNAPSHOT,
    checksum_tables,
    dump,
    find_own_tables,
    refuse_pooler,
)
from flux_memory.operations.backup.hidden import GuardedFile
from flux_memory.operations.backup.manifest import Kind, Manifest
from flux_memory.operations.backup.planning import BackupPlan, begin_manifest
from flux_memory.operations.backup.postgres_reading import read_contents, write_rows
from flux_memory.operations.backup.programs import find_program
from flux_memory.operations.backup.proving import is_current, prove_archive, prove_dump, refuse_different
from flux_memory.schema import postgres as schema
from flux_memory.schema.postgres.tables import WITH_RECORD
from flux_memory.transfer.progress import Watcher
from flux_memory.transfer.target.server import inspect_target, open_connection, read_transaction, refuse_distributed


async def dump_database(plan: BackupPlan, created_at: datetime, watcher: Watcher, path: Path | None) -> Manifest:
    """Dump the tables of a PostgreSQL memory, and prove the dump.

    Args:
        plan: The settings.
        created_at: The time of the backup.
        watcher: Receives the progress.
        path: The file to fill; `None` only reads.

    Raises:
        FluxMemoryError: The server cannot be reached, pg_dump is missing or fails, or the dump differs.
    """
    dsn = SecretText(plan.postgres_dsn or "")
    parsed = parse_dsn(dsn)
    async with open_connection(dsn) as connection:
        await refuse_pooler(connection)
        state = await schema.inspect(connection, WITH_RECORD, for_reading=True)
        if is_current(state.version):
            refuse_distributed(await inspect_target(connection, for_reading=True))
        else:
            watcher.say(f"The tables have schema version {state.version}; they are compared row by row, not by digests")
        major = connection.get_server_version().major
        program = find_program("pg_dump", major)
        watcher.say(f"Dump by {program.path}, version {program.major}; the server has version {major}")
        async with read_transaction(connection):
            tables, schema_name = await find_own_tables(connection, state.version)
            watcher.phase("Read", None)
            contents: Contents | None = None
            if is_current(state.version):
                contents, odd = await read_contents(connection)
                watcher.say(f"Read {contents}")
                if odd.count:
                    watcher.say(f"{odd}; they are dumped as they are")
            manifest = begin_manifest(
                plan,
                Kind.DUMP,
                created_at=created_at,
                default_name=parsed.arguments["database"],
                store=identify(parsed, schema_name),
                engine=f"postgres {major}, pg_dump {program.major}",
                schema_version=state.version,
                contents=contents,
                tables=await checksum_tables(connection, list(tables)),
                schema=schema_name,
            )
            if path is None:
                return manifest
            watcher.phase("Dump", None)
            snapshot = await connection.fetchval(EXPORT_SNAPSHOT)
            with GuardedFile(path) as file:
                await dump(program, parsed, snapshot, list(tables.values()), file)
    if plan.verify:
        watcher.phase("Verify", None)
        refuse_different("the dump", await prove_dump(path, manifest, dsn, major, program.major))
    return manifest


async def archive_database(
    plan: BackupPlan, created_at: datetime, compression: Compression, watcher: Watcher, path: Path | None
) -> Manifest:
    """Write the rows of a PostgreSQL memory to an archive, and prove it.

    Args:
        plan: The settings.
        created_at: The time of the backup.
        compression: The archive's.
        watcher: Receives the progress.
        path: The file to fill; `None` only reads.

    Raises:
        FluxMemoryError: The server cannot be reached, or the archive cannot be written or differs.
    """
    dsn = SecretText(plan.postgres_dsn or "")
    async with open_connection(dsn) as connection:
        refuse_distributed(await inspect_target(connection, for_reading=True))
        state = await schema.inspect(connection, WITH_RECORD, for_reading=True)
        async with read_transaction(connection):
            watcher.phase("Read", None)
            contents, odd = await read_contents(connection, user=plan.user)
            if odd.count:
                raise BackupError(
                    f"{odd}; an archive cannot keep that. Correct these rows, or back up the tables as they are, "
                    "without --archive"
                )
            refuse_unknown_user(plan.user, contents)
            watcher.say(f"Read {contents}")
            _, schema_name = await find_own_tables(connection, state.version)
            parsed = parse_dsn(dsn)
            manifest = begin_manifest(
                plan,
                Kind.ARCHIVE,
                created_at=created_at,
                default_name=parsed.arguments["database"],
                store=identify(parsed, schema_name),
                engine=f"postgres {connection.get_server_version().major}",
                schema_version=state.version,
                contents=contents,
            )
            if path is None:
                return manifest
            watcher.phase("Archive", contents.rows)
            written = await _write(connection, plan, manifest, path, compression=compression, watcher=watcher)
    refuse_different("the archive", contents.differences(written))
    if plan.verify:
        watcher.phase("Verify", None)
        refuse_different("the archive", await prove_archive(path, contents, watcher.advance))
    return manifest


async def _write(
    connection: Any, plan: BackupPlan, manifest: Manifest, path: Path, *, compression: Compression, watcher: Watcher
) -> Contents:
    with GuardedFile(path) as file, compressing(file, compression) as lines:
        lines.write(header_line(manifest.as_header()))
        writer = ArchiveWriter(lines)
        await write_rows(connection, writer, plan.user, watcher.advance)
        return writer.finish()
