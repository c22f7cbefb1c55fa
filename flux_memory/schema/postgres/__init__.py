"""Upgrades the schema of a PostgreSQL database, also the original application's, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from flux_memory.errors import SchemaError
from flux_memory.schema import NUMBERED, VERSION_TABLE, SchemaFile, adopted_version, history, missing_steps
from flux_memory.schema.postgres.attachments import (
    SELECT_POLICIES_ON_IDS,
    SELECT_TABLES,
    SELECT_TRIGGERS,
    protecting_new_tables,
    without_triggers,
)
from flux_memory.schema.postgres.clusters import explain_fault, refuse_upgrade
from flux_memory.schema.postgres.faults import SELECT_FAULTS
from flux_memory.schema.postgres.inspection import (
    SELECT_TAKEN_NAMES,
    Fault,
    find_faults,
    refuse_obstacles,
)
from flux_memory.schema.postgres.narrowing import SELECT_NARROWING_FAULTS
from flux_memory.schema.postgres.one_exchange import CatalogueReader, Query
from flux_memory.schema.postgres.single_commands import single_commands
from flux_memory.schema.postgres.tables import (
    CREATES_TEMPORARY_TABLES,
    MEMORY,
    SELECT_RELATIONS,
    find_tables,
    refuse_temporary_schema,
)
from flux_memory.schema.postgres.trust import (
    SELECT_STRANGERS,
    OpenSchema,
    find_open_schemas,
    refuse_strange_operators,
    refuse_strangers,
)

# The hash of a name: other users of advisory locks in the database are unlikely to take the same number.
LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('flux_memory_schema', 0::bigint))"
TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended('flux_memory_schema', 0::bigint))"
# Shared and released at once: clients that wait for an upgrade go on together, not one after the other.
WAIT_FOR_LOCK: Final = "SELECT pg_advisory_xact_lock_shared(hashtextextended('flux_memory_schema', 0::bigint))"
CREATE_VERSION_TABLE: Final = """
CREATE TABLE flux_memory_schema (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    checksum   TEXT NOT NULL,
    applied_at TIMESTAMP NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')
)
"""
SELECT_VERSIONS: Final = "SELECT version, checksum FROM flux_memory_schema"
# In a script, which has no parameters: the values are a number, a name of a file and a checksum of ours.
INSERT_VERSION: Final = "INSERT INTO flux_memory_schema (version, name, checksum) VALUES ({}, '{}', '{}')"
SELECT_COLUMNS: Final = """
SELECT relname::text, attname::text
FROM pg_class
JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0::int2 AND NOT attisdropped
WHERE relname IN ('sessions', 'messages') AND pg_table_is_visible(pg_class.oid)
"""
HAS_CITUS: Final = "SELECT to_regclass('pg_catalog.pg_dist_partition'::text) IS NOT NULL"
_EXPECTED: Final[tuple[Query, ...]] = (
    (SELECT_RELATIONS, MEMORY),
    (SELECT_STRANGERS, MEMORY),
    (SELECT_FAULTS, history("postgres")[-1].version),
)
"""The queries for tables that are up to date."""
_EXPECTED_OF_NONE: Final[tuple[Query, ...]] = (
    (SELECT_RELATIONS, MEMORY),
    (SELECT_COLUMNS, None),
    (CREATES_TEMPORARY_TABLES, None),
    (SELECT_FAULTS, 0),
    (SELECT_NARROWING_FAULTS, 0),
    (SELECT_TAKEN_NAMES, None),
    (SELECT_TRIGGERS, None),
    (SELECT_TABLES, None),
    (SELECT_POLICIES_ON_IDS, None),
    (HAS_CITUS, None),
)
"""The queries for a database without tables."""
LOCK_TABLES: Final = "LOCK TABLE sessions, messages IN ACCESS EXCLUSIVE MODE"


class SchemaState(NamedTuple):
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


async def bring_up_to_date(connection: Any) -> SchemaState:
    """Apply the files that the database lacks, all or none. If it lacks none, no DDL runs and no lock is taken.

    Args:
        connection: An asyncpg connection; within a transaction, the files are applied by its end.

    Returns:
        The state of the database.

    Raises:
        SchemaError: The database is newer than the library, or its tables cannot be used; it is left as it was.
    """
    reader = CatalogueReader(connection)
    # A shared lock would last until the end of the caller's transaction, and two of them would wait for each other.
    waits_in_line = connection.is_in_transaction()
    while True:
        # Not yet the original's tables: another process may upgrade them meanwhile.
        state = await inspect(reader, for_reading=True, expects=_EXPECTED)
        if not missing_steps("postgres", state.applied):
            await _find_faults_now(reader, state)
            return state
        # REPEATABLE READ, if it is the default, would show the state before the lock.
        async with reader.transaction(isolation="read_committed", readonly=False):
            if waits_in_line:
                await reader.execute(LOCK)
            if waits_in_line or await reader.fetchval(TRY_LOCK):
                return await _upgrade(reader, is_new=not state.applied)
        await reader.execute(WAIT_FOR_LOCK)


async def _upgrade(reader: CatalogueReader, *, is_new: bool) -> SchemaState:
    """Apply the missing files within a transaction that has the lock."""
    state = await inspect(reader, expects=_EXPECTED_OF_NONE if is_new else _EXPECTED)
    if not missing_steps("postgres", state.applied):
        return state
    if state.version:
        reader.forget()
        await reader.execute(LOCK_TABLES)
    async with without_triggers(reader), protecting_new_tables(reader):
        for fault in state.repairs:
            await reader.execute(fault.statement)
        await _apply_files(reader, state)
    return await inspect(reader, expects=_EXPECTED)


async def _find_faults_now(reader: CatalogueReader, state: SchemaState) -> None:
    """Refuse faults, unless another client has upgraded the tables since they were read."""
    try:
        await find_faults(reader, state.version)
    except SchemaError:
        reader.forget()
        try:
            await find_faults(reader, state.version)
        except SchemaError as fault:
            raise (await explain_fault(reader, fault) if state.has_citus else fault) from None


async def _apply_files(reader: CatalogueReader, state: SchemaState) -> None:
    """Bring a database up to date: in one exchange, however many files it lacks."""
    statements = _statements(state)
    if not await reader.fetchval(HAS_CITUS):
        await reader.execute(";\n".join(statements))
        return
    await refuse_upgrade(reader, state.version)
    # In a schema that Citus distributes, each command goes to a worker, by itself.
    for statement in statements:
        for command in single_commands(statement):
            await reader.execute(command)


def _statements(state: SchemaState) -> list[str]:
    """Return the texts that bring a database up to date, of one or more statements each."""
    statements = []
    applied = dict(state.applied)
    if not applied:
        statements.append(CREATE_VERSION_TABLE)
        for step in history("postgres")[: state.original]:
            statements.append(record(step))
            applied[step.version] = step.checksum
    for step in missing_steps("postgres", applied):
        statements += [step.sql, record(step)]
    return statements


async def inspect(
    connection: Any, tables: str = MEMORY, *, for_reading: bool = False, expects: Sequence[Query] = ()
) -> SchemaState:
    """Return the state of a database, which is not changed.

    Args:
        connection: An asyncpg connection.
        tables: The tables that the caller uses: `MEMORY` or `WITH_RECORD`.
        for_reading: Whether to accept tables with faults, such as a missing key, or of the original application.
        expects: The queries that a `CatalogueReader` runs in one exchange, as soon as names are known to be safe.

    Raises:
        SchemaError: The database is newer than the library, or its tables cannot be used; the message says what to do.
    """
    open_schemas = await find_open_schemas(connection)
    if expects:
        await connection.read_ahead(*expects)
    found, has_citus = await find_tables(connection, tables)
    if found:
        await refuse_strangers(connection, tables)
    applied = await _applied_versions(connection) if VERSION_TABLE in found else {}
    lacking = missing_steps("postgres", applied)
    state = SchemaState(applied, 0, [], open_schemas, has_citus)
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
    applied = dict(await connection.fetch(SELECT_VERSIONS))
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


def record(step: SchemaFile) -> str:
    """Return the statement that records a file as applied."""
    return INSERT_VERSION.format(step.version, step.name, step.checksum)
