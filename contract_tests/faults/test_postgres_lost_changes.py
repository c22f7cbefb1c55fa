"""Tests changes of a session whose reply the network loses: none is made twice, and no error is false."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
from postgres_proxy import PostgresProxy
from raw_postgres import OPEN, connect, fetch_rows, wait_until_none
from waiting import wait_until

from flux_memory import OutcomeUnknownError, PostgresConversationMemory

Change = Callable[[PostgresConversationMemory, str], Awaitable[Any]]

TOUCH: Final = "UPDATE sessions SET revision = gen_random_uuid() WHERE id = 's'"
CHANGES: Final[dict[str, Change]] = {
    "update": lambda memory, _: memory.update_session(
        "s", title="new", truncate_from="2", messages=[{"role": "user", "content": "added"}]
    ),
    "conditional update": lambda memory, revision: memory.update_session(
        "s",
        expected_revision=revision,
        title="new",
        truncate_from="2",
        messages=[{"role": "user", "content": "added"}],
    ),
    "pop": lambda memory, _: memory.pop_message("s"),
    "conditional deletion": lambda memory, revision: memory.delete_session("s", expected_revision=revision),
    "deletion of many": lambda memory, _: memory.delete_sessions(user_id="ann"),
    "fork": lambda memory, _: memory.fork_session("s", new_session_id="copy"),
    "add that creates": lambda memory, _: memory.add_message("new", "user", "first", create=True),
}
AFTER: Final = {
    "update": ["0", "1", "added"],
    "conditional update": ["0", "1", "added"],
    "pop": ["0", "1"],
    "conditional deletion": [],
    "deletion of many": [],
    "fork": ["0", "0", "1", "1", "2", "2"],
    "add that creates": ["0", "1", "2", "first"],
}
"""The contents of all messages after one change."""


async def change_with_lost_reply(proxy: PostgresProxy, dsn: str, name: str, between: str | None) -> Any:
    """Make a change whose reply is lost, run a statement before the retry, and return the outcome."""
    async with PostgresConversationMemory(proxy.dsn, timeout=20, min_size=1, max_size=1) as memory:
        await memory.create_session(session_id="s", user_id="ann")
        batch = [{"role": "user", "content": f"{number}", "message_id": f"{number}"} for number in range(3)]
        await memory.add_messages("s", batch)  # type: ignore[arg-type]
        session = await memory.get_session("s")
        assert session is not None
        async with connect(dsn) as other:
            state = "SELECT json_agg(sessions.revision ORDER BY id)::text FROM sessions"
            before = await other.fetchval(state)
            # Of several statements, the one that changes the session: it has a value that no other one has.
            value = {"add that creates": b"new", "deletion of many": b"-infinity"}.get(name, b"")
            proxy.lose_reply_to("bind", containing=value, times=1)
            if name == "add that creates":
                # The first statement finds no session; the reply to the second is lost.
                proxy.lose_reply_to("bind", containing=b"first", times=1)
            proxy.refuse()
            changing = asyncio.ensure_future(CHANGES[name](memory, session["revision"]))
            if name != "add that creates":

                async def has_changed() -> bool:
                    return bool(await other.fetchval(state) != before)

                await wait_until(has_changed)
            await wait_until_none(dsn, OPEN)
            if between is not None:
                await other.execute(between)
        proxy.heal()
        (outcome,) = await asyncio.wait_for(asyncio.gather(changing, return_exceptions=True), 15)
        return outcome


@pytest.mark.asyncio
@pytest.mark.fault("reply to a change of a session lost", backend="postgres")
@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_with_a_lost_reply_is_made_once(
    proxy: PostgresProxy, flux_empty_database: str, name: str
) -> None:
    """The retry finds that the change is made; only a popped message is lost with the reply."""
    outcome = await change_with_lost_reply(proxy, flux_empty_database, name, None)
    if name == "pop":
        assert isinstance(outcome, OutcomeUnknownError), repr(outcome)
        assert "was removed" in str(outcome)
    elif name == "deletion of many":
        assert isinstance(outcome, OutcomeUnknownError), repr(outcome)
    else:
        assert not isinstance(outcome, BaseException), repr(outcome)
    if "update" in name:
        assert (outcome["title"], outcome["message_count"]) == ("new", 3)
    rows = await fetch_rows(flux_empty_database, "SELECT content FROM messages ORDER BY content")
    assert [content for (content,) in rows] == AFTER[name]


@pytest.mark.asyncio
@pytest.mark.fault("reply to a change of a session lost, session changed before the retry", backend="postgres")
@pytest.mark.parametrize("name", ["update", "conditional update", "pop"])
async def test_a_change_that_another_one_followed_is_not_made_again(
    proxy: PostgresProxy, flux_empty_database: str, name: str
) -> None:
    """Nothing shows whether the attempt took effect, so neither success nor a conflict would be true."""
    outcome = await change_with_lost_reply(proxy, flux_empty_database, name, TOUCH)
    assert isinstance(outcome, OutcomeUnknownError), repr(outcome)
    rows = await fetch_rows(flux_empty_database, "SELECT content FROM messages ORDER BY content")
    assert [content for (content,) in rows] == AFTER[name]


@pytest.mark.asyncio
@pytest.mark.fault("reply to a conditional deletion lost, session created anew before the retry", backend="postgres")
async def test_a_session_created_anew_survives_the_retry_of_a_deletion(
    proxy: PostgresProxy, flux_empty_database: str
) -> None:
    """The new session has another revision, which is not a conflict that the caller can act on."""
    anew = "INSERT INTO sessions (id, created_at, updated_at) VALUES ('s', '2026-01-01', '2026-01-01')"
    outcome = await change_with_lost_reply(proxy, flux_empty_database, "conditional deletion", anew)
    assert isinstance(outcome, OutcomeUnknownError), repr(outcome)
    assert await fetch_rows(flux_empty_database, "SELECT id FROM sessions") == [("s",)]
