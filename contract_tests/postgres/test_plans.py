"""Tests the plans of statements that find a message by its id: a long conversation does not slow them down."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from flux_memory import PostgresConversationMemory
from flux_memory.backends.postgres import adds, appending, creating, queries, updating
from flux_memory.testkit.servers import Server

REVISION = "gen_random_uuid()::text"
EXPECTED = "6a9b5d3c-9e33-4bd5-a84c-5b5d8f1d2a10"
STATEMENTS = {
    "add": (adds.ADD_MESSAGE, f"'long', 'new', 'user', 'Hello', '{{}}', {REVISION}"),
    "add for a user": (adds.ADD_MESSAGE_OF_USER, f"'long', 'new', 'user', 'Hello', '{{}}', {REVISION}, 'ada'"),
    "adds": (
        adds.ADD_MESSAGES,
        "'{long}', '{0}', '{long}', '{new}', '{user}', '{Hello}', '{\"{}\"}', ARRAY[gen_random_uuid()]::text",
    ),
    "update": (
        updating.UPDATE_SESSION,
        (
            f"'long', {REVISION}, FALSE, NULL, NULL, NULL, '{{}}', 'm499', FALSE, "
            "'{new}', '{user}', '{Hello}', '{\"{}\"}', 1000"
        ),
    ),
    "append": (
        appending.APPEND_MESSAGES,
        f"'long', {REVISION}, '{EXPECTED}', '{{new}}', '{{user}}', '{{Hello}}', '{{\"{{}}\"}}'",
    ),
    "append one": (
        appending.APPEND_MESSAGE,
        f"'long', {REVISION}, '{EXPECTED}', 'new', 'user', 'Hello', '{{}}'",
    ),
    "fork": (creating.FORK_SESSION, f"'long', 'm0', 'copy', NULL, NULL, {REVISION}, {REVISION}"),
    "history before": (queries.SELECT_HISTORY_BEFORE, "'long', 1, 'm499'"),
    "history after": (queries.SELECT_HISTORY_AFTER, "'long', 1, 'm0'"),
    "message": (queries.SELECT_MESSAGE, "'long', 'm250'"),
}


async def plan_in_an_empty_database(connection: asyncpg.Connection, name: str) -> None:
    """Prepare the statement and keep its plan, as the first callers of a new application do."""
    sql, values = STATEMENTS[name]
    await connection.execute(f"PREPARE statement AS {sql}")
    await connection.fetch(f"EXPLAIN EXECUTE statement ({values})")


async def plan_where_most_sessions_are_short(connection: asyncpg.Connection, name: str) -> None:
    """Prepare the statement where reading all messages of a session looks cheap to the planner."""
    await connection.execute("ANALYZE")
    await connection.execute(f"PREPARE statement AS {STATEMENTS[name][0]}")


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("plan", [plan_in_an_empty_database, plan_where_most_sessions_are_short])
async def test_a_message_is_found_without_reading_the_rest_of_its_session(
    flux_postgres_server: Server, name: str, plan: Callable[[asyncpg.Connection, str], Awaitable[None]]
) -> None:
    """A server keeps the plan of a prepared statement; it must be as good for the longest session."""
    # Not one whose rows were deleted: where autovacuum has seen the tables empty, they are read whole for a minute.
    dsn = flux_postgres_server.create_database()
    async with PostgresConversationMemory(dsn) as memory:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("SET plan_cache_mode = force_generic_plan")
            await memory.create_session(session_id="long", user_id="ada")
            if plan is plan_in_an_empty_database:
                await plan(connection, name)
            for number in range(200):
                await memory.add_message(f"short {number}", "user", "Hello", create=True)
            messages: list[Any] = [
                {"role": "user", "content": "Hello", "message_id": f"m{each}"} for each in range(500)
            ]
            await memory.add_messages("long", messages)
            if plan is not plan_in_an_empty_database:
                await plan(connection, name)
            await connection.execute("UPDATE sessions SET revision = $1 WHERE id = 'long'", EXPECTED)
            ((text,),) = await connection.fetch(
                f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE statement ({STATEMENTS[name][1]})"
            )
        finally:
            await connection.close()
    reads = [node for node in _nodes(json.loads(text)[0]["Plan"]) if node.get("Relation Name") == "messages"]
    assert reads
    assert all(_rows_read(node) < 10 for node in reads), text


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


def _rows_read(node: dict[str, Any]) -> float:
    return float((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
