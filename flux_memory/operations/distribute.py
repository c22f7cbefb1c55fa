"""Distributes the tables of a PostgreSQL memory over a Citus cluster, and proves that nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import asyncpg

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.backends.postgres.distributed.finding import find_path
from flux_memory.backends.postgres.distributed.functions import Function, functions
from flux_memory.errors import BackendUnavailableError, MigrationError, SchemaError
from flux_memory.schema import postgres as schema
from flux_memory.transfer.target.server import open_connection, write_transaction

TABLES: Final = ("sessions", "session_details", "messages", "feedback")
"""The tables that are distributed, in an order in which each refers only to those before it."""
VERSION_TABLE: Final = "flux_memory_schema"
"""The table of which every server has a copy."""
MIN_CITUS: Final = (11, 0)

SELECT_SERVER: Final = """
SELECT
    pg_catalog.version(),
    (SELECT extversion FROM pg_extension WHERE extname = 'citus')
"""
LOCK_RUNS: Final = "SELECT pg_advisory_lock(hashtextextended('flux_memory_distribute', 0::bigint))"
SELECT_NODES: Final = """
SELECT
    citus_is_coordinator(),
    (SELECT count(*) FROM pg_dist_node WHERE noderole = 'primary' AND isactive AND shouldhaveshards AND groupid <> 0),
    current_setting('citus.shard_count'::text)::int
"""
SELECT_TABLES: Final = """
SELECT
    relname::text,
    quote_ident(nspname::text),
    pg_catalog.format('%I.%I', nspname, relname),
    quote_ident(pg_get_userbyid(relowner)::text),
    pg_has_role(relowner, 'USAGE'::text),
    pg_total_relation_size(pg_class.oid::regclass),
    EXISTS (SELECT 1 FROM pg_dist_partition WHERE logicalrelid::oid = pg_class.oid),
    (
        SELECT pg_catalog.format('ROW(%s)', string_agg(quote_ident(attname::text), ', ' ORDER BY attname::text))
        FROM pg_attribute
        WHERE attrelid = pg_class.oid AND attnum > 0::int2 AND NOT attisdropped
    )
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relname = ANY ($1::text::name[]) AND pg_table_is_visible(pg_class.oid) AND relkind = 'r'
"""
# What a table will be that the command creates.
SELECT_PLACE: Final = """
SELECT
    quote_ident(current_schema()::text),
    quote_ident(current_user::text),
    coalesce(has_schema_privilege(current_schema()::text, 'CREATE'::text), FALSE)
"""
# A table of a schema that is distributed as a whole has no distribution column.
SELECT_WHOLE_SCHEMA: Final = """
SELECT quote_literal(nspname::text)
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
JOIN pg_dist_partition ON logicalrelid::oid = pg_class.oid
WHERE relname = 'sessions' AND pg_table_is_visible(pg_class.oid) AND partmethod = 'n' AND colocationid > 0
"""
COUNT_ROWS: Final = "SELECT count(*) FROM {table}"
# A sum does not depend on the order, and each server adds up its own rows.
SELECT_DIGEST: Final = """
SELECT count(*), coalesce(sum(hashtextextended({row}::text, 0::bigint)), 0)::text,
    coalesce(sum(hashtextextended({row}::text, 1::bigint)), 0)::text
FROM {table}
"""
# As strong a lock as Citus takes, and in the order in which writers take theirs: a stronger one later would deadlock.
LOCK_TABLES: Final = "LOCK TABLE {tables} IN EXCLUSIVE MODE"
LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '10s'"
DISTRIBUTE: Final = {
    "sessions": "SELECT create_distributed_table('{table}', 'id')",
    "session_details": "SELECT create_distributed_table('{table}', 'session_id', colocate_with => '{sessions}')",
    "messages": "SELECT create_distributed_table('{table}', 'session_id', colocate_with => '{sessions}')",
    "feedback": "SELECT create_distributed_table('{table}', 'id', colocate_with => 'none')",
    "flux_memory_schema": "SELECT create_reference_table('{table}')",
}
UNDO: Final = (
    "SELECT undistribute_table('{sessions}', cascade_via_foreign_keys => true)",
    "SELECT undistribute_table('{feedback}')",
    "SELECT undistribute_table('{flux_memory_schema}')",
)
DISTRIBUTE_FUNCTION: Final = """
SELECT create_distributed_function($1::text::regprocedure, 'p_session', colocate_with := $2)
"""
SELECT_WRITERS: Final = """
SELECT DISTINCT CASE WHEN grantee = 0::oid THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)::text) END
FROM pg_class
CROSS JOIN LATERAL aclexplode(relacl)
WHERE pg_class.oid = $1::text::regclass::oid AND privilege_type = 'INSERT' AND grantee <> relowner
"""
REMOVE_LOCAL_ROWS: Final = "SELECT truncate_local_data_after_distributing_table($1::text::regclass)"


class DistributedTable(NamedTuple):
    """A table of the memory, as the command found it."""

    name: str
    schema: str
    """Its schema as SQL."""
    shown: str
    """Its schema and its name as SQL."""
    owner: str
    is_owned: bool
    """Whether the role may act as its owner."""
    size_bytes: int
    """Bytes on the coordinator, with indexes."""
    is_distributed: bool
    row: str
    """An expression that is a whole row."""
    exists: bool = True
    """Whether the table exists; otherwise the command creates it."""


@dataclass
class Distribution:
    """What the command did, or would do."""

    server: str
    citus: str
    workers: int
    shards: int
    """The number of parts into which each table is divided."""
    tables: list[DistributedTable]
    rows: dict[str, int]
    """The number of rows by table."""
    statements: list[str] = field(default_factory=list)
    """The statements that distribute the tables; none if they are distributed."""
    undo: list[str] = field(default_factory=list)
    """The statements that bring the tables back to one server."""
    functions: int = 0
    """The number of functions that write to a session on its server."""
    is_done: bool = False


async def distribute(dsn: str, *, dry_run: bool = False, notify: Callable[[str], object] = str) -> Distribution:
    """Distribute the tables of a memory by session; run again, it completes what an earlier run began.

    Writers wait while the rows are copied, readers do not. The digests of all rows are compared before the commit.

    Args:
        dsn: The coordinator's database, as the owner of the tables.
        dry_run: Whether to change nothing, and only say what would be done.
        notify: Called with the name of each step as it begins.

    Raises:
        SchemaError: The database is not a cluster's, or the role lacks rights; the message says what to do.
        BackendUnavailableError: Another transaction holds the tables.
        MigrationError: A digest differs; nothing is changed.
    """
    async with open_connection(dsn) as connection:
        await _refuse_without_cluster(connection)
        if not dry_run:
            await schema.bring_up_to_date(connection)
            # Held until the connection ends: another run waits, and then finds the tables distributed.
            await connection.fetch(LOCK_RUNS)
        plan = await _plan(connection)
        if dry_run:
            return plan
        tables = {table.name: table for table in plan.tables}
        notify("creating functions")
        async with write_transaction(connection):
            await _create_functions(connection, tables["sessions"])
        if plan.statements:
            notify("copying rows to the workers")
            await _distribute_tables(connection, plan)
        notify("distributing functions")
        for function in functions().values():
            signature = function.signature(tables["sessions"].schema)
            await connection.fetch(DISTRIBUTE_FUNCTION, signature, tables["sessions"].shown)
        notify("removing the coordinator's old rows")
        for name in (*reversed(TABLES), VERSION_TABLE):
            await connection.fetch(REMOVE_LOCAL_ROWS, tables[name].shown)
        await find_path(connection)
        plan.functions = len(functions())
        plan.is_done = True
        return plan


async def _refuse_without_cluster(connection: Any) -> None:
    """Raise `SchemaError` unless a coordinator with workers may distribute the tables by session."""
    _, citus = await connection.fetchrow(SELECT_SERVER)
    if citus is None:
        raise SchemaError(
            "the database does not have the extension citus; as a superuser, run CREATE EXTENSION citus in it on each "
            "server, and on the coordinator SELECT citus_add_node('worker', 5432) for each worker; then retry"
        )
    if tuple(int(part) for part in citus.replace("-", ".").split(".")[:2]) < MIN_CITUS:
        raise SchemaError(
            f"the database has Citus {citus}, whose workers cannot call functions of one another's sessions; upgrade "
            "Citus to version 11 or later"
        )
    is_coordinator, workers, _ = await connection.fetchrow(SELECT_NODES)
    if not is_coordinator:
        raise SchemaError("this server is a worker; connect to the coordinator")
    if not workers:
        raise SchemaError("the cluster has no worker; run SELECT citus_add_node('worker', 5432), then retry")
    if (name := await connection.fetchval(SELECT_WHOLE_SCHEMA)) is not None:
        raise SchemaError(
            f"the schema {name} is distributed as a whole, so its sessions are together on one worker; to distribute "
            f"them by session instead, run SELECT citus_schema_undistribute({name}), then retry"
        )


async def _plan(connection: Any) -> Distribution:
    """Look at the tables and return what is to be done."""
    wanted = [*TABLES, VERSION_TABLE]
    found = {row[0]: DistributedTable(*row) for row in await connection.fetch(SELECT_TABLES, write_texts(wanted))}
    if missing := [name for name in wanted if name not in found]:
        place, role, may_create = await connection.fetchrow(SELECT_PLACE)
        if not may_create:
            raise SchemaError(
                f"the role {role} may not create {', '.join(missing)} in "
                f"{'the schema ' + place if place else 'any schema of search_path'}; GRANT it CREATE there"
            )
        found |= {
            name: DistributedTable(name, place, f"{place}.{name}", role, True, 0, False, "", exists=False)
            for name in missing
        }
    tables = [found[name] for name in wanted]
    for table in tables:
        if not table.is_owned:
            raise SchemaError(
                f"{table.shown} belongs to the role {table.owner}, and only its owner may distribute it; connect as "
                "that role"
            )
    server, citus = await connection.fetchrow(SELECT_SERVER)
    _, workers, shards = await connection.fetchrow(SELECT_NODES)
    shown = {table.name: table.shown for table in tables}
    return Distribution(
        server=" ".join(server.split()[:2]),
        citus=citus,
        workers=workers,
        shards=shards,
        tables=tables,
        rows={
            table.name: await connection.fetchval(COUNT_ROWS.format(table=table.shown))
            for table in tables[: len(TABLES)]
            if table.exists
        },
        statements=[
            DISTRIBUTE[table.name].format(table=table.shown, **shown) for table in tables if not table.is_distributed
        ],
        undo=[statement.format(**shown) for statement in UNDO],
    )


async def _distribute_tables(connection: Any, plan: Distribution) -> None:
    """Distribute the tables in one transaction, which ends only if their digests are as before."""
    changed = [table for table in plan.tables if not table.is_distributed]
    try:
        async with write_transaction(connection):
            await connection.execute(LOCK_TIMEOUT)
            await connection.execute(LOCK_TABLES.format(tables=", ".join(table.shown for table in changed)))
            before = {table.name: await _digest(connection, table) for table in changed}
            for statement in plan.statements:
                await connection.fetch(statement)
            after = {table.name: await _digest(connection, table) for table in changed}
            if wrong := [name for name, digest in before.items() if after[name] != digest]:
                raise MigrationError(
                    f"the rows of {', '.join(wrong)} are not the same on the workers as before; nothing is changed. "
                    "Check the servers' logs, then retry"
                )
    except asyncpg.LockNotAvailableError as error:
        raise BackendUnavailableError(
            "another transaction has used the tables for 10 s; nothing is changed. Look for it in pg_stat_activity, "
            "and retry"
        ) from error
    except (asyncpg.FeatureNotSupportedError, asyncpg.ObjectNotInPrerequisiteStateError) as error:
        raise SchemaError(f"Citus does not distribute the tables: {error}; nothing is changed") from error
    plan.rows.update({name: digest[0] for name, digest in after.items() if name in plan.rows})


async def _digest(connection: Any, table: DistributedTable) -> tuple[Any, ...]:
    return tuple(await connection.fetchrow(SELECT_DIGEST.format(table=table.shown, row=table.row)))


async def _create_functions(connection: Any, sessions: DistributedTable) -> None:
    """Create the functions as the owner of the tables, for the roles that may write to them."""
    place = sessions.schema
    writers = [role for (role,) in await connection.fetch(SELECT_WRITERS, sessions.shown)]
    for function in functions().values():
        for statement in _function_statements(function, place, sessions.owner, writers):
            await connection.execute(statement)


def _function_statements(function: Function, place: str, owner: str, writers: list[str]) -> list[str]:
    signature = function.signature(place)
    return [
        function.create(place),
        f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC",
        *(f"GRANT EXECUTE ON FUNCTION {signature} TO {role}" for role in writers),
        f"ALTER FUNCTION {signature} OWNER TO {owner}",
    ]
