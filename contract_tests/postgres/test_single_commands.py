"""Tests that a schema file makes the same tables as a whole and by single commands, for a distributed schema."""

from __future__ import annotations

from typing import Any, Final

import pytest
from raw_postgres import connect

from flux_memory.schema import history
from flux_memory.schema.postgres.single_commands import single_commands

COLUMNS: Final = """
SELECT relname::text, attnum, attname::text, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
FROM pg_class
JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE relnamespace = current_schema()::regnamespace
ORDER BY 1, 2
"""
KEYS: Final = """
SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid)
FROM pg_constraint
WHERE connamespace = current_schema()::regnamespace
ORDER BY 1, 2
"""
INDEXES: Final = """
SELECT indexname::text, replace(indexdef, current_schema() || '.', '')
FROM pg_indexes
WHERE schemaname = current_schema()
ORDER BY 1
"""


async def _make(connection: Any, schema: str, commands: list[str]) -> list[Any]:
    await connection.execute(f"CREATE SCHEMA {schema}")
    await connection.execute(f"SET search_path = {schema}")
    for command in commands:
        await connection.execute(command)
    return [tuple(row) for query in (COLUMNS, KEYS, INDEXES) for row in await connection.fetch(query)]


@pytest.mark.asyncio(loop_scope="function")
async def test_the_tables_are_the_same_as_from_whole_files(flux_empty_database: str) -> None:
    """Columns in their order, defaults, keys and indexes."""
    async with connect(flux_empty_database) as connection:
        whole = await _make(connection, "whole", [step.sql for step in history("postgres")])
        single = [command for step in history("postgres") for command in single_commands(step.sql)]
        assert await _make(connection, "single", single) == whole
    assert len(whole) > 30


@pytest.mark.asyncio(loop_scope="function")
async def test_each_command_is_one_that_can_be_prepared(flux_empty_database: str) -> None:
    """A text of two commands cannot, and is what a worker refuses."""
    async with connect(flux_empty_database) as connection:
        for step in history("postgres"):
            for command in single_commands(step.sql):
                assert ";" not in command
                await (await connection.prepare(command)).fetch()
