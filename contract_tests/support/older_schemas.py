"""Creates PostgreSQL databases as earlier releases left them, from the numbered files."""

from __future__ import annotations

from raw_postgres import connect, make_original

from flux_memory.schema import history
from flux_memory.schema import postgres as schema


async def make_version(dsn: str, version: int) -> None:
    """Create the tables of a schema version, with the rows of the original application's second generation.

    Versions 1 and 2 are the original application's: nothing is recorded.
    """
    await make_original(dsn, generation=min(version, 2))
    if version <= 2:
        return
    async with connect(dsn) as connection, connection.transaction():
        await connection.execute(schema.CREATE_VERSION_TABLE)
        for step in history("postgres")[:version]:
            if step.version > 2:
                await connection.execute(step.sql)
            await connection.execute(schema.record(step))
