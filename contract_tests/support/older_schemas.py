"""Creates PostgreSQL databases as earlier releases left them, from the numbered files."""

from __future__ import annotations

from typing import Any

from raw_postgres import connect, make_original_through

from flux_memory.schema import history
from flux_memory.schema import postgres as schema


async def make_version(dsn: str, version: int) -> None:
    """Create the tables of a schema version, with the rows of the original application's second generation.

    Versions 1 and 2 are the original application's: nothing is recorded.
    """
    async with connect(dsn) as connection:
        await make_version_through(connection, version)


async def make_version_through(connection: Any, version: int) -> None:
    """Create the tables of a schema version through an open connection; see `make_version`."""
    await make_original_through(connection, generation=min(version, 2))
    if version <= 2:
        return
    async with connection.transaction():
        await connection.execute(schema.CREATE_VERSION_TABLE)
        for step in history("postgres")[:version]:
            if step.version > 2:
                await connection.execute(step.sql)
            await connection.execute(schema.record(step))
