"""Tests adds that share a statement on PostgreSQL: separate outcomes, one plan, and the order of the calls."""

from __future__ import annotations

import asyncio
import gc
import logging

import asyncpg
import pytest
from raw_postgres import connect, execute, fetch_rows
from waiting import wait_until

from flux_memory import PostgresConversationMemory, deadline
from flux_memory.backends.postgres import adds as postgres_adds
from flux_memory.backends.postgres import writer as postgres_writer
from flux_memory.errors import (
    ConflictError,
    SchemaError,
    SessionNotFoundError,
)

MANY_ROWS = """
INSERT INTO sessions (id, created_at, updated_at, message_count)
SELECT number, TIMESTAMP '2026-01-01', TIMESTAMP '2026-01-01', 10
FROM generate_series(1, 1000) AS number;

INSERT INTO messages (session_id, id, seq, role, content, created_at)
SELECT session, session || '-' || seq, seq, 'user', repeat('x', 500), TIMESTAMP '2026-01-01'
FROM generate_series(1, 1000) AS session, generate_series(1, 10) AS seq;
"""
REFUSE_BAD_ONES_LATE = """
CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.content = 'first' THEN
        PERFORM pg_advisory_xact_lock(7);
    ELSIF new.content = 'bad' THEN
        PERFORM pg_sleep(0.3);
        RAISE 'a bad one';
    END IF;
    RETURN new;
END
$$;
CREATE TRIGGER refuse_late BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION refuse_late();
"""
AWAITING_ADVISORY = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
ASLEEP_FOR_BAD = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


@pytest.mark.asyncio
async def test_a_call_that_the_server_refuses_fails_alone(
    impatient_memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """The shared statement fails as a whole; its other calls are sent again, in order, without the refused one."""
    await execute(
        flux_empty_database, "ALTER TABLE messages ADD CONSTRAINT no_bad_ones CHECK (content NOT LIKE 'bad%')"
    )
    contents = [f"good {number}" for number in range(12)]
    contents[6:6] = ["bad"]
    outcomes = await asyncio.gather(
        *(impatient_memory.add_message("one", "user", content) for content in contents), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [str] * 6 + [SchemaError] + [str] * 6
    contents.remove("bad")
    assert [message["content"] for message in await impatient_memory.get_history("one")] == contents
    stored = await fetch_rows(flux_empty_database, "SELECT seq FROM messages ORDER BY seq")
    assert stored == [(number,) for number in range(1, 13)]


@pytest.mark.asyncio
async def test_a_call_does_not_fail_with_one_that_was_refused_and_has_left(
    impatient_memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """The error of a shared statement is that of the caller that is gone, not of the one that still waits."""
    await execute(flux_empty_database, REFUSE_BAD_ONES_LATE)
    async with connect(flux_empty_database) as other:
        await other.execute("SELECT pg_advisory_lock(7)")
        first = asyncio.ensure_future(impatient_memory.add_message("held", "user", "first"))
        await wait_until(lambda: other.fetchval(AWAITING_ADVISORY))
        bad = asyncio.ensure_future(impatient_memory.add_message("one", "user", "bad"))
        good = asyncio.ensure_future(impatient_memory.add_message("two", "user", "good"))
        await other.execute("SELECT pg_advisory_unlock(7)")
        await first
        await wait_until(lambda: other.fetchval(ASLEEP_FOR_BAD))
        bad.cancel()
        assert await good
    assert [message["content"] for message in await impatient_memory.get_history("two")] == ["good"]
    assert await impatient_memory.get_history("one") == []


@pytest.mark.asyncio
async def test_refused_calls_share_a_statement_with_neighbours(impatient_memory: PostgresConversationMemory) -> None:
    """A missing session or a taken id fails its own call only; all other messages are stored."""
    await impatient_memory.add_message("one", "user", "first", message_id="taken")
    outcomes = await asyncio.gather(
        impatient_memory.add_message("one", "user", "second"),
        impatient_memory.add_message("none", "user", "x"),
        impatient_memory.add_message("one", "user", "x", message_id="taken"),
        impatient_memory.add_messages(
            "two", [{"role": "user", "content": "third"}, {"role": "user", "content": "fourth"}]
        ),
        impatient_memory.add_messages("none", [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]),
        impatient_memory.add_messages(
            "two", [{"role": "user", "content": "x"}, {"role": "user", "content": "x", "message_id": "new"}]
        ),
        impatient_memory.add_message("two", "user", "other", message_id="new"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        *(str, SessionNotFoundError, ConflictError, list, SessionNotFoundError, list, ConflictError)
    ]
    assert [message["content"] for message in await impatient_memory.get_history("one")] == ["first", "second"]
    assert [message["content"] for message in await impatient_memory.get_history("two")] == [
        "third",
        "fourth",
        "x",
        "x",
    ]


@pytest.mark.asyncio
async def test_a_call_that_is_cancelled_before_its_turn_is_not_stored(
    impatient_memory: PostgresConversationMemory,
) -> None:
    """Calls that share its statement are stored, in order."""
    tasks = [asyncio.create_task(impatient_memory.add_message("one", "user", str(number))) for number in range(6)]
    for _ in range(3):
        await asyncio.sleep(0)
    for task in tasks[2::2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    stored = [message["content"] for message in await impatient_memory.get_history("one")]
    acknowledged = [str(number) for number, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    assert set(acknowledged) <= set(stored)
    assert stored == sorted(stored)
    assert {"0", "1", "3", "5"} <= set(acknowledged)


@pytest.mark.asyncio
async def test_retries_in_one_burst_are_stored_once(impatient_memory: PostgresConversationMemory) -> None:
    """The same id many times at once, alone and in batches: one message; with other content: a conflict."""
    ids = await asyncio.gather(
        *(impatient_memory.add_message("one", "user", "x", message_id="m") for _ in range(5)),
        *(
            impatient_memory.add_messages("one", [{"role": "user", "content": "x", "message_id": "m"}])
            for _ in range(5)
        ),
        impatient_memory.add_message("one", "user", "y", message_id="m"),
        return_exceptions=True,
    )
    assert ids[:10] == ["m"] * 5 + [["m"]] * 5
    assert isinstance(ids[10], ConflictError)
    assert [message["content"] for message in await impatient_memory.get_history("one")] == ["x"]


@pytest.mark.asyncio
async def test_a_caller_that_comes_again_at_once_does_not_overtake_those_that_wait(
    impatient_memory: PostgresConversationMemory,
) -> None:
    """Callers that add one message after the other all make progress, in any order of arrival."""
    sessions = [await impatient_memory.create_session() for _ in range(8)]
    done = dict.fromkeys(sessions, 0)

    async def keep_adding(session: str) -> None:
        while max(done.values()) < 20:
            await impatient_memory.add_message(session, "user", "x")
            done[session] += 1

    await asyncio.gather(*map(keep_adding, sessions))
    assert min(done.values()) >= 10


@pytest.mark.asyncio
async def test_adds_that_share_a_statement_share_a_plan(
    impatient_memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """The server plans a shared statement once for any number of calls."""
    await execute(flux_empty_database, MANY_ROWS)
    await execute(flux_empty_database, "ANALYZE")
    sessions = [str(number) for number in range(1, 5)]
    for number in range(20):
        await asyncio.gather(*(impatient_memory.add_message(each, "user", "x") for each in sessions[: 2 + number % 3]))
    query = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = $1"
    plans = [
        row for each in impatient_memory._pool._open for row in await each.fetch(query, postgres_adds.ADD_MESSAGES)
    ]
    assert sum(generic for generic, _ in plans) > sum(custom for _, custom in plans), plans


@pytest.mark.asyncio
async def test_many_callers_are_divided_among_two_statements(impatient_memory: PostgresConversationMemory) -> None:
    """While the server runs the statement of one half, the callers of the other half get answers and call again."""
    sessions = [await impatient_memory.create_session() for _ in range(40)]
    writer = impatient_memory._life.resource.writers.find("")
    in_flight = set()

    async def keep_adding(session: str) -> None:
        for number in range(10):
            await impatient_memory.add_message(session, "user", str(number))

    async with asyncio.TaskGroup() as group:
        adding = [group.create_task(keep_adding(session)) for session in sessions]
        while not all(each.done() for each in adding):
            in_flight.add(len(writer._slots))
            await asyncio.sleep(0)
    assert 2 in in_flight
    for session in sessions:
        assert [row["content"] for row in await impatient_memory.get_history(session)] == [str(n) for n in range(10)]


@pytest.mark.asyncio
async def test_large_metadata_makes_no_larger_statements(impatient_memory: PostgresConversationMemory) -> None:
    """Metadata counts like content: a statement of many large calls could exceed the server's limit."""
    writer = impatient_memory._life.resource.writers.find("")
    together = set()
    large = {"text": "x" * postgres_writer.BATCH_CHARACTERS}
    with deadline(30):
        adding = [
            asyncio.create_task(impatient_memory.add_message("one", "user", str(number), large)) for number in range(6)
        ]
    while not all(each.done() for each in adding):
        together.add(writer._gathered)
        await asyncio.sleep(0)
    assert together == {0, 1}
    assert [row["content"] for row in await impatient_memory.get_history("one")] == [str(number) for number in range(6)]


@pytest.mark.asyncio
async def test_a_refusal_of_a_cancelled_call_is_not_logged(
    flux_empty_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer arrived, and its connection was on the way back to a borrowed pool: asyncio logs nothing."""
    async with (
        asyncpg.create_pool(flux_empty_database, min_size=1, max_size=1) as pool,
        PostgresConversationMemory(pool=pool) as memory,
    ):
        await memory.count_sessions()
        adding = asyncio.create_task(memory.add_message("none", "user", "x"))
        for _ in range(10_000):
            await asyncio.sleep(0)
            if memory._pool._tasks:
                break
        adding.cancel()
        assert isinstance((await asyncio.gather(adding, return_exceptions=True))[0], asyncio.CancelledError)
        del adding
        gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
