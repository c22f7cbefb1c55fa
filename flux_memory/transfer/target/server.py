"""Connects to the PostgreSQL side, inspects it, prepares its schema, and begins transactions without time limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from flux_memory.backends.postgres.connecting import DRIVER_ERRORS, connect
from flux_memory.backends.postgres.distributed.finding import find_distribution
from flux_memory.backends.postgres.errors import not_connected, translate_errors
from flux_memory.backends.postgres.preparing import check_encoding
from flux_memory.dsn import SecretText, parse_dsn
from flux_memory.errors import MigrationError, SchemaError
from flux_memory.schema import missing_steps
from flux_memory.schema import postgres as schema
from flux_memory.schema.postgres.tables import WITH_RECORD, find_tables
from flux_memory.transfer.target.rights import refuse_without_reading, refuse_without_record, refuse_without_rights
from flux_memory.transfer.target.watchdog import guard

# The connection is idle while the source is read. It runs before pg_catalog is known to be searched first, so each name
# is qualified.
STAY_CONNECTED: Final = """
SELECT pg_catalog.set_config('idle_session_timeout', '0', FALSE)
WHERE pg_catalog.current_setting('idle_session_timeout') OPERATOR(pg_catalog.<>) '0'
"""
SELECT_VERSION: Final = "SELECT current_setting('server_version')"
# Also the tables of a schema that is distributed as a whole, which are on one worker.
IS_DISTRIBUTED: Final = """
SELECT EXISTS (
    SELECT 1
    FROM pg_class
    JOIN pg_dist_partition ON logicalrelid::oid = pg_class.oid
    WHERE relname = 'sessions' AND pg_table_is_visible(pg_class.oid) AND colocationid > 0
)
"""
IS_COORDINATOR: Final = "SELECT citus_is_coordinator()"
SELECT_TABLE: Final = "SELECT to_regclass($1) IS NOT NULL"
SELECT_RIGHTS: Final = """
SELECT
    has_schema_privilege(current_schema()::text, 'CREATE'),
    pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean,
    quote_ident(current_schema()::text)
"""
# The catalogue, not to_regclass(), for the reason given in `flux_memory.schema.postgres`.
HAS_RECORD: Final = """
SELECT count(*) = 2
FROM pg_class
WHERE relname IN ('flux_memory_moves', 'flux_memory_moved_sessions') AND pg_table_is_visible(oid)
"""
MAY_READ_RECORD: Final = """
SELECT has_table_privilege('flux_memory_moves', 'SELECT')
    AND has_table_privilege('flux_memory_moved_sessions', 'SELECT')
"""
DROP_RECORD: Final = "DROP TABLE IF EXISTS flux_memory_moved_feedback, flux_memory_moved_sessions, flux_memory_moves"
# Times in the text form of the records.
SELECT_SESSIONS: Final = """
SELECT
    sessions.id,
    sessions.user_id,
    coalesce(session_details.title, ''::text),
    coalesce(session_details.metadata, '{}'::jsonb)::text,
    to_char(sessions.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
    to_char(sessions.updated_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
FROM sessions
LEFT JOIN session_details ON session_details.session_id::text = sessions.id::text
WHERE sessions.id::text = ANY($1::text::text[])
"""
ANALYZE: Final = "ANALYZE sessions, session_details, messages, feedback"
# A commit waits for the disk and a synchronous standby only if its transaction wrote to the log; then it waits for
# everything before it, too. A server in recovery shows only durable rows and accepts no writes.
WRITE_TO_LOG: Final = """
SET LOCAL synchronous_commit = on;
SET LOCAL client_min_messages = warning;
SELECT pg_logical_emit_message(TRUE, 'flux_memory', ''::text) WHERE NOT pg_is_in_recovery()
"""
# Timeouts of the database must not stop a long transaction; that of transactions is new in PostgreSQL 17. With
# row_security off, the server raises instead of hiding rows behind a policy. Keepalives keep a connection open during a
# long statement, and show the server soon that a client is gone.
TRANSACTION_SETTINGS: Final = """
SET LOCAL statement_timeout = 0;
SET LOCAL row_security = off;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL tcp_keepalives_idle = 10;
SET LOCAL tcp_keepalives_interval = 10;
SET LOCAL tcp_keepalives_count = 3;
SELECT set_config('transaction_timeout'::text, '0'::text, TRUE)
WHERE current_setting('transaction_timeout'::text, TRUE) IS NOT NULL
"""
# Detects a lost client while an answer is in flight. Only for transactions with locks and short answers: a client that
# reads a long answer slowly would count as lost.
WRITING: Final = f"{TRANSACTION_SETTINGS}; SET LOCAL tcp_user_timeout = '40s'"

CONNECT_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Target:
    """A target before any change."""

    server_version: str
    original: bool
    """Whether the tables are those of the original application."""
    sessions: int
    messages: int
    has_tables: bool
    is_distributed: bool = False
    """Whether Citus distributes the tables."""


@asynccontextmanager
async def open_connection(dsn: str) -> AsyncIterator[Any]:
    """Connect, and translate the driver's errors until the block ends.

    Raises:
        FluxMemoryError: The server cannot be reached, or the connection was lost; the message says what to do.
    """
    dsn = SecretText(dsn)
    target = parse_dsn(dsn)
    with translate_errors(target.shown, CONNECT_SECONDS):

        async def probe(seconds: float) -> Any:
            nonlocal target
            # The next attempt begins with another host: this one may be gone.
            target = target.rotated()
            return await connect(target, timeout=seconds)

        try:
            connection = await connect(target, timeout=target.arguments.get("timeout", CONNECT_SECONDS))
        except DRIVER_ERRORS as error:
            raise not_connected(target.shown, error) from error
        try:
            async with guard(connection, probe):
                await connection.execute(STAY_CONNECTED)
                yield connection
        except asyncpg.DiskFullError as error:
            raise MigrationError(
                f"PostgreSQL at {target.shown}: the server's disk is full; nothing is half done. Make room there, "
                "and run the same command again"
            ) from error
        finally:
            # close() would wait for a server that may be gone.
            connection.terminate()


async def inspect_target(connection: Any, *, for_reading: bool = False, replaces: bool = False) -> Target:
    """Return the state of a PostgreSQL memory; refuse one that cannot be read or, unless `for_reading`, written.

    Args:
        connection: Connected to it.
        for_reading: Whether it is only read.
        replaces: Whether its rows are replaced, for which no rows are staged in temporary tables.

    Raises:
        SchemaError: The schema is newer than the library or of another application, or the role lacks rights.
        MigrationError: The database is read-only.
    """
    # Counting rows may exceed the database's time limits, too.
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(TRANSACTION_SETTINGS)
        return await _inspect(connection, for_reading=for_reading, replaces=replaces)


async def _inspect(connection: Any, *, for_reading: bool, replaces: bool) -> Target:
    # First: until then, pg_catalog may not be the first schema that is searched.
    state = await schema.inspect(connection, WITH_RECORD, for_reading=for_reading)
    is_distributed = state.has_citus and await _find_cluster(connection)
    await check_encoding(connection)
    version = await connection.fetchval(SELECT_VERSION)
    can_create, read_only, schema_name = await connection.fetchrow(SELECT_RIGHTS)
    if read_only and not for_reading:
        raise MigrationError("the target is read-only, perhaps a replica; connect to the primary")
    lacking = missing_steps("postgres", state.applied)
    has_tables = [bool(await connection.fetchval(SELECT_TABLE, table)) for table in ("sessions", "messages")]
    if for_reading and lacking:
        raise SchemaError(
            "the database has no conversation memory of this version; open it once with the library, or run: "
            "flux-memory check --full"
        )
    if lacking and schema_name is None:
        raise SchemaError(
            "the role may use no schema that its search_path names; create one, or GRANT USAGE, CREATE ON SCHEMA "
            "public, or on the intended schema, to the role, or let the schema's owner run the migration"
        )
    if lacking and not can_create:
        raise SchemaError(
            f"the role may not create tables in the target's schema {schema_name}; GRANT CREATE ON SCHEMA "
            f"{schema_name} to it, or let its owner run the migration"
        )
    sessions = messages = 0
    if all(has_tables):
        await refuse_without_reading(connection)
        if not for_reading:
            await refuse_without_rights(connection, replaces=replaces)
        sessions = await connection.fetchval("SELECT count(*) FROM sessions")
        messages = await connection.fetchval("SELECT count(*) FROM messages")
        if not for_reading:
            await refuse_without_record(connection)
    return Target(version, state.original > 0, sessions, messages, all(has_tables), is_distributed)


def refuse_distributed(target: Target) -> None:
    """Refuse a store on a cluster, for commands that read and write tables of one server.

    Raises:
        SchemaError: The tables are distributed.
    """
    if target.is_distributed:
        raise SchemaError(
            "the tables are distributed over a Citus cluster, and this command reads and writes tables of one server; "
            "flux-memory migrate moves a cluster's rows to a file and back, or undistribute the tables with the "
            "statements that flux-memory distribute prints"
        )


async def _find_cluster(connection: Any) -> bool:
    """Return whether the tables are distributed; refuse a connection to a worker, which has no record of moves."""
    if not await connection.fetchval(IS_DISTRIBUTED):
        return False
    await find_distribution(connection)
    if not await connection.fetchval(IS_COORDINATOR):
        raise SchemaError(
            "this server is a worker of a Citus cluster, and a migration reads and writes through the coordinator; "
            "give the coordinator's DSN"
        )
    return True


async def prepare_schema(connection: Any) -> None:
    """Create the tables, or adopt those of the original application."""
    async with write_transaction(connection):
        if new := not await connection.fetchval(SELECT_TABLE, "sessions"):
            # Another migration may create the tables, and the record of itself, just now.
            await connection.execute(schema.LOCK)
            new = "sessions" not in (await find_tables(connection)).names
        await schema.bring_up_to_date(connection)
        if new:
            # It describes tables that were dropped.
            await connection.execute(DROP_RECORD)


async def analyze(connection: Any) -> None:
    """Give the server statistics of the filled tables."""
    async with write_transaction(connection):
        await connection.execute(ANALYZE)


async def make_durable(connection: Any) -> None:
    """Wait until everything committed so far is on the server's disk, and on that of a synchronous standby.

    Batches, and transactions of applications, may have been committed without waiting for the disk.

    Raises:
        MigrationError: An administrator cancelled the wait for the standby.
    """
    warnings: list[str] = []

    def warn(_: object, message: Any) -> None:
        warnings.append(message.message)

    connection.add_log_listener(warn)
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(f"{TRANSACTION_SETTINGS}; {WRITE_TO_LOG}")
    # The driver calls the listener in the next turn of the event loop.
    await asyncio.sleep(0)
    connection.remove_log_listener(warn)
    if warnings:
        raise MigrationError(
            f"the server does not confirm that the rows are on all disks that must hold them: {warnings[0]}; "
            "check the standby, and run again"
        )


@asynccontextmanager
async def read_transaction(connection: Any) -> AsyncIterator[None]:
    """Run a transaction that reads one snapshot, without the database's time limits.

    After an error there is no ROLLBACK: if a COPY's receiver was stopped, the driver may wait for an end of the COPY
    that it has already seen. `open_connection` terminates the connection, and the transaction with it.
    """
    transaction = connection.transaction(isolation="repeatable_read", readonly=True)
    await transaction.start()
    await connection.execute(TRANSACTION_SETTINGS)
    yield
    await transaction.commit()


@asynccontextmanager
async def rehearsal(connection: Any) -> AsyncIterator[None]:
    """Run a transaction that writes, meet what would refuse its commit, and roll it back.

    After an error there is no ROLLBACK, as in `read_transaction`.
    """
    transaction = connection.transaction(isolation="read_committed", readonly=False)
    await transaction.start()
    await connection.execute(TRANSACTION_SETTINGS)
    yield
    await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    await transaction.rollback()


@asynccontextmanager
async def write_transaction(connection: Any) -> AsyncIterator[None]:
    """Run a transaction that writes, without the database's time limits."""
    async with connection.transaction(isolation="read_committed", readonly=False):
        await connection.execute(WRITING)
        yield
