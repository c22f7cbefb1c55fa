"""Runs pg_dump on an open snapshot, and pg_restore from a verified file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import IO, Any, Final

from flux_memory.dsn import Dsn
from flux_memory.errors import BackupError
from flux_memory.operations.backup.addresses import libpq_environment
from flux_memory.operations.backup.programs import Program, run_program
from flux_memory.schema import WITH_FEEDBACK

TABLES: Final = (
    "sessions",
    "session_details",
    "messages",
    "feedback",
    "flux_memory_schema",
    "flux_memory_moves",
    "flux_memory_moved_sessions",
    "flux_memory_moved_feedback",
)
"""The library's tables; a store lacks those of a later schema, and of moves that never were."""
SELECT_TABLES: Final = """
SELECT relname::text, quote_ident(nspname::text) || '.' || quote_ident(relname::text), nspname::text
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind = 'r' AND pg_table_is_visible(pg_class.oid) AND relname = ANY ($1::text::name[])
ORDER BY array_position($1::text::name[], relname)
"""
AS_ARRAY: Final = "{" + ",".join(TABLES) + "}"
EXPORT_SNAPSHOT: Final = "SELECT pg_export_snapshot()"
# The checksum of a table is the sum of its rows', so it does not depend on their order.
CHECKSUM: Final = """
SELECT count(*)::text || ' rows ' || coalesce(sum(('x' || substr(md5(row::text), 1, 16))::bit(64)::bigint), 0)::text
FROM /* table */ AS row
"""
CHECKSUMS: Final = {table: CHECKSUM.replace("/* table */", table) for table in TABLES}
PLAIN_TEXT: Final = """
SET LOCAL datestyle = 'ISO, MDY';
SET LOCAL timezone = 'UTC';
SET LOCAL extra_float_digits = 1;
SET LOCAL bytea_output = 'hex'
"""
SELECT_BACKEND: Final = "SELECT pg_backend_pid()"
_CHUNK_BYTES: Final = 1024 * 1024
_MAGIC: Final = b"PGDMP"


def is_dump(head: bytes) -> bool:
    """Return whether a file is one of `pg_dump --format=custom`, by its first bytes."""
    return head.startswith(_MAGIC)


async def find_own_tables(connection: Any, schema_version: int) -> tuple[dict[str, str], str]:
    """Return the library's tables, each with its name as pg_dump takes it, and their schema.

    Raises:
        BackupError: There are none.
    """
    rows = await connection.fetch(SELECT_TABLES, AS_ARRAY)
    if not any(name == "sessions" for name, *_ in rows):
        raise BackupError(
            "the database has no conversation memory; check the DSN, or open the memory once with the library"
        )
    own = next(schema for name, _, schema in rows if name == "sessions")
    others = {"feedback"} if schema_version < WITH_FEEDBACK else set()
    return {name: quoted for name, quoted, schema in rows if schema == own and name not in others}, own


async def checksum_tables(connection: Any, tables: list[str]) -> dict[str, str]:
    """Return the number of rows and a checksum of each table, in the caller's transaction."""
    await connection.execute(PLAIN_TEXT)
    return {table: await connection.fetchval(CHECKSUMS[table]) for table in tables}


async def refuse_pooler(connection: Any) -> None:
    """Refuse a connection through a pooler: pg_dump changes settings of its session, which another client inherits.

    Raises:
        BackupError: The server's process is not the one that the connection was told of.
    """
    if await connection.fetchval(SELECT_BACKEND) != connection.get_server_pid():
        raise BackupError(
            "the DSN leads to a connection pooler, through which pg_dump must not run; give the DSN of the server "
            "itself, or use --archive, which needs a single transaction"
        )


async def dump(
    program: Program,
    dsn: Dsn,
    snapshot: str,
    tables: list[str],
    file: IO[bytes],
) -> None:
    """Write a dump of an exported snapshot to a file.

    Args:
        program: pg_dump.
        dsn: The database.
        snapshot: The name of the snapshot.
        tables: The tables, quoted, with their schema.
        file: Receives the dump.

    Raises:
        BackupError: pg_dump failed; the message has its reason.
    """

    async def receive(chunk: bytes) -> None:
        file.write(chunk)

    arguments = ["--format=custom", "--no-password", f"--snapshot={snapshot}"]
    arguments += [f"--table={table}" for table in tables]
    code, said = await run_program(program, arguments, libpq_environment(dsn), sink=receive)
    if code != 0:
        raise BackupError(f"{program.path} failed with exit code {code}: {_last(said)}; nothing was written")


async def restore_dump(program: Program, dsn: Dsn, path: Path) -> None:
    """Restore a dump in one transaction, into a database that has none of its tables.

    Args:
        program: pg_restore.
        dsn: The database.
        path: The dump.

    Raises:
        BackupError: pg_restore failed, and nothing was changed; the message has its reason.
    """
    # Connect to PGDATABASE instead of printing a script; a name here could be read as a DSN.
    arguments = [
        "--exit-on-error",
        "--single-transaction",
        "--no-owner",
        "--no-privileges",
        "--no-password",
        "--dbname=",
    ]

    async def feed(pipe: asyncio.StreamWriter) -> None:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                pipe.write(chunk)
                await pipe.drain()

    code, said = await run_program(program, arguments, libpq_environment(dsn), feed=feed)
    if code != 0:
        raise BackupError(f"{program.path} failed with exit code {code}: {_last(said)}; nothing was changed")


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return " ".join(lines[-3:])[:600] or "it gave no reason"
