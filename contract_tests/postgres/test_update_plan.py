"""Tests the plan of an update: a long conversation does not slow it down."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from flux_memory import PostgresConversationMemory
from flux_memory.backends.postgres.updating import UPDATE_SESSION

EXPLAIN_UPDATE = """
EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE updating(
    'long', gen_random_uuid()::text, FALSE, NULL, NULL, NULL, '{}', NULL, FALSE,
    '{new}', '{user}', '{Hello}', '{"{}"}', 1000
)
"""


@pytest.mark.asyncio(loop_scope="function")
async def test_an_update_does_not_read_the_rest_of_a_long_session(flux_memory_postgres_dsn: str) -> None:
    """Where most sessions are short, reading all messages of one looks cheap to the planner; one may be long."""
    async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
        for number in range(200):
            await memory.add_message(f"short {number}", "user", "Hello", create=True)
        await memory.add_messages("long", [{"role": "user", "content": "Hello"}] * 500, create=True)
    connection = await asyncpg.connect(flux_memory_postgres_dsn)
    try:
        await connection.execute("ANALYZE")
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE updating AS {UPDATE_SESSION}")
        ((text,),) = await connection.fetch(EXPLAIN_UPDATE)
    finally:
        await connection.close()
    reads = [node for node in _nodes(json.loads(text)[0]["Plan"]) if node.get("Relation Name") == "messages"]
    assert reads
    assert all(_rows_read(node) < 10 for node in reads)


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


def _rows_read(node: dict[str, Any]) -> float:
    return float((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
