"""Tests adds that share a statement on PostgreSQL: separate outcomes, and no waiting for another session's lock."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import pytest
import pytest_asyncio
from raw_postgres import connect, execute, fetch_rows
from waiting import wait_until

from flux_memory import PostgresConversationMemory, deadline
from flux_memory.backends.postgres import adds as postgres_adds
from flux_memory.backends.postgres import writer as postgres_writer
from flux_memory.errors import (
    BackendUnavailableError,
    ConflictError,
    OutcomeUnknownError,
    SchemaError,
    SessionNotFoundError,
)
from flux_memory.protocol import NewMessage

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
WAITS_SINCE = """
SELECT count(*) = 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND query_start > $1
"""
ASLEEP_FOR_BAD = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


@pytest_asyncio.fixture
async def memory(flux_empty_database: str) -> AsyncIterator[PostgresConversationMemory]:
    """An open handle with the sessions `one`, `two` and `held`, whose calls end within a second."""
    # A busy machine does not always create the tables within a second.
    async with PostgresConversationMemory(flux_empty_database) as maker:
        for id_ in ("one", "two", "held"):
            await maker.create_session(session_id=id_)
    async with PostgresConversationMemory(flux_empty_database, timeout=1.0) as memory:
        await memory.get_sessions(1)
        yield memory


@pytest.mark.asyncio
async def test_a_call_that_the_server_refuses_fails_alone(
    memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """The shared statement fails as a whole; its other calls are sent again, in order, without the refused one."""
    await execute(
        flux_empty_database, "ALTER TABLE messages ADD CONSTRAINT no_bad_ones CHECK (content NOT LIKE 'bad%')"
    )
    contents = [f"good {number}" for number in range(12)]
    contents[6:6] = ["bad"]
    outcomes = await asyncio.gather(
        *(memory.add_message("one", "user", content) for content in contents), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [str] * 6 + [SchemaError] + [str] * 6
    contents.remove("bad")
    assert [message["content"] for message in await memory.get_history("one")] == contents
    stored = await fetch_rows(flux_empty_database, "SELECT seq FROM messages ORDER BY seq")
    assert stored == [(number,) for number in range(1, 13)]


@pytest.mark.asyncio
async def test_a_call_does_not_fail_with_one_that_was_refused_and_has_left(
    memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """The error of a shared statement is that of the caller that is gone, not of the one that still waits."""
    await execute(flux_empty_database, REFUSE_BAD_ONES_LATE)
    async with connect(flux_empty_database) as other:
        await other.execute("SELECT pg_advisory_lock(7)")
        first = asyncio.ensure_future(memory.add_message("held", "user", "first"))
        await wait_until(lambda: other.fetchval(AWAITING_ADVISORY))
        bad = asyncio.ensure_future(memory.add_message("one", "user", "bad"))
        good = asyncio.ensure_future(memory.add_message("two", "user", "good"))
        await other.execute("SELECT pg_advisory_unlock(7)")
        await first
        await wait_until(lambda: other.fetchval(ASLEEP_FOR_BAD))
        bad.cancel()
        assert await good
    assert [message["content"] for message in await memory.get_history("two")] == ["good"]
    assert await memory.get_history("one") == []


@pytest.mark.asyncio
async def test_refused_calls_share_a_statement_with_neighbours(memory: PostgresConversationMemory) -> None:
    """A missing session or a taken id fails its own call only; all other messages are stored."""
    await memory.add_message("one", "user", "first", message_id="taken")
    outcomes = await asyncio.gather(
        memory.add_message("one", "user", "second"),
        memory.add_message("none", "user", "x"),
        memory.add_message("one", "user", "x", message_id="taken"),
        memory.add_messages("two", [{"role": "user", "content": "third"}, {"role": "user", "content": "fourth"}]),
        memory.add_messages("none", [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]),
        memory.add_messages(
            "two", [{"role": "user", "content": "x"}, {"role": "user", "content": "x", "message_id": "new"}]
        ),
        memory.add_message("two", "user", "other", message_id="new"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        *(str, SessionNotFoundError, ConflictError, list, SessionNotFoundError, list, ConflictError)
    ]
    assert [message["content"] for message in await memory.get_history("one")] == ["first", "second"]
    assert [message["content"] for message in await memory.get_history("two")] == ["third", "fourth", "x", "x"]


@pytest.mark.asyncio
async def test_a_lock_on_one_session_holds_up_no_other(
    memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """Adds to a locked session wait for it, in order; adds to other sessions do not."""
    async with connect(flux_empty_database) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM sessions WHERE id = 'held' FOR UPDATE")
        held = [asyncio.create_task(memory.add_message("held", "user", str(number))) for number in range(4)]
        free = [memory.add_message(id_, "user", str(number)) for number in range(4) for id_ in ("one", "two")]
        await asyncio.wait_for(asyncio.gather(*free), 0.9)
        assert not any(task.done() for task in held)
        await transaction.rollback()
    await asyncio.gather(*held)
    for id_ in ("held", "one", "two"):
        assert [message["content"] for message in await memory.get_history(id_)] == ["0", "1", "2", "3"]


@pytest.mark.asyncio
async def test_adds_to_a_locked_session_wait_for_it_in_one_statement(
    memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """Otherwise a process whose statement finds the session unlocked stores a batch for each call of the others.

    A call that is cancelled meanwhile is not stored with them: its deadline may end before the lock does.
    """
    async with connect(flux_empty_database) as other, connect(flux_empty_database) as watcher:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM sessions WHERE id = 'held' FOR UPDATE")
        in_flight = asyncio.create_task(memory.add_message("one", "user", "x"))
        await asyncio.sleep(0)
        held = [asyncio.create_task(memory.add_message("held", "user", str(number))) for number in range(6)]
        await wait_until(partial(watcher.fetchval, "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted"))
        ((cancelled_at,),) = await watcher.fetch("SELECT clock_timestamp()")
        held[2].cancel()
        await wait_until(partial(watcher.fetchval, WAITS_SINCE, cancelled_at))
        await transaction.rollback()
    await in_flight
    outcomes = await asyncio.gather(*held, return_exceptions=True)
    history = await memory.get_history("held")
    assert [isinstance(outcome, str) for outcome in outcomes] == [True, True, False, True, True, True]
    assert [message["content"] for message in history] == ["0", "1", "3", "4", "5"]
    assert len({message["created_at"] for message in history}) == 1


@pytest.mark.asyncio
async def test_a_lock_that_stays_ends_every_call_that_waits_for_it(
    memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """At the deadline each call fails; a call that was never sent says that nothing was stored.

    Afterwards the session accepts messages again, in order.
    """

    async def in_a_hurry() -> None:
        with deadline(0.3):
            await memory.add_messages("held", [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}])

    async with connect(flux_empty_database) as other, other.transaction():
        await other.execute("SELECT FROM sessions WHERE id = 'held' FOR UPDATE")
        began = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(
            *(memory.add_message("held", "user", "x") for _ in range(4)),
            in_a_hurry(),
            return_exceptions=True,
        )
        assert asyncio.get_running_loop().time() - began < 2.5
    assert all(isinstance(outcome, BackendUnavailableError) for outcome in outcomes)
    assert isinstance(outcomes[0], OutcomeUnknownError)
    assert not isinstance(outcomes[-1], OutcomeUnknownError)
    assert "Nothing was stored" in str(outcomes[-1])
    await memory.add_message("held", "user", "afterwards")
    assert (await memory.get_history("held"))[-1]["content"] == "afterwards"


@pytest.mark.asyncio
@pytest.mark.parametrize("messages", [1, 2])
async def test_a_session_that_is_deleted_while_a_write_waits_for_its_lock_is_not_found(
    memory: PostgresConversationMemory, flux_empty_database: str, messages: int
) -> None:
    """The statement sees the session and can no longer lock it: alone, in a batch, and in a rename."""
    batch: list[NewMessage] = [{"role": "user", "content": "x"}] * messages
    async with connect(flux_empty_database) as other, connect(flux_empty_database) as watcher:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("DELETE FROM sessions")
        calls = [asyncio.create_task(memory.add_messages(id_, batch)) for id_ in ("one", "two", "two")]
        calls.append(asyncio.create_task(memory.update_session_title("held", "x")))
        await wait_until(partial(watcher.fetchval, "SELECT count(*) = 3 FROM pg_locks WHERE NOT granted"))
        await transaction.commit()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [SessionNotFoundError] * 4


@pytest.mark.asyncio
async def test_a_call_that_is_cancelled_before_its_turn_is_not_stored(memory: PostgresConversationMemory) -> None:
    """Calls that share its statement are stored, in order."""
    tasks = [asyncio.create_task(memory.add_message("one", "user", str(number))) for number in range(6)]
    for _ in range(3):
        await asyncio.sleep(0)
    for task in tasks[2::2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    stored = [message["content"] for message in await memory.get_history("one")]
    acknowledged = [str(number) for number, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    assert set(acknowledged) <= set(stored)
    assert stored == sorted(stored)
    assert {"0", "1", "3", "5"} <= set(acknowledged)


@pytest.mark.asyncio
async def test_retries_in_one_burst_are_stored_once(memory: PostgresConversationMemory) -> None:
    """The same id many times at once, alone and in batches: one message; with other content: a conflict."""
    ids = await asyncio.gather(
        *(memory.add_message("one", "user", "x", message_id="m") for _ in range(5)),
        *(memory.add_messages("one", [{"role": "user", "content": "x", "message_id": "m"}]) for _ in range(5)),
        memory.add_message("one", "user", "y", message_id="m"),
        return_exceptions=True,
    )
    assert ids[:10] == ["m"] * 5 + [["m"]] * 5
    assert isinstance(ids[10], ConflictError)
    assert [message["content"] for message in await memory.get_history("one")] == ["x"]


@pytest.mark.asyncio
async def test_a_caller_that_comes_again_at_once_does_not_overtake_those_that_wait(
    memory: PostgresConversationMemory,
) -> None:
    """Callers that add one message after the other all make progress, in any order of arrival."""
    sessions = [await memory.create_session() for _ in range(8)]
    done = dict.fromkeys(sessions, 0)

    async def keep_adding(session: str) -> None:
        while max(done.values()) < 20:
            await memory.add_message(session, "user", "x")
            done[session] += 1

    await asyncio.gather(*map(keep_adding, sessions))
    assert min(done.values()) >= 10


@pytest.mark.asyncio
async def test_adds_that_share_a_statement_share_a_plan(
    memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """The server plans a shared statement once for any number of calls."""
    await execute(flux_empty_database, MANY_ROWS)
    await execute(flux_empty_database, "ANALYZE")
    sessions = [str(number) for number in range(1, 5)]
    for number in range(20):
        await asyncio.gather(*(memory.add_message(each, "user", "x") for each in sessions[: 2 + number % 3]))
    query = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = $1"
    plans = [row for each in memory._pool._open for row in await each.fetch(query, postgres_adds.ADD_MESSAGES)]
    assert sum(generic for generic, _ in plans) > sum(custom for _, custom in plans), plans


@pytest.mark.asyncio
async def test_many_callers_are_divided_among_two_statements(memory: PostgresConversationMemory) -> None:
    """While the server runs the statement of one half, the callers of the other half get answers and call again."""
    sessions = [await memory.create_session() for _ in range(40)]
    writer = memory._life.resource.writers.find("")
    in_flight = set()

    async def keep_adding(session: str) -> None:
        for number in range(10):
            await memory.add_message(session, "user", str(number))

    async with asyncio.TaskGroup() as group:
        adding = [group.create_task(keep_adding(session)) for session in sessions]
        while not all(each.done() for each in adding):
            in_flight.add(len(writer._slots))
            await asyncio.sleep(0)
    assert 2 in in_flight
    for session in sessions:
        assert [row["content"] for row in await memory.get_history(session)] == [str(n) for n in range(10)]


@pytest.mark.asyncio
async def test_large_metadata_makes_no_larger_statements(memory: PostgresConversationMemory) -> None:
    """Metadata counts like content: a statement of many large calls could exceed the server's limit."""
    writer = memory._life.resource.writers.find("")
    together = set()
    large = {"text": "x" * postgres_writer.BATCH_CHARACTERS}
    with deadline(30):
        adding = [asyncio.create_task(memory.add_message("one", "user", str(number), large)) for number in range(6)]
    while not all(each.done() for each in adding):
        together.add(writer._gathered)
        await asyncio.sleep(0)
    assert together == {0, 1}
    assert [row["content"] for row in await memory.get_history("one")] == [str(number) for number in range(6)]


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
