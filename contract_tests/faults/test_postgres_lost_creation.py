"""Tests that PostgreSQL tells a session of a lost `create_session` from a session that another caller created."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
from fault_outcomes import count_contents
from postgres_proxy import PostgresProxy
from raw_postgres import OPEN, connect, fetch_rows, wait_until_none
from waiting import wait_until

from flux_memory import ConflictError, OutcomeUnknownError, PostgresConversationMemory

BETWEEN: Final = {
    "renamed": "UPDATE session_details SET title = 'renamed' WHERE session_id = 'new'",
    "its metadata changed": """
        UPDATE session_details SET metadata = '{"changed": true}' WHERE session_id = 'new'
    """,
    "its user changed": "UPDATE sessions SET user_id = 'another' WHERE id = 'new'",
    "added to": """
        UPDATE sessions SET message_count = 1 WHERE id = 'new';
        INSERT INTO messages (session_id, id, seq, role, content, created_at)
        VALUES ('new', 'm', 1, 'user', 'between', '2026-01-01')
    """,
    "deleted": "DELETE FROM sessions WHERE id = 'new'",
    "nothing": "SELECT 1",
}


async def create_with_lost_reply(proxy: PostgresProxy, dsn: str, between: str, **given: Any) -> BaseException | str:
    """Create a session whose reply is lost, run a statement before the retry, and return the outcome."""
    async with PostgresConversationMemory(proxy.dsn, timeout=20, min_size=1, max_size=1) as memory:
        # With a prepared statement, the session's id is in the message whose reply is lost.
        await memory.create_session("t", {"a": 1}, session_id="before")
        proxy.lose_reply_to("bind", containing=given.get("session_id", given["title"]).encode())
        proxy.refuse()
        creating = asyncio.ensure_future(memory.create_session(**given))
        async with connect(dsn) as other:
            await wait_until(
                lambda: other.fetchval("SELECT count(*) FROM session_details WHERE 'new' IN (session_id, title)")
            )
            # Otherwise the reply could still be on its way.
            await wait_until_none(dsn, OPEN)
            await other.execute(between)
        proxy.heal()
        (outcome,) = await asyncio.wait_for(asyncio.gather(creating, return_exceptions=True), 15)
        return outcome


@pytest.mark.asyncio
@pytest.mark.fault("reply to create_session lost, session changed before the retry", backend="postgres")
@pytest.mark.parametrize("name", BETWEEN)
async def test_a_session_of_a_lost_attempt_is_recognised_after_a_change(
    proxy: PostgresProxy, flux_empty_database: str, name: str
) -> None:
    """Another handle saw and used the session: its creator must not get a conflict."""
    outcome = await create_with_lost_reply(
        proxy, flux_empty_database, BETWEEN[name], title="title", metadata={"a": 1}, session_id="new"
    )
    if name == "deleted":
        assert outcome == "new" or isinstance(outcome, OutcomeUnknownError), repr(outcome)
        return
    assert outcome == "new"
    columns = "title, metadata::text, user_id, message_count"
    ((title, metadata, user, count),) = await fetch_rows(
        flux_empty_database, f"SELECT {columns} FROM sessions JOIN session_details ON session_id = id WHERE id = 'new'"
    )
    assert title == ("renamed" if name == "renamed" else "title")
    assert metadata == ('{"changed": true}' if "metadata" in name else '{"a": 1}')
    assert user == ("another" if "user" in name else "")
    assert count == len(await count_contents(flux_empty_database)) == (name == "added to")


@pytest.mark.asyncio
@pytest.mark.fault("reply to create_session lost, session changed before the retry", backend="postgres")
async def test_a_session_with_a_generated_id_is_recognised_too(proxy: PostgresProxy, flux_empty_database: str) -> None:
    """It is created once, although its title changed."""
    outcome = await create_with_lost_reply(
        proxy, flux_empty_database, "UPDATE session_details SET title = 'renamed' WHERE title = 'new'", title="new"
    )
    assert await fetch_rows(
        flux_empty_database, "SELECT session_id, title FROM session_details WHERE session_id <> 'before'"
    ) == [(outcome, "renamed")]


@pytest.mark.asyncio
@pytest.mark.fault("reply to create_session lost, and its id taken", backend="postgres")
async def test_an_equal_session_that_existed_before_is_a_conflict(
    proxy: PostgresProxy, flux_empty_database: str
) -> None:
    """Equal content does not prove that the lost attempt created the session."""
    given: dict[str, Any] = {"title": "title", "metadata": {"a": 1}, "session_id": "new"}
    async with PostgresConversationMemory(flux_empty_database) as theirs:
        await theirs.create_session(**given)
    outcome = await create_with_lost_reply(proxy, flux_empty_database, "SELECT 1", **given)
    assert isinstance(outcome, ConflictError), repr(outcome)


@pytest.mark.asyncio
@pytest.mark.fault("reply to create_session lost, and its id taken", backend="postgres")
async def test_an_equal_session_created_while_the_first_attempt_was_swallowed_is_a_conflict(
    proxy: PostgresProxy, flux_empty_database: str
) -> None:
    """Of two callers that create equal sessions with one id, exactly one succeeds."""
    given: dict[str, Any] = {"title": "title", "metadata": {"a": 1}, "session_id": "new"}
    async with (
        PostgresConversationMemory(proxy.dsn, timeout=20, min_size=1, max_size=1) as memory,
        PostgresConversationMemory(flux_empty_database) as theirs,
    ):
        await memory.create_session("t", {"a": 1}, session_id="before")
        proxy.silence_at("bind")
        creating = asyncio.ensure_future(memory.create_session(**given))
        await asyncio.wait([creating], timeout=0.2)
        assert await theirs.create_session(**given) == "new"
        proxy.heal()
        (outcome,) = await asyncio.wait_for(asyncio.gather(creating, return_exceptions=True), 15)
    assert isinstance(outcome, ConflictError), repr(outcome)
