"""The pool behind a PostgreSQL memory: opened and checked, or borrowed, and closed within a bound."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg

from flux_memory.errors import SchemaError
from flux_memory.schema import postgres as schema


async def open_pool(url: str, arguments: dict[str, Any]) -> Any:
    """Open a pool and bring the database's schema up to date."""
    pool = await connect_pool(url, arguments)
    try:
        await _prepare(pool)
    except BaseException:
        pool.terminate()
        raise
    return pool


async def connect_pool(url: str, arguments: dict[str, Any]) -> Any:
    """Open a pool and change nothing."""
    pool = asyncpg.create_pool(url, reset=_keep_state, **arguments)
    try:
        await pool
    except BaseException:
        # A half-open pool keeps the connections it got.
        pool.terminate()
        raise
    return pool


async def borrow(pool: Any) -> Any:
    """Bring the schema up to date through somebody's pool."""
    await _prepare(pool)
    return pool


async def _prepare(pool: Any) -> None:
    async with pool.acquire() as connection:
        await check_encoding(connection)
        await schema.bring_up_to_date(connection)


async def check_encoding(connection: Any) -> None:
    """Raise `SchemaError` unless the database can hold every text."""
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise SchemaError(
            f"the database's encoding is {encoding}, which cannot hold every text; create it with ENCODING 'UTF8'"
        )


async def _keep_state(connection: Any) -> None:
    """Reset nothing on release: no statement of ours changes a session's state, and RESET is a round trip."""


async def close_pool(timeout: float, pool: Any) -> None:  # noqa: ASYNC109 - bounds what takes no timeout
    """Close the pool, by force after `timeout` seconds."""
    try:
        await asyncio.wait_for(pool.close(), timeout)
    except (TimeoutError, asyncpg.InterfaceError, RuntimeError, OSError):
        terminate(pool)


async def give_back(pool: Any) -> None:
    """Leave a borrowed pool to its owner."""


def terminate(pool: Any) -> None:
    """Drop the pool's connections without a word to the server."""
    # The connections of a closed event loop cannot be closed any more; they go with their sockets.
    with suppress(Exception):
        pool.terminate()
