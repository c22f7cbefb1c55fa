"""A PostgreSQL read and written past the library, and changed as an administrator would."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from original_application import POSTGRES_TABLES, USERS
from secret_watch import watch
from waiting import until

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
"""The connections of a `named` DSN."""
BUSY: Final = f"SELECT count(*) {CONNECTIONS} AND state <> 'idle'"
OPEN: Final = f"SELECT count(*) {CONNECTIONS}"


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Any]:
    """A connection of the driver's own."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    async with connected(dsn) as connection:
        for statement in statements:
            await connection.execute(statement)


async def rows(dsn: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Read rows as tuples."""
    async with connected(dsn) as connection:
        return [tuple(row) for row in await connection.fetch(sql, *values)]


async def make_original(dsn: str, *, generation: int = 1) -> None:
    """Make the original application's tables, with data that was not written in the order of its times."""
    await execute(dsn, POSTGRES_TABLES + (USERS if generation > 1 else ""))
    async with connected(dsn) as connection:
        for id_ in ("one", "two"):
            await connection.execute(INSERT_SESSION, id_)
        for number, (session, second) in enumerate(
            [("one", 3), ("two", 1), ("one", 1), ("one", 2), ("two", 1), ("one", 3)], start=1
        ):
            await connection.execute(INSERT_MESSAGE, f"m{number}", session, second)


async def contents(dsn: str) -> list[tuple[Any, ...]]:
    """Everything there is: columns, constraints, indexes, and every row of every table."""
    async with connected(dsn) as connection:
        found = [tuple(row) for query in (COLUMNS, CONSTRAINTS, INDEXES) for row in await connection.fetch(query)]
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        for (table,) in tables:
            found += [(table, row) for (row,) in await connection.fetch(f"SELECT t::text FROM {table} AS t ORDER BY 1")]
        return found


def as_user(dsn: str, user: str, password: str) -> str:
    """The same database, for another role."""
    parts = urlsplit(dsn)
    hosts = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user)}:{quote(password, safe='')}@{hosts}"))


@asynccontextmanager
async def role(dsn: str, *, grants: tuple[str, ...] = (), password: str | None = None) -> AsyncIterator[str]:
    """A role for the length of the block, and its DSN; `{role}` in a grant is its name."""
    name, password = f"role_{secrets.token_hex(6)}", password or secrets.token_hex(8)
    watch(password)
    literal = password.replace("'", "''")
    await execute(dsn, f"CREATE ROLE {name} LOGIN PASSWORD '{literal}'", *(grant.format(role=name) for grant in grants))
    try:
        yield as_user(dsn, name, password)
    finally:
        await execute(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def with_parameter(dsn: str, parameter: str) -> str:
    """The DSN with one more parameter."""
    return f"{dsn}{'&' if '?' in dsn else '?'}{parameter}"


def named(dsn: str) -> str:
    """The DSN with a name by which OPEN and BUSY tell its connections from others."""
    return with_parameter(dsn, f"application_name={NAME}")


def elsewhere(dsn: str, *, host: str | None = None, port: int | None = None, database: str | None = None) -> str:
    """The DSN with another host, port or database."""
    parts = urlsplit(dsn)
    user, _, address = parts.netloc.rpartition("@")
    name, _, number = address.rpartition(":")
    netloc = f"{user}@{host or name}:{port or number}"
    return urlunsplit(parts._replace(netloc=netloc, path=f"/{database}" if database else parts.path))


@contextmanager
def closed_port() -> Iterator[int]:
    """A port on which nothing listens, kept from others for the length of the block."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


async def until_none(dsn: str, query: str) -> None:
    """Wait until a count is 0."""

    async def none() -> bool:
        return not await connection.fetchval(query)

    async with connected(dsn) as connection:
        await until(none)


@asynccontextmanager
async def by_default(dsn: str, **settings: str) -> AsyncIterator[None]:
    """Defaults of the database for new connections, for the length of the block."""
    name = database_of(dsn)
    await execute(dsn, *(f"ALTER DATABASE \"{name}\" SET {key} = '{value}'" for key, value in settings.items()))
    try:
        yield
    finally:
        # The connection must be able to write, also where the default is that it cannot.
        async with connected(dsn) as connection:
            await connection.execute("SET transaction_read_only = off; SET default_transaction_read_only = off")
            for key in settings:
                await connection.execute(f'ALTER DATABASE "{name}" RESET {key}')
