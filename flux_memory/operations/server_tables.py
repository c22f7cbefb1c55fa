"""Refuses a PostgreSQL database without current tables, for commands that create and upgrade none."""

from __future__ import annotations

from typing import Any

from flux_memory.errors import SchemaError
from flux_memory.operations.server_connection import ServerConnection
from flux_memory.schema import history
from flux_memory.schema import postgres as schema


async def check_server_tables(server: ServerConnection) -> None:
    """Check that a database has current tables.

    Raises:
        FluxMemoryError: The tables are missing, of an earlier version, or unusable, or the server was lost.
    """
    state = await server.run(_inspect)
    if not state.version:
        raise SchemaError(f"PostgreSQL at {server.shown}: the role sees no tables there; check the DSN")
    if max(state.applied, default=0) < history("postgres")[-1].version:
        raise SchemaError(
            f"PostgreSQL at {server.shown}: the tables are of an earlier version; upgrade them first with "
            "flux-memory check --full"
        )


async def _inspect(connection: Any) -> Any:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await schema.inspect(connection)
