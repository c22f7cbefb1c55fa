"""Tests a memory in a schema that Citus distributes as a whole, to one worker."""

from __future__ import annotations

from typing import Final

import pytest
from cluster_stores import COORDINATOR, in_schema, schema_on_one_worker
from raw_postgres import execute, fetch_rows

from flux_memory import PostgresConversationMemory, SchemaError
from flux_memory.operations.distribute import distribute

PLACED: Final = """
SELECT relname::text
FROM pg_dist_partition
JOIN pg_class ON pg_class.oid = logicalrelid
WHERE relnamespace = current_schema()::regnamespace AND colocationid > 0 AND relname <> 'flux_memory_schema'
ORDER BY 1
"""
FUNCTIONS: Final = "SELECT 1 FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"


@pytest.mark.asyncio
async def test_the_first_use_in_a_distributed_schema_creates_the_tables() -> None:
    """Citus passes the text of a command on to a worker, which takes one at a time."""
    async with schema_on_one_worker() as name:
        dsn = in_schema(COORDINATOR, name)
        async with PostgresConversationMemory(dsn) as memory:
            await memory.add_message("first use", "user", "Hello", create=True)
            assert [message["content"] for message in await memory.get_history("first use")] == ["Hello"]
        assert await fetch_rows(dsn, PLACED) == [("feedback",), ("messages",), ("session_details",), ("sessions",)]


@pytest.mark.asyncio
async def test_a_store_that_is_distributed_with_its_schema_goes_on(fresh_schema: str) -> None:
    """An open handle's statements are those of one server, which the worker runs as a whole."""
    dsn = in_schema(COORDINATOR, fresh_schema)
    async with PostgresConversationMemory(dsn) as memory:
        await memory.add_message("one", "user", "Before", create=True)
        await execute(dsn, f"SELECT citus_schema_distribute('{fresh_schema}')")
        await memory.add_message("one", "user", "After")
        assert [message["content"] for message in await memory.get_history("one")] == ["Before", "After"]
    assert len(await fetch_rows(dsn, PLACED)) == 4


@pytest.mark.asyncio
async def test_its_sessions_are_not_distributed_once_more(fresh_schema: str) -> None:
    """They are together on one worker already, and nothing is created for them."""
    dsn = in_schema(COORDINATOR, fresh_schema)
    async with PostgresConversationMemory(dsn) as memory:
        await memory.create_session()
    await execute(dsn, f"SELECT citus_schema_distribute('{fresh_schema}')")
    with pytest.raises(SchemaError, match=f"citus_schema_undistribute..{fresh_schema}"):
        await distribute(dsn)
    assert await fetch_rows(dsn, FUNCTIONS) == []
