"""Reads the activity of a PostgreSQL database from its statistics; no statement reads a whole table."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Final

import asyncpg
import orjson

from flux_memory.errors import SchemaError
from flux_memory.operations.server_connection import ServerConnection, connect_to_server
from flux_memory.operations.top.cluster_tables import HAS_CITUS, IS_DISTRIBUTED, SELECT_TABLES_OF_SERVERS
from flux_memory.operations.top.readings import (
    NEWEST_SESSIONS,
    ActiveSession,
    Application,
    LockWait,
    Reading,
    ReplicaLag,
    TableSize,
)
from flux_memory.schema import postgres as schema
from flux_memory.schema.postgres.tables import IS_MEMORY

NAME_CONNECTION: Final = "SET application_name = 'flux-memory top'"
SET_LIMITS: Final = "SET LOCAL lock_timeout = '500ms'; SET LOCAL statement_timeout = '2s'"
SELECT_SERVER: Final = """
SELECT
    clock_timestamp(),
    current_setting('server_version'),
    pg_is_in_recovery(),
    current_setting('max_connections')::int,
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
    pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint
"""
SELECT_TABLES: Final = f"""
SELECT
    relname::text,
    pg_total_relation_size(oid),
    coalesce(nullif(pg_stat_get_live_tuples(oid), 0), greatest(reltuples, 0)::bigint),
    pg_stat_get_dead_tuples(oid),
    pg_stat_get_tuples_inserted(oid)
FROM pg_class
WHERE {IS_MEMORY} AND relkind = 'r'
ORDER BY 2 DESC
"""  # noqa: S608 - constants of ours
SELECT_NEWEST: Final = """
SELECT id, user_id, message_count, extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - updated_at)::float8
FROM sessions
ORDER BY updated_at DESC, id COLLATE "C" DESC
LIMIT $1::int
"""
# Without the right to see others' statistics, their state and backend_type are NULL.
SELECT_APPLICATIONS: Final = """
SELECT
    coalesce(application_name, ''),
    coalesce(usename::text, ''),
    count(*),
    count(*) FILTER (WHERE state = 'active'),
    count(*) FILTER (WHERE state LIKE 'idle in transaction%'),
    count(*) FILTER (WHERE state IS NULL),
    max(extract(epoch FROM clock_timestamp() - xact_start))::float8
FROM pg_stat_activity
WHERE datname = current_database() AND coalesce(backend_type, 'client backend') = 'client backend'
    AND pid <> pg_backend_pid()
GROUP BY 1, 2
ORDER BY 3 DESC, 1, 2
"""
# For an array the driver asks for its type, which takes seconds where an extension has added many types.
SELECT_WAITS: Final = """
SELECT
    pid,
    array_to_json(pg_blocking_pids(pid))::text,
    coalesce(extract(epoch FROM clock_timestamp() - waitstart), 0)::float8,
    coalesce(relation::regclass::text, locktype),
    coalesce(application_name, ''),
    count(*) OVER ()
FROM pg_locks
JOIN pg_stat_activity USING (pid)
WHERE NOT granted AND datname = current_database()
ORDER BY waitstart
LIMIT 5
"""
SELECT_REPLICAS: Final = """
SELECT
    coalesce(application_name, ''),
    state,
    pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, replay_lsn
    )::bigint,
    extract(epoch FROM replay_lag)::float8
FROM pg_stat_replication
ORDER BY 1
LIMIT 20
"""

_REFUSALS: Final = (
    (asyncpg.InsufficientPrivilegeError, "the role lacks SELECT on the table"),
    (asyncpg.UndefinedColumnError, "the tables are of an earlier version; flux-memory check describes them"),
    (asyncpg.UndefinedTableError, "the role sees no table of a memory there; check the DSN and search_path"),
    (asyncpg.LockNotAvailableError, "another session locks the table"),
    (asyncpg.QueryCanceledError, "the server took more than 2 s"),
)
_NEEDS_STATISTICS: Final = "needs the role pg_read_all_stats; run GRANT pg_read_all_stats TO the role of this DSN"


class ServerActivity:
    """The activity of one database, read on one connection that stays open.

    Args:
        dsn: A DSN as for `PostgresConversationMemory`.
        timeout: Seconds within which it connects, and within which each part is read.
    """

    def __init__(self, dsn: str, timeout: float) -> None:
        self._dsn = dsn
        self._timeout = timeout
        self._server: ServerConnection | None = None
        self._refusal = ""
        self._stack = AsyncExitStack()

    async def read(self) -> Reading:
        """Read the activity; connect first if the connection is not open.

        Raises:
            FluxMemoryError: The server cannot be reached, or does not answer.
        """
        try:
            if self._server is None:
                self._server = await self._stack.enter_async_context(connect_to_server(self._dsn, self._timeout))
                await self._server.run(lambda connection: connection.execute(NAME_CONNECTION))
                self._refusal = await self._server.run(_find_refusal)
            return await _Parts(self._server, self._refusal).read()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection; the next reading opens another."""
        self._server = None
        await self._stack.aclose()


class _Parts:
    """One reading, whose parts may be missing."""

    def __init__(self, server: ServerConnection, refusal: str) -> None:
        self._server = server
        self._refusal = refusal
        self._missing: list[str] = [f"the newest sessions: {refusal}"] if refusal else []

    async def read(self) -> Reading:
        ((at, version, in_recovery, most, sees_all, behind),) = await self._server.run(
            lambda connection: _fetch(connection, SELECT_SERVER)
        )
        found = await self._tables()
        tables = [TableSize(*row[:4]) for row in found]
        inserted = {name: count for name, *_, count in found}
        if not found and not self._refusal:
            self._missing.append("the tables: the role sees no table of a memory there; check the DSN and search_path")
        newest = (
            await self._part("the newest sessions", SELECT_NEWEST, NEWEST_SESSIONS) if self._may_select(found) else []
        )
        rows = await self._part("the connections", SELECT_APPLICATIONS)
        waits = await self._part("the locks", SELECT_WAITS)
        replicas = [ReplicaLag(name, state or "", *lag) for name, state, *lag in await self._replicas(sees_all)]
        if any(unseen for *_, unseen, _ in rows):
            self._missing.append(f"the state of other roles' connections: {_NEEDS_STATISTICS}")
        about = {table.name: table.rows for table in tables}
        return Reading(
            at=at,
            backend="postgres",
            target=self._server.shown,
            server=f"PostgreSQL {version}",
            role="standby" if in_recovery else "primary",
            sessions=about.get("sessions"),
            messages=about.get("messages"),
            inserted=inserted.get("messages"),
            size_bytes=sum(table.size_bytes for table in tables) if tables else None,
            connections=sum(count for _, _, count, *_ in rows),
            max_connections=most,
            oldest_transaction_seconds=max((age for *_, age in rows if age is not None), default=None),
            waiting=waits[0][5] if waits else 0,
            newest=[ActiveSession(*row) for row in newest],
            applications=[
                Application(name, role, count, None if unseen else active, None if unseen else idle)
                for name, role, count, active, idle, unseen, _ in rows
            ],
            waits=[LockWait(pid, orjson.loads(blockers), *rest[:3]) for pid, blockers, *rest in waits],
            tables=tables,
            replicas=replicas,
            behind_bytes=behind if in_recovery else None,
            missing=self._missing,
        )

    async def _tables(self) -> list[tuple[Any, ...]]:
        """Return the name, the bytes, the rows, the dead rows and the inserted rows of each table."""
        if not (await self._part("the extension", HAS_CITUS) and await self._part("the tables", IS_DISTRIBUTED)):
            return await self._part("the tables", SELECT_TABLES)
        rows = await self._part("the tables", SELECT_TABLES_OF_SERVERS)
        if failed := sum(row[-1] for row in rows):
            self._missing.append(f"the tables' parts on {failed} servers of the cluster, which do not answer")
        return [row[:-1] for row in rows if row[0] is not None]

    def _may_select(self, tables: list[tuple[Any, ...]]) -> bool:
        return bool(tables) and not self._refusal

    async def _replicas(self, sees_all: bool) -> list[tuple[Any, ...]]:
        rows = await self._part("the replicas", SELECT_REPLICAS)
        if rows and not sees_all:
            self._missing.append(f"the lag of the replicas ({len(rows)}): {_NEEDS_STATISTICS}")
        return rows if sees_all else []

    async def _part(self, what: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a part of the reading; none, with a remark, if the server refuses it."""
        refused = tuple(kind for kind, _ in _REFUSALS)

        async def read(connection: Any) -> list[tuple[Any, ...]]:
            try:
                return await _fetch(connection, sql, *values)
            except refused as error:
                why = next(reason for kind, reason in _REFUSALS if isinstance(error, kind))
                self._missing.append(f"{what}: {why}")
                return []

        return await self._server.run(read)


async def _find_refusal(connection: Any) -> str:
    """Return why the tables must not be read, such as a view of another role in place of one, or ''."""
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await schema.inspect(connection, for_reading=True)
    except SchemaError as error:
        return str(error)
    except asyncpg.InsufficientPrivilegeError:
        # The role may not read the versions, which are looked up after the owners of the tables.
        return ""
    return ""


async def _fetch(connection: Any, sql: str, *values: object) -> list[tuple[Any, ...]]:
    async with connection.transaction(readonly=True):
        await connection.execute(SET_LIMITS)
        return [tuple(row) for row in await connection.fetch(sql, *values)]
