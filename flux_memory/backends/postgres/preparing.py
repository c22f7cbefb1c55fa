"""Checks a database at the first connection, and brings its schema up to date."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from flux_memory.backends.postgres.connecting import DRIVER_ERRORS, fatal_error
from flux_memory.backends.postgres.distributed.finding import find_path
from flux_memory.backends.postgres.one_server import ONE_SERVER
from flux_memory.backends.postgres.retry import terminate
from flux_memory.backends.postgres.write_path import WritePath
from flux_memory.errors import SchemaError
from flux_memory.schema import history
from flux_memory.schema import postgres as schema

_LOG: Final = logging.getLogger("flux_memory.postgres")


async def prepare(connection: Any, shown: str, deadline: float) -> WritePath:
    """Check the database's encoding, bring its schema up to date, and return how the store's writes run.

    Args:
        connection: An asyncpg connection.
        shown: The masked DSN.
        deadline: The time of the event loop at which the connection is dropped.

    Raises:
        TimeoutError: The connection was dropped.
    """
    # Not by cancellation: a cancelled transaction sends a ROLLBACK that may never return.
    loop = asyncio.get_running_loop()
    end = loop.call_at(deadline, terminate, connection)
    try:
        await check_encoding(connection)
        state = await schema.bring_up_to_date(connection)
        path = await find_path(connection) if state.has_citus else ONE_SERVER
    except DRIVER_ERRORS as error:
        if loop.time() < deadline or fatal_error(error) is not None:
            raise
        raise TimeoutError from error
    finally:
        end.cancel()
    _LOG.info(
        "opened PostgreSQL at %s: server %s, schema version %d",
        *(shown, getattr(connection.get_settings(), "server_version", "unknown"), history("postgres")[-1].version),
    )
    return path


async def check_encoding(connection: Any) -> None:
    """Raise `SchemaError` unless the database can hold every text."""
    # A server reports it when a session starts; a pooler may not.
    encoding = getattr(connection.get_settings(), "server_encoding", None)
    encoding = encoding or await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise SchemaError(
            f"the database's encoding is {encoding}, which cannot hold every text; create it with ENCODING 'UTF8'"
        )
