"""Throwaway databases in which backups are restored: on the same server, or on one of this machine's programs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg

from flux_memory.dsn import Dsn, SecretText, parse_dsn
from flux_memory.errors import BackupError
from flux_memory.operations.backup.addresses import render_dsn
from flux_memory.transfer.target.server import open_connection

MAY_CREATE: Final = (
    "SELECT (rolcreatedb OR rolsuper) AND NOT pg_is_in_recovery() FROM pg_roles WHERE rolname = current_user"
)
# Only this process and its own programs connect to the database, which an interrupted run may leave behind.
SELECT_PREFIX: Final = (
    "SELECT 'flux_memory_scratch_' || oid::text || '_' FROM pg_database WHERE datname = current_database()"
)
SELECT_LEFT: Final = """
SELECT datname::text
FROM pg_database
WHERE starts_with(datname::text, $1) AND pg_has_role(datdba, 'USAGE')
"""
# A lock of the store's database for each name; it ends with the connection of the run that uses the database.
LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended($1, 0::bigint))"
UNLOCK: Final = "SELECT pg_advisory_unlock(hashtextextended($1, 0::bigint))"
CREATE: Final = "SELECT format('CREATE DATABASE %I TEMPLATE template0 ENCODING ''UTF8''', $1::text)"
DROP: Final = "SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', $1::text)"
QUOTE: Final = "SELECT quote_ident($1)"
CREATE_SCHEMA: Final = "SELECT format('CREATE SCHEMA IF NOT EXISTS %I', $1::text)"


@asynccontextmanager
async def scratch_database(dsn: str | None, major: int, schema: str) -> AsyncIterator[SecretText]:
    """Yield the DSN of an empty database with a schema, and drop it at the end.

    Args:
        dsn: A memory on the server to use, if its role may create databases; `None` for a local server.
        major: The major version of a local server.
        schema: The schema, which search_path names.

    Raises:
        BackupError: The role may not create databases, and there are no local programs.
    """
    if dsn is not None:
        async with open_connection(dsn) as connection:
            if await connection.fetchval(MAY_CREATE):
                async with _on_server(connection, parse_dsn(dsn)) as made:
                    yield await _with_schema(made, schema)
                return
    async with _on_this_machine(major, may_not=dsn is not None) as local:
        yield await _with_schema(parse_dsn(local), schema)


async def _with_schema(dsn: Dsn, schema: str) -> SecretText:
    text = render_dsn(dsn, database=dsn.arguments["database"])
    async with open_connection(text) as connection:
        await connection.execute(await connection.fetchval(CREATE_SCHEMA, schema))
        quoted = await connection.fetchval(QUOTE, schema)
    return render_dsn(dsn, database=dsn.arguments["database"], search_path=quoted)


@asynccontextmanager
async def _on_server(connection: Any, dsn: Dsn) -> AsyncIterator[Dsn]:
    prefix = await connection.fetchval(SELECT_PREFIX)
    for (left,) in await connection.fetch(SELECT_LEFT, prefix):
        if await connection.fetchval(LOCK, left):
            with suppress(asyncpg.PostgresError):
                await connection.execute(await connection.fetchval(DROP, left))
            await connection.execute(UNLOCK, left)
    name = f"{prefix}{secrets.token_hex(6)}"
    await connection.fetchval(LOCK, name)
    try:
        await connection.execute(await connection.fetchval(CREATE, name))
        yield parse_dsn(render_dsn(dsn, database=name))
    finally:
        # If the connection was lost, the next run drops the database.
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await asyncio.shield(_drop(connection, name))


async def _drop(connection: Any, name: str) -> None:
    await connection.execute(await connection.fetchval(DROP, name))


@asynccontextmanager
async def _on_this_machine(major: int, *, may_not: bool) -> AsyncIterator[str]:
    from flux_memory.testkit.servers.directories import sweep_directories  # noqa: PLC0415 - most backups need no server
    from flux_memory.testkit.servers.local import start  # noqa: PLC0415 - as above
    from flux_memory.testkit.servers.ownership import own_mark  # noqa: PLC0415 - as above
    from flux_memory.testkit.servers.running import ServerUnavailable, Wishes  # noqa: PLC0415 - as above

    # On a disk: a backup may be larger than the memory. Nothing of it has to survive.
    fast = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_wal_size": "4GB"}
    wishes = Wishes(image="", durable=True, settings=fast, version=str(major))
    sweep_directories()
    try:
        server = start(wishes, own_mark())
    except ServerUnavailable as error:
        advice = "let the role create databases (ALTER ROLE ... CREATEDB), or " * may_not
        raise BackupError(
            f"the backup cannot be restored for a trial: {error}; {advice}install PostgreSQL {major} on this machine, "
            "or skip the proof with --no-verify"
        ) from error
    try:
        yield server.dsn
    finally:
        server.stop()
