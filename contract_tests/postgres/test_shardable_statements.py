"""Tests that a database sharded by session could run the statements: what it refuses is slow or wrong there only."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
import pytest
from statement_rules import RULES, library_statements

from flux_memory import PostgresConversationMemory
from flux_memory.backends.postgres import adds, creating, deleting, queries, updating
from flux_memory.backends.postgres.locking import SKIPPING
from flux_memory.records.checking import check_count, check_limit

STATEMENTS: Final = library_statements()
UNSHARDED: Final = {
    "row locks of many sessions": {
        "backends.postgres.adds.ADD_MESSAGES",
        "backends.postgres.adds.ADD_MESSAGES_OF_USERS",
        "backends.postgres.deleting.DELETE_BATCH",
        "transfer.target.cluster.cluster_merge.LOCK_SESSIONS_OF_SHARD",
        "transfer.target.merge.LOCK_SESSIONS",
    },
    "an INSERT in a CTE that returns nothing": {
        "backends.postgres.adds.ADD_MESSAGES",
        "backends.postgres.adds.ADD_MESSAGES_OF_USERS",
    },
    "several statements": {
        "backends.postgres.deleting.DELETE_EVERYTHING",
        "schema.postgres.adoption.MOVE_ORPHANS",
        "transfer.target.cluster.cluster_merge.CREATE_STAGING",
        "transfer.target.cluster.cluster_merge.CREATE_STORED",
        "transfer.target.cluster.cluster_merge.EMPTY_TEMPORARY_TABLES",
        "transfer.target.cluster.cluster_merge.WRITING",
        "transfer.target.cluster.common_moment.READING",
        "transfer.target.cluster.common_moment.TRANSACTION_SETTINGS",
        "transfer.target.merge.CREATE_STAGING",
        "transfer.target.merge.WRITING",
        "transfer.target.server.WRITING",
        "transfer.target.server.WRITE_TO_LOG",
        "transfer.target.server.TRANSACTION_SETTINGS",
    },
}
"""Statements that only a database on one server runs: of many sessions at once, of migrations, and of upgrades. A
migration of a cluster locks sessions of one shard, and sends several statements at once to the coordinator alone."""
RESET: Final = """SELECT pg_advisory_unlock_all();
CLOSE ALL;
UNLISTEN *;
RESET ALL;"""
"""The driver's own, when a connection returns to its pool; it touches no table."""
WHOLE: Final = (
    *(adds.ADD_MESSAGE, adds.ADD_MESSAGE_OF_USER, adds.ADD_MESSAGES, adds.ADD_MESSAGES_OF_USERS),
    *(creating.INSERT_SESSION, creating.INSERT_SESSION_WITH_MESSAGES, creating.FORK_SESSION),
    *(updating.UPDATE_TITLE, updating.POP_MESSAGE, updating.UPDATE_SESSION),
    *(deleting.DELETE_SESSION, deleting.DELETE_EVERYTHING),
    *(queries.SELECT_HISTORY, queries.SELECT_HISTORY_BEFORE, queries.SELECT_HISTORY_AFTER, queries.SELECT_MESSAGE),
    *(queries.SELECT_SESSION, queries.COUNT_SESSIONS, queries.COUNT_SESSIONS_OF_USER),
)
"""Statements that the calls run; the record of a run must have each of them."""


@pytest.mark.parametrize("name", RULES)
def test_each_rule_catches_the_statement_that_it_is_for(name: str) -> None:
    """A rule that catches nothing guards nothing."""
    assert RULES[name].is_broken(RULES[name].example)


def test_the_rules_accept_what_replaces_those_statements() -> None:
    """Rules that refuse everything would be switched off."""
    accepted = (
        "UPDATE sessions SET updated_at = greatest(updated_at, statement_timestamp()) WHERE id = $1",
        "UPDATE sessions SET updated_at = now.utc FROM (SELECT clock_timestamp() AS utc) AS now WHERE id = $1",
        "SELECT EXISTS (SELECT 1 FROM sessions WHERE id::text = $1)",
        "SELECT TRUE FROM sessions WHERE id::text = $1 FOR NO KEY UPDATE",
        "WITH added AS (INSERT INTO messages (id) SELECT id FROM item RETURNING TRUE) SELECT count(*) FROM item",
        "SELECT id FROM sessions LIMIT 4611686018427387903 OFFSET 2",
        "DELETE FROM sessions WHERE title = 'one; two';",
    )
    assert [(sql, name) for sql in accepted for name, rule in RULES.items() if rule.is_broken(sql)] == []


@pytest.mark.parametrize("name", RULES)
def test_no_statement_breaks_a_rule(name: str) -> None:
    """Each constant and each listing; the statements of one server break the rule, or they are no exception."""
    assert len(STATEMENTS) > 60
    broken = {constant for constant, sql in STATEMENTS.items() if RULES[name].is_broken(sql)}
    assert broken == UNSHARDED.get(name, set())


def test_a_limit_and_an_offset_have_a_sum_of_64_bits() -> None:
    """An engine that adds them to read from several servers would get a negative number."""
    assert check_limit(None) + check_count("offset", 10**30) < 2**63


@pytest.mark.asyncio(loop_scope="function")
async def test_no_statement_that_a_call_runs_breaks_a_rule(flux_memory_postgres_dsn: str) -> None:
    """Statements are also put together while a call runs, so each is recorded where the driver sends it."""
    recorded: set[str] = set()

    async def record(connection: Any) -> None:
        connection.add_query_logger(lambda query: recorded.add(query.query.replace(SKIPPING, "")))

    # The tables are created before they are distributed.
    async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
        await memory.count_sessions()
    async with asyncpg.create_pool(flux_memory_postgres_dsn, init=record) as pool:
        memory = PostgresConversationMemory(pool=pool)
        await _make_every_call(memory)
        await memory.close()
    assert [sql for sql in WHOLE if sql.replace(SKIPPING, "") not in recorded] == []
    unsharded = tuple(
        STATEMENTS[constant].replace(SKIPPING, "").partition("{criteria}")[0]
        for constants in UNSHARDED.values()
        for constant in constants
    )
    broken = {
        (name, sql)
        for sql in recorded - {RESET}
        for name, rule in RULES.items()
        if rule.is_broken(sql) and not sql.startswith(unsharded)
    }
    assert broken == set()


async def _make_every_call(memory: PostgresConversationMemory) -> None:
    message = {"role": "user", "content": "Hello"}
    await memory.create_session("One", {"lang": "ko"}, session_id="one", user_id="ann")
    await memory.add_message("one", "user", "Hello", message_id="first")
    await memory.add_message("one", "user", "Hello", user_id="ann")
    await memory.add_messages("two", [message, message], create=True)
    await asyncio.gather(*(memory.add_message(name, "user", "Hello") for name in ("one", "two") * 8))
    await asyncio.gather(
        *(memory.add_message(name, "user", "Hello", user_id=user) for name, user in [("one", "ann"), ("two", "")] * 8)
    )
    await memory.get_history("one")
    await memory.get_history("one", before="first")
    await memory.get_history("one", after="first")
    await memory.get_message("one", "first")
    await memory.pop_message("one")
    session = await memory.update_session("one", title="New", merge_metadata={"a": 1}, messages=[message])
    await memory.update_session("one", expected_revision=session["revision"], truncate_from="first")
    await memory.fork_session("one", new_session_id="three")
    await memory.update_session_title("three", "Three")
    assert await memory.get_session("three")
    for user in (None, "ann"):
        for part in (None, {"lang": "ko"}):
            (last, *_) = await memory.get_sessions(user_id=user, metadata=part)
            await memory.get_sessions(None, 1, user_id=user, metadata=part, before=last, with_metadata=False)
            assert await memory.count_sessions(user_id=user, metadata=part)
    entry = await memory.feedback.add("one", 1, metadata={"a": 1})
    await memory.feedback.get(session_id="one")
    await memory.feedback.delete(entry)
    await memory.delete_session("three")
    await memory.delete_sessions(user_id="ann", inactive_since=datetime.now(UTC))
    await memory.clear_all()
