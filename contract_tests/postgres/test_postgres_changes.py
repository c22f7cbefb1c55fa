"""Tests changes of a session that race on PostgreSQL: none acts on messages that its snapshot does not show."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import pytest
import pytest_asyncio
from fault_outcomes import ASLEEP, AWAITING_A_LOCK, MISCOUNTED
from raw_postgres import BUSY, CONNECTIONS, connect, execute, fetch_rows, wait_until_none, with_application_name
from waiting import wait_until

from flux_memory import (
    ConflictError,
    FluxMemoryError,
    Memory,
    OutcomeUnknownError,
    PostgresConversationMemory,
    SchemaError,
    SessionNotFoundError,
    deadline,
)

ROUNDS: Final = 40
"""Calls of each caller in a race."""
CALLERS: Final = 24
SLOW_DELETION: Final = """
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END';
CREATE TRIGGER slow AFTER DELETE ON messages FOR EACH ROW EXECUTE FUNCTION take_time();
"""
KEEPING: Final = """
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep BEFORE DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION keep();
"""
WITHOUT_DETAILS: Final = """
INSERT INTO sessions (id, user_id, created_at, updated_at) VALUES ('foreign', '', '2026-01-01', '2026-01-01')
"""


@pytest_asyncio.fixture
async def memory(named_dsn: str) -> AsyncIterator[PostgresConversationMemory]:
    """An open handle with the session `s`."""
    async with PostgresConversationMemory(named_dsn) as memory:
        await memory.create_session(session_id="s")
        yield memory


async def fill(memory: Memory, count: int) -> list[str]:
    return await memory.add_messages("s", [{"role": "user", "content": f"{number}"} for number in range(count)])


async def cut(memory: Memory, session: str) -> None:
    if history := await memory.get_history(session, 4):
        await memory.update_session(
            session, truncate_from=history[0]["id"], messages=[{"role": "user", "content": "anew"}], title="cut"
        )


async def update_as_read(memory: Memory, session: str) -> None:
    if (found := await memory.get_session(session)) is not None:
        await memory.update_session(session, expected_revision=found["revision"], merge_metadata={"k": 1})


async def fork(memory: Memory, session: str) -> None:
    copy = await memory.fork_session(session)
    found = await memory.get_session(copy)
    assert found is not None
    assert found["message_count"] == len(await memory.get_history(copy))


@pytest.mark.asyncio
async def test_concurrent_pops_return_each_message_once(memory: PostgresConversationMemory, named_dsn: str) -> None:
    """A pop that waited for the lock must not return what the one before has removed, nor leave it in the counter."""
    for _ in range(5):
        ids = await fill(memory, CALLERS - 2)
        popped = await asyncio.gather(*(memory.pop_message("s") for _ in range(CALLERS)))
        assert sorted(message["id"] for message in popped if message is not None) == sorted(ids)
        assert popped.count(None) == 2
        assert await fetch_rows(named_dsn, MISCOUNTED) == []
    await memory.add_message("s", "user", "still writable")


@pytest.mark.asyncio
async def test_one_of_racing_conditional_updates_succeeds(memory: PostgresConversationMemory, named_dsn: str) -> None:
    """Twenty callers that read the same revision: one change, nineteen conflicts."""
    for _ in range(5):
        session = await memory.get_session("s")
        assert session is not None
        outcomes = await asyncio.gather(
            *(
                memory.update_session(
                    "s", expected_revision=session["revision"], messages=[{"role": "user", "content": f"{number}"}]
                )
                for number in range(20)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 19
        (updated,) = [outcome for outcome in outcomes if isinstance(outcome, dict)]
        assert updated == await memory.get_session("s")
    assert len(await memory.get_history("s")) == 5


@pytest.mark.asyncio
async def test_changes_of_every_kind_leave_a_dense_history(
    memory: PostgresConversationMemory, flux_memory_postgres_dsn: str
) -> None:
    """Under adds, deletions and cancellations, too, the counter is the number of rows, and seq has no hole."""

    async def cancel(session: str) -> None:
        call = asyncio.ensure_future(random.choice(kinds[:4])(session))
        done, _ = await asyncio.wait([call], timeout=random.uniform(0, 0.01))
        if not done:
            call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    kinds: list[Callable[[str], Awaitable[object]]] = [
        lambda session: memory.add_message(session, "user", "one", create=True),
        lambda session: memory.add_messages(session, [{"role": "user", "content": "two"}] * 3, create=True),
        memory.pop_message,
        lambda session: memory.update_session(session, truncate_all=True, messages=[{"role": "user", "content": "x"}]),
        partial(cut, memory),
        partial(update_as_read, memory),
        lambda session: memory.update_session_title(session, "title"),
        memory.delete_session,
        partial(fork, memory),
        cancel,
    ]
    odds = [6, 2, 4, 1, 2, 2, 1, 1, 1, 3]

    async def call(number: int) -> None:
        for _ in range(ROUNDS):
            with suppress(ConflictError, SessionNotFoundError):
                await random.choices(kinds, odds)[0](f"hot {number % 2}")

    await asyncio.gather(*map(call, range(CALLERS)))
    await wait_until_none(flux_memory_postgres_dsn, BUSY)
    assert await fetch_rows(flux_memory_postgres_dsn, MISCOUNTED) == []
    lacking = "SELECT id FROM sessions WHERE id NOT IN (SELECT session_id FROM session_details)"
    assert await fetch_rows(flux_memory_postgres_dsn, lacking) == []


@pytest.mark.asyncio
@pytest.mark.parametrize("change", ["pop_message", "update_session"])
async def test_a_change_acts_on_what_was_committed_during_its_wait(
    memory: PostgresConversationMemory, flux_memory_postgres_dsn: str, named_dsn: str, change: str
) -> None:
    """It takes the lock with a snapshot from before the wait, so it runs again with a new one."""
    await fill(memory, 2)
    async with connect(flux_memory_postgres_dsn) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE sessions SET message_count = 3, revision = gen_random_uuid() WHERE id = 's'")
        await other.execute(
            "INSERT INTO messages (session_id, id, seq, role, content, created_at)"
            " VALUES ('s', 'late', 3, 'user', 'late', '2026-01-01')"
        )
        if change == "pop_message":
            call: asyncio.Future[Any] = asyncio.ensure_future(memory.pop_message("s"))
        else:
            call = asyncio.ensure_future(memory.update_session("s", truncate_from="late"))
        await wait_until(lambda: other.fetchval(AWAITING_A_LOCK))
        await transaction.commit()
    answer = await call
    assert answer["message_count" if change == "update_session" else "id"] in {2, "late"}
    assert [message["content"] for message in await memory.get_history("s")] == ["0", "1"]
    assert await fetch_rows(named_dsn, MISCOUNTED) == []


@pytest.mark.asyncio
@pytest.mark.parametrize("ends", ["cancelled", "deadline"])
async def test_a_change_that_ends_in_its_transaction_leaves_none_open(flux_empty_database: str, ends: str) -> None:
    """The connection goes back to the pool without the transaction, which holds the session's lock."""
    async with PostgresConversationMemory(with_application_name(flux_empty_database), min_size=1, max_size=1) as memory:
        await memory.create_session(session_id="s")
        await fill(memory, 2)
        await execute(flux_empty_database, SLOW_DELETION)
        async with connect(flux_empty_database) as other:
            async with other.transaction():
                await other.execute("UPDATE sessions SET revision = gen_random_uuid() WHERE id = 's'")
                with deadline(2 if ends == "deadline" else 30):
                    call = asyncio.ensure_future(memory.pop_message("s"))
                await wait_until(lambda: other.fetchval(AWAITING_A_LOCK))
            await wait_until(lambda: other.fetchval(ASLEEP))
            call.cancel() if ends == "cancelled" else None
            (answer,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(answer, asyncio.CancelledError if ends == "cancelled" else OutcomeUnknownError), answer
        await memory.add_message("s", "user", "next")
        assert [message["content"] for message in await memory.get_history("s")] == ["0", "1", "next"]
        assert await fetch_rows(flux_empty_database, f"SELECT state {CONNECTIONS}") == [("idle",)]


@pytest.mark.asyncio
async def test_a_session_that_another_program_made_has_no_details(
    memory: PostgresConversationMemory, named_dsn: str
) -> None:
    """It reads as one without title and metadata, and a change gives it details."""
    await execute(named_dsn, WITHOUT_DETAILS)
    session = await memory.get_session("foreign")
    assert session is not None
    assert (session["title"], session["metadata"]) == ("", {})
    assert "foreign" in [found["id"] for found in await memory.get_sessions(metadata={})]
    assert await memory.count_sessions(metadata={}) == 2
    updated = await memory.update_session("foreign", merge_metadata={"a": 1}, remove_metadata=["b"])
    assert (updated["title"], updated["metadata"]) == ("", {"a": 1})
    await execute(named_dsn, "DELETE FROM session_details")
    await memory.update_session_title("foreign", "title")
    assert [(found["id"], found["title"]) for found in await memory.get_sessions(1)] == [("foreign", "title")]


@pytest.mark.asyncio
async def test_a_damaged_message_is_not_popped(memory: PostgresConversationMemory, named_dsn: str) -> None:
    """A message that cannot be returned must not be removed."""
    await fill(memory, 1)
    await execute(named_dsn, "UPDATE messages SET metadata = '[]'")
    with pytest.raises(FluxMemoryError, match="cannot be read"):
        await memory.pop_message("s")
    assert await fetch_rows(named_dsn, "SELECT message_count FROM sessions") == [(1,)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE session_details SET metadata = '[\"a\"]'",
        "UPDATE session_details SET metadata = '5'",
        "UPDATE sessions SET user_id = NULL",
        "UPDATE sessions SET created_at = '0044-03-15 BC'",
        "UPDATE sessions SET updated_at = 'infinity'",
    ],
)
@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "new"}]},
        {"truncate_all": True, "title": "new"},
        {"merge_metadata": {"k": 1}},
        {"remove_metadata": ["a"]},
    ],
    ids=["append", "truncate", "merge", "remove"],
)
async def test_a_damaged_session_is_not_updated(
    memory: PostgresConversationMemory, named_dsn: str, damage: str, change: dict[str, Any]
) -> None:
    """A call that cannot return the session must change nothing: its caller would repeat it."""
    await fill(memory, 2)
    await execute(named_dsn, damage)
    stored = """
        SELECT sessions::text, session_details::text, messages::text
        FROM sessions JOIN session_details ON session_id = id JOIN messages USING (session_id)
        ORDER BY seq
    """
    before = await fetch_rows(named_dsn, stored)
    with pytest.raises(FluxMemoryError, match="session 's' cannot be read"):
        await memory.update_session("s", **change)
    assert await fetch_rows(named_dsn, stored) == before


@pytest.mark.asyncio
@pytest.mark.parametrize("through", [None, "4"])
async def test_a_fork_of_a_thinned_history_takes_messages(
    memory: PostgresConversationMemory, named_dsn: str, through: str | None
) -> None:
    """Another program deleted old messages: the copy's next message must not get the number of a copied one."""
    await memory.add_messages("s", [{"role": "user", "content": id_, "message_id": id_} for id_ in "012345"])
    await execute(named_dsn, "DELETE FROM messages WHERE id IN ('0', '1', '3')")
    copy = await memory.fork_session("s", through=through)
    await memory.add_messages(copy, [{"role": "user", "content": "6"}, {"role": "user", "content": "7"}])
    contents = [message["content"] for message in await memory.get_history(copy)]
    assert contents == (["2", "4", "5", "6", "7"] if through is None else ["2", "4", "6", "7"])


@pytest.mark.asyncio
async def test_concurrent_adds_that_create_are_stored_in_order(memory: PostgresConversationMemory) -> None:
    """The first add creates the session; those that gathered behind it follow in the order of the calls."""
    for number in range(10):
        contents = [f"{place}" for place in range(20)]
        await asyncio.gather(
            *(memory.add_message(f"new {number}", "user", each, create=True, user_id="ann") for each in contents)
        )
        assert [message["content"] for message in await memory.get_history(f"new {number}")] == contents


@pytest.mark.asyncio
async def test_shared_adds_check_the_owner_of_each_call(memory: PostgresConversationMemory) -> None:
    """Of the calls in one statement, those of another owner are refused, and the others stored."""
    await memory.create_session(session_id="anns", user_id="ann")
    outcomes = await asyncio.gather(
        *(
            memory.add_message("anns", "user", f"{number}", user_id=("bob", "ann", "")[number % 3])
            for number in range(30)
        ),
        return_exceptions=True,
    )
    assert [isinstance(outcome, ConflictError) for outcome in outcomes] == [number % 3 == 0 for number in range(30)]
    stored = [message["content"] for message in await memory.get_history("anns")]
    assert stored == [f"{number}" for number in range(30) if number % 3]


@pytest.mark.asyncio
async def test_deleting_sessions_passes_over_locked_ones_first(
    memory: PostgresConversationMemory, flux_memory_postgres_dsn: str
) -> None:
    """A locked session delays no other; it is deleted once its lock is free, if it still meets the criteria."""
    for number in range(5):
        await memory.create_session(session_id=f"{number}", user_id="ann")
    async with connect(flux_memory_postgres_dsn) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM sessions WHERE id = '2' FOR UPDATE")
        call = asyncio.ensure_future(memory.delete_sessions(user_id="ann"))
        await wait_until(lambda: other.fetchval("SELECT count(*) = 1 FROM sessions WHERE user_id = 'ann'"))
        assert not call.done()
        await transaction.rollback()
    assert await call == 5
    assert [session["id"] for session in await memory.get_sessions()] == ["s"]


@pytest.mark.asyncio
async def test_deleting_sessions_by_several_callers_counts_each_once(
    memory: PostgresConversationMemory, named_dsn: str
) -> None:
    """More sessions than a batch has: the numbers of all callers add up."""
    await execute(
        named_dsn,
        "INSERT INTO sessions (id, user_id, created_at, updated_at)"
        " SELECT number, 'ann', '2026-01-01', '2026-01-01' FROM generate_series(1, 350) AS number",
    )
    deleted = await asyncio.gather(*(memory.delete_sessions(user_id="ann") for _ in range(3)))
    assert sum(deleted) == 350
    assert await memory.count_sessions() == 1


@pytest.mark.asyncio
async def test_a_session_that_a_trigger_keeps_is_not_called_deleted(flux_empty_database: str) -> None:
    """Nor changed by another call, without a revision to compare."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        session = await memory.create_session()
        await execute(flux_empty_database, KEEPING)
        with pytest.raises(SchemaError, match="a trigger or a policy on the table 'sessions' kept session"):
            await memory.delete_session(session)
        with pytest.raises(SchemaError, match="kept 1 sessions that were to be deleted, after 0 others"):
            await memory.delete_sessions(user_id="")
