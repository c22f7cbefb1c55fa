"""The store on a Citus cluster that the tests use: a schema of their own, its clock, and the lock of its sessions."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from raw_postgres import connect, execute, fetch_rows, with_parameter

from flux_memory import PostgresConversationMemory
from flux_memory.operations.distribute import distribute
from flux_memory.testkit.contract.hooks import ClockAt
from flux_memory.testkit.contract.outages import Outage

COORDINATOR: Final = "FLUX_MEMORY_CITUS_DSN"
"""The variable with the DSN of the coordinator's database; its role may create schemas in it."""
WORKER: Final = "FLUX_MEMORY_CITUS_WORKER_DSN"
"""The variable with the DSN of the same database on a worker."""

SHARDS: Final = 4
"""Shards of each table."""


def cluster_dsn(variable: str) -> str:
    """Return the DSN of a server of the cluster.

    Raises:
        RuntimeError: The variable is not set.
    """
    if not (dsn := os.environ.get(variable)):
        raise RuntimeError(f"there is no cluster: set {variable} to the DSN of a database with the extension citus")
    return dsn


@asynccontextmanager
async def new_schema() -> AsyncIterator[str]:
    """Create a schema, and drop it at the end; its tables are not distributed."""
    dsn, name = cluster_dsn(COORDINATOR), f"flux_memory_test_{secrets.token_hex(6)}"
    await execute(dsn, f"CREATE SCHEMA {name}")
    try:
        yield name
    finally:
        await execute(dsn, f"DROP SCHEMA {name} CASCADE")


def in_schema(variable: str, name: str) -> str:
    """Return the DSN of a server of the cluster for the tables in a schema."""
    return with_parameter(cluster_dsn(variable), f"search_path={name}")


@asynccontextmanager
async def distributed_schema() -> AsyncIterator[str]:
    """Create a schema with distributed tables, and drop it at the end."""
    async with new_schema() as name:
        # Fewer than usual: each clause empties all of them.
        await distribute(with_parameter(in_schema(COORDINATOR, name), f"citus.shard_count={SHARDS}"))
        yield name


@asynccontextmanager
async def schema_on_one_worker() -> AsyncIterator[str]:
    """Create a schema that Citus distributes as a whole, without tables, and drop it at the end."""
    dsn, name = cluster_dsn(COORDINATOR), f"flux_memory_test_{secrets.token_hex(6)}"
    async with connect(dsn) as connection:
        await connection.execute("SET citus.enable_schema_based_sharding TO on")
        await connection.execute(f"CREATE SCHEMA {name}")
    try:
        yield name
    finally:
        await execute(dsn, f"DROP SCHEMA {name} CASCADE")


async def empty(dsn: str) -> None:
    """Delete all rows."""
    await execute(dsn, "DELETE FROM sessions", "DELETE FROM feedback")


def make_cluster_clock(dsn: str) -> ClockAt:
    """Return a clock as `make_postgres_clock` does; rows of several servers are not joined with temporary tables."""

    @asynccontextmanager
    async def clock_at(moment: datetime) -> AsyncIterator[None]:
        now = moment.astimezone(UTC).replace(tzinfo=None)
        before = {row[0]: row[1:] for row in await fetch_rows(dsn, "SELECT id, revision, updated_at FROM sessions")}
        stored = set(await fetch_rows(dsn, "SELECT session_id, id FROM messages"))
        rated = set(await fetch_rows(dsn, "SELECT id FROM feedback"))
        yield
        async with connect(dsn) as connection:
            for session_id, id_ in await fetch_rows(dsn, "SELECT session_id, id FROM messages"):
                if (session_id, id_) not in stored:
                    since = before[session_id][1] if session_id in before else now
                    date = "UPDATE messages SET created_at = $3 WHERE session_id = $1 AND id = $2"
                    await connection.execute(date, session_id, id_, max(now, since))
            for (id_,) in set(await fetch_rows(dsn, "SELECT id FROM feedback")) - rated:
                await connection.execute("UPDATE feedback SET created_at = $2 WHERE id = $1", id_, now)
            for session_id, revision in await fetch_rows(dsn, "SELECT id, revision FROM sessions"):
                if session_id not in before:
                    date = "UPDATE sessions SET created_at = $2, updated_at = $2 WHERE id = $1"
                    await connection.execute(date, session_id, now)
                elif before[session_id][0] != revision:
                    date = "UPDATE sessions SET updated_at = $2 WHERE id = $1"
                    await connection.execute(date, session_id, max(now, before[session_id][1]))

    return clock_at


def make_cluster_outages(dsn: str) -> Sequence[Outage]:
    """Return the outage of sessions that another client has locked."""

    @asynccontextmanager
    async def locked() -> AsyncIterator[None]:
        sessions = await fetch_rows(dsn, "SELECT id FROM sessions")
        async with connect(dsn) as connection, connection.transaction():
            for (session_id,) in sessions:
                await connection.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", session_id)
            yield

    def away() -> AbstractAsyncContextManager[None]:
        return locked()

    return (Outage("sessions locked", lambda: PostgresConversationMemory(dsn), away),)
