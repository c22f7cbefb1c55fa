"""Reads, writes and administers PostgreSQL without the library."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from original_application import POSTGRES_TABLES, USERS
from secret_watch import watch_password
from waiting import wait_until

from flux_memory.testkit.servers.databases import database_of

INSERT_SESSION: Final = """
INSERT INTO sessions (id, title, created_at, updated_at, metadata)
VALUES (
    $1::text, 'title of ' || $1::text, '2026-02-05T15:17:45.407069', '2026-02-05T15:17:45.407069', '{"lang": "ko"}'
)
"""
INSERT_MESSAGE: Final = """
INSERT INTO messages (id, session_id, role, content, metadata, created_at)
VALUES (
    $1::text, $2, 'user', 'content of ' || $1::text, '{"n": 1.0}',
    '2026-02-05T15:17:00.407069'::timestamp + $3::int * interval '1 s'
)
"""
COLUMNS: Final = """
SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0
ORDER BY 1, attnum
"""
CONSTRAINTS: Final = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
FROM pg_constraint
WHERE connamespace = 'public'::regnamespace
ORDER BY 1, 2
"""
INDEXES: Final = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"

NAME: Final = "under_test"
CONNECTIONS: Final = f"FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{NAME}'"
"""Connections of a DSN `with_application_name`."""
BUSY: Final = f"SELECT count(*) {CONNECTIONS} AND state <> 'idle'"
OTHER_CLIENTS: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
"""Counts the database's connections but the one that runs it."""
OPEN: Final = f"SELECT count(*) {CONNECTIONS}"


@asynccontextmanager
async def connect(dsn: str) -> AsyncIterator[Any]:
    """Open a connection of the driver."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(dsn: str, *statements: str) -> None:
    """Run each statement in its own transaction."""
    async with connect(dsn) as connection:
        for statement in statements:
            await connection.execute(statement)


async def fetch_rows(dsn: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Read rows as tuples."""
    async with connect(dsn) as connection:
        return [tuple(row) for row in await connection.fetch(sql, *values)]


async def make_original(dsn: str, *, generation: int = 1) -> None:
    """Create the original application's tables, with messages that were not written in the order of their times."""
    async with connect(dsn) as connection:
        await make_original_through(connection, generation=generation)


async def make_original_through(connection: Any, *, generation: int = 1) -> None:
    """Create the original application's tables through an open connection; see `make_original`."""
    await connection.execute(POSTGRES_TABLES + (USERS if generation > 1 else ""))
    await connection.executemany(INSERT_SESSION, [("one",), ("two",)])
    rows = enumerate([("one", 3), ("two", 1), ("one", 1), ("one", 2), ("two", 1), ("one", 3)], start=1)
    await connection.executemany(INSERT_MESSAGE, [(f"m{number}", *row) for number, row in rows])


async def dump_database(dsn: str) -> list[tuple[Any, ...]]:
    """Return columns, constraints, indexes, and every row of every table."""
    async with connect(dsn) as connection:
        return await dump_through(connection)


async def dump_through(connection: Any) -> list[tuple[Any, ...]]:
    """Return columns, constraints, indexes, and every row of every table, through an open connection."""
    found = [tuple(row) for query in (COLUMNS, CONSTRAINTS, INDEXES) for row in await connection.fetch(query)]
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    for (table,) in tables:
        found += [(table, row) for (row,) in await connection.fetch(f"SELECT t::text FROM {table} AS t ORDER BY 1")]
    return found


def with_user(dsn: str, user: str, password: str) -> str:
    """Return the DSN of the same database for another role."""
    parts = urlsplit(dsn)
    hosts = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user)}:{quote(password, safe='')}@{hosts}"))


@asynccontextmanager
async def create_role(dsn: str, *, grants: tuple[str, ...] = (), password: str | None = None) -> AsyncIterator[str]:
    """Create a role during the block and yield its DSN; `{role}` in a grant stands for its name."""
    name, password = f"role_{secrets.token_hex(6)}", password or secrets.token_hex(8)
    watch_password(password)
    literal = password.replace("'", "''")
    await execute(dsn, f"CREATE ROLE {name} LOGIN PASSWORD '{literal}'", *(grant.format(role=name) for grant in grants))
    try:
        yield with_user(dsn, name, password)
    finally:
        await execute(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def with_parameter(dsn: str, parameter: str) -> str:
    """Return the DSN with one more parameter."""
    return f"{dsn}{'&' if '?' in dsn else '?'}{parameter}"


def with_application_name(dsn: str) -> str:
    """Return the DSN with an application name, by which OPEN and BUSY count its connections."""
    return with_parameter(dsn, f"application_name={NAME}")


def with_address(dsn: str, *, host: str | None = None, port: int | None = None, database: str | None = None) -> str:
    """Return the DSN with another host, port or database."""
    parts = urlsplit(dsn)
    user, _, address = parts.netloc.rpartition("@")
    name, _, number = address.rpartition(":")
    netloc = f"{user}@{host or name}:{port or number}"
    return urlunsplit(parts._replace(netloc=netloc, path=f"/{database}" if database else parts.path))


@contextmanager
def reserve_port() -> Iterator[int]:
    """Yield a port on which nothing listens, reserved during the block."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


async def wait_until_none(dsn: str, query: str) -> None:
    """Wait until a query counts 0."""

    async def none() -> bool:
        return not await connection.fetchval(query)

    async with connect(dsn) as connection:
        await wait_until(none)


@asynccontextmanager
async def set_defaults(dsn: str, **settings: str) -> AsyncIterator[None]:
    """Set the database's defaults for new connections during the block."""
    name = database_of(dsn)
    await execute(dsn, *(f"ALTER DATABASE \"{name}\" SET {key} = '{value}'" for key, value in settings.items()))
    try:
        yield
    finally:
        # The defaults under test may make the connection read-only.
        async with connect(dsn) as connection:
            await connection.execute("SET transaction_read_only = off; SET default_transaction_read_only = off")
            for key in settings:
                await connection.execute(f'ALTER DATABASE "{name}" RESET {key}')
