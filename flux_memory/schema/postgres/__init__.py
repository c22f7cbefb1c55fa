"""Upgrades the schema of a PostgreSQL database, also the original application's, in one transaction."""

from __future__ import annotations

from typing import Any, Final

from flux_memory.errors import SchemaError
from flux_memory.schema import VERSION_TABLE, SchemaFile, adopted_version, history, missing
from flux_memory.schema.postgres.tables import find_tables, refuse_temporary_schema

# The hash of a name: other users of advisory locks in the database are unlikely to take the same number.
LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('flux_memory_schema', 0))"
CREATE_VERSION_TABLE: Final = """
CREATE TABLE flux_memory_schema (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    checksum   TEXT NOT NULL,
    applied_at TIMESTAMP NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')
)
"""
SELECT_VERSIONS: Final = "SELECT version, checksum FROM flux_memory_schema"
INSERT_VERSION: Final = "INSERT INTO flux_memory_schema (version, name, checksum) VALUES ($1, $2, $3)"
SELECT_COLUMNS: Final = """
SELECT attname::text, format_type(atttypid, atttypmod)
FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
"""

_EXPECTED_TYPES: Final = {
    "created_at": "timestamp without time zone",
    "updated_at": "timestamp without time zone",
    "metadata": "jsonb",
}


async def bring_up_to_date(connection: Any) -> None:
    """Apply the files that the database lacks, all or none. If it lacks none, no DDL runs and no lock is taken.

    Args:
        connection: An asyncpg connection outside a transaction.

    Raises:
        SchemaError: The database is newer than the library, or has relations that are not its tables; it is left as it
            was.
    """
    if not missing("postgres", await applied_versions(connection)):
        return
    # REPEATABLE READ, if it is the default, would show the state before the wait for the lock.
    async with connection.transaction(isolation="read_committed", readonly=False):
        await connection.execute(LOCK)
        applied = await applied_versions(connection)
        await refuse_temporary_schema(connection)
        if not applied:
            await connection.execute(CREATE_VERSION_TABLE)
            for step in history("postgres")[: await original_version(connection)]:
                applied[step.version] = await _record(connection, step)
        for step in missing("postgres", applied):
            await connection.execute(step.sql)
            await _record(connection, step)


async def applied_versions(connection: Any) -> dict[int, str]:
    """Return the checksums of the applied files by version; none for a database without a version table.

    Raises:
        SchemaError: The memory's names refer to other relations than its tables, or the versions are hidden.
    """
    if VERSION_TABLE not in await find_tables(connection):
        return {}
    applied = {row["version"]: row["checksum"] for row in await connection.fetch(SELECT_VERSIONS)}
    if not applied:
        # The table and its first rows are committed together.
        raise SchemaError(
            f"the table {VERSION_TABLE} shows the role no row; if row-level security hides them, create a policy that "
            "lets every role read them; if the table was emptied, restore it from a backup"
        )
    return applied


async def original_version(connection: Any) -> int:
    """Return the version of the original application's tables; 0 if there are none.

    Raises:
        SchemaError: Another program made the tables.
    """
    types = {
        table: {name: kind for name, kind in await connection.fetch(SELECT_COLUMNS, table)}  # noqa: C416 - Records
        for table in ("sessions", "messages")
    }
    version = adopted_version({table: set(columns) for table, columns in types.items()})
    for table, columns in types.items():
        for column, expected in _EXPECTED_TYPES.items():
            if (found := columns.get(column, expected)) != expected:
                raise SchemaError(
                    f"the original database has {table}.{column} as {found}, not {expected}; convert it with "
                    f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {expected} USING ..., then retry"
                )
    return version


async def _record(connection: Any, step: SchemaFile) -> str:
    await connection.execute(INSERT_VERSION, step.version, step.name, step.checksum)
    return step.checksum
