"""Upgrades the schema of a PostgreSQL database, also the original application's, in one transaction."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from flux_memory.errors import SchemaError
from flux_memory.schema import VERSION_TABLE, SchemaFile, adopted_version, history, missing_steps
from flux_memory.schema.postgres.attachments import protecting_new_tables, without_triggers
from flux_memory.schema.postgres.inspection import (
    NUMBERED,
    Fault,
    find_faults,
    refuse_obstacles,
)
from flux_memory.schema.postgres.single_commands import single_commands
from flux_memory.schema.postgres.tables import MEMORY, find_tables, refuse_temporary_schema
from flux_memory.schema.postgres.trust import (
    OpenSchema,
    find_open_schemas,
    refuse_strange_operators,
    refuse_strangers,
)

# The hash of a name: other users of advisory locks in the database are unlikely to take the same number.
LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('flux_memory_schema', 0::bigint))"
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
SELECT relname::text, attname::text
FROM pg_class
JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0::int2 AND NOT attisdropped
WHERE relname IN ('sessions', 'messages') AND pg_table_is_visible(pg_class.oid)
"""
HAS_CITUS: Final = "SELECT to_regclass('pg_catalog.pg_dist_partition'::text) IS NOT NULL"
LOCK_TABLES: Final = "LOCK TABLE sessions, messages IN ACCESS EXCLUSIVE MODE"


class State(NamedTuple):
    """The schema of a database."""

    applied: dict[int, str]
    """The checksums of the applied files by version."""
    original: int
    """The version of the original application's tables; 0 if there are none."""
    repairs: list[Fault]
    """What an upgrade repairs in them."""
    open_schemas: list[OpenSchema]
    """The schemas of search_path in which other roles may create objects."""
    has_citus: bool
    """Whether the database has the extension that may distribute its tables; `False` if there are none."""

    @property
    def version(self) -> int:
        """The version of the tables; 0 if there are none."""
        return max(self.applied, default=self.original)


async def bring_up_to_date(connection: Any) -> State:
    """Apply the files that the database lacks, all or none. If it lacks none, no DDL runs and no lock is taken.

    Args:
        connection: An asyncpg connection outside a transaction.

    Returns:
        The state of the database.

    Raises:
        SchemaError: The database is newer than the library, or its tables cannot be used; it is left as it was.
    """
    # Not yet the original's tables: another process may upgrade them meanwhile.
    state = await inspect(connection, for_reading=True)
    if not missing_steps("postgres", state.applied):
        await find_faults(connection, state.version)
        return state
    # REPEATABLE READ, if it is the default, would show the state before the wait for the lock.
    async with connection.transaction(isolation="read_committed", readonly=False):
        await connection.execute(LOCK)
        state = await inspect(connection)
        if not missing_steps("postgres", state.applied):
            return state
        if state.version:
            await connection.execute(LOCK_TABLES)
        async with without_triggers(connection), protecting_new_tables(connection):
            for fault in state.repairs:
                await connection.execute(fault.statement)
            await _apply_files(connection, state)
        return await inspect(connection)


async def _apply_files(connection: Any, state: State) -> None:
    applied = dict(state.applied)
    if not applied:
        await connection.execute(CREATE_VERSION_TABLE)
        for step in history("postgres")[: state.original]:
            applied[step.version] = await _record(connection, step)
    # In a schema that Citus distributes, each command goes to a worker, by itself.
    divide = single_commands if await connection.fetchval(HAS_CITUS) else _whole
    for step in missing_steps("postgres", applied):
        for commands in divide(step.sql):
            await connection.execute(commands)
        await _record(connection, step)


async def inspect(connection: Any, tables: str = MEMORY, *, for_reading: bool = False) -> State:
    """Return the state of a database, which is not changed.

    Args:
        connection: An asyncpg connection.
        tables: The tables that the caller uses: `MEMORY` or `WITH_RECORD`.
        for_reading: Whether to accept tables with faults, such as a missing key, or of the original application.

    Raises:
        SchemaError: The database is newer than the library, or its tables cannot be used; the message says what to do.
    """
    open_schemas = await find_open_schemas(connection)
    found, has_citus = await find_tables(connection, tables)
    if found:
        await refuse_strangers(connection, tables)
    applied = await _applied_versions(connection) if VERSION_TABLE in found else {}
    lacking = missing_steps("postgres", applied)
    state = State(applied, 0, [], open_schemas, has_citus)
    if for_reading:
        return state
    if not applied:
        state = state._replace(original=await _original_version(connection))
    if lacking:
        await refuse_temporary_schema(connection)
    if lacking and state.version:
        await refuse_obstacles(connection)
    if 0 < state.version < NUMBERED:
        await refuse_strange_operators(connection)
    try:
        return state._replace(repairs=await find_faults(connection, state.version))
    except SchemaError:
        # Another client may have created or upgraded the tables since they were looked up.
        now, _ = await find_tables(connection, tables)
        if now == found and (VERSION_TABLE not in now or await _applied_versions(connection) == applied):
            raise
    return await inspect(connection, tables)


async def _applied_versions(connection: Any) -> dict[int, str]:
    applied = {row["version"]: row["checksum"] for row in await connection.fetch(SELECT_VERSIONS)}
    if not applied:
        # The table and its first rows are committed together.
        raise SchemaError(
            f"the table {VERSION_TABLE} shows the role no row; if row-level security hides them, create a policy that "
            "lets every role read them; if the table was emptied, restore it from a backup"
        )
    return applied


async def _original_version(connection: Any) -> int:
    columns: dict[str, set[str]] = {"sessions": set(), "messages": set()}
    for table, column in await connection.fetch(SELECT_COLUMNS):
        columns[table].add(column)
    if "message_count" in columns["sessions"] and "seq" in columns["messages"]:
        # Not the original's: flux-memory made or upgraded them.
        raise SchemaError(
            f"the tables 'sessions' and 'messages' are flux-memory's, and the table {VERSION_TABLE}, which has their "
            "version, is missing or not visible; name its schema in search_path, or restore it from a backup"
        )
    return adopted_version(columns)


def _whole(sql: str) -> list[str]:
    return [sql]


async def _record(connection: Any, step: SchemaFile) -> str:
    await connection.execute(INSERT_VERSION, step.version, step.name, step.checksum)
    return step.checksum
