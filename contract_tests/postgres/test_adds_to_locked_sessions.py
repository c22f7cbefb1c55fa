"""Tests adds to sessions that other clients have locked: they wait, in one statement, and hold up no others."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from raw_postgres import connect
from waiting import wait_until

from flux_memory import PostgresConversationMemory, deadline
from flux_memory.errors import (
    BackendUnavailableError,
    OutcomeUnknownError,
    SessionNotFoundError,
)
from flux_memory.protocol import NewMessage


@pytest.mark.asyncio
async def test_a_lock_on_one_session_holds_up_no_other(
    impatient_memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """Adds to a locked session wait for it, in order; adds to other sessions do not."""
    async with connect(flux_empty_database) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM sessions WHERE id = 'held' FOR UPDATE")
        held = [asyncio.create_task(impatient_memory.add_message("held", "user", str(number))) for number in range(4)]
        free = [impatient_memory.add_message(id_, "user", str(number)) for number in range(4) for id_ in ("one", "two")]
        await asyncio.wait_for(asyncio.gather(*free), 0.9)
        assert not any(task.done() for task in held)
        await transaction.rollback()
    await asyncio.gather(*held)
    for id_ in ("held", "one", "two"):
        assert [message["content"] for message in await impatient_memory.get_history(id_)] == ["0", "1", "2", "3"]


@pytest.mark.asyncio
async def test_adds_to_a_locked_session_wait_for_it_in_one_statement(
    impatient_memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """Otherwise a process whose statement finds the session unlocked stores a batch for each call of the others."""
    async with connect(flux_empty_database) as other, connect(flux_empty_database) as watcher:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM sessions WHERE id = 'held' FOR UPDATE")
        in_flight = asyncio.create_task(impatient_memory.add_message("one", "user", "x"))
        await asyncio.sleep(0)
        held = [asyncio.create_task(impatient_memory.add_message("held", "user", str(number))) for number in range(6)]
        await wait_until(partial(watcher.fetchval, "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted"))
        await transaction.rollback()
    await asyncio.gather(in_flight, *held)
    history = await impatient_memory.get_history("held")
    assert [message["content"] for message in history] == ["0", "1", "2", "3", "4", "5"]
    assert len({message["created_at"] for message in history}) == 1


@pytest.mark.asyncio
async def test_a_caller_that_leaves_a_statement_on_a_lock_is_not_stored(
    impatient_memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """The others are sent again, in order, and the next one that leaves costs them nothing."""
    waiting = "SELECT max(query_start) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with connect(flux_empty_database) as other, connect(flux_empty_database) as watcher:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM sessions WHERE id = 'held' FOR UPDATE")
        with deadline(30):
            in_flight = asyncio.create_task(impatient_memory.add_message("one", "user", "x"))
            await asyncio.sleep(0)
            held = [
                asyncio.create_task(impatient_memory.add_message("held", "user", str(number))) for number in range(6)
            ]
        await wait_until(partial(watcher.fetchval, waiting))
        first = await watcher.fetchval(waiting)
        held[2].cancel()

        async def another_waits() -> bool:
            return await watcher.fetchval(waiting) not in (first, None)

        await wait_until(another_waits)
        second = await watcher.fetchval(waiting)
        held[4].cancel()
        await asyncio.wait([held[4]])
        assert await watcher.fetchval(waiting) == second
        await transaction.rollback()
    outcomes = await asyncio.gather(in_flight, *held, return_exceptions=True)
    assert [isinstance(outcome, str) for outcome in outcomes] == [True, True, True, False, True, False, True]
    assert [message["content"] for message in await impatient_memory.get_history("held")] == ["0", "1", "3", "5"]


@pytest.mark.asyncio
async def test_a_lock_that_stays_ends_every_call_that_waits_for_it(
    impatient_memory: PostgresConversationMemory, flux_empty_database: str
) -> None:
    """At the deadline each call fails; a call that was never sent says that nothing was stored.

    Afterwards the session accepts messages again, in order.
    """

    async def in_a_hurry() -> None:
        with deadline(0.3):
            await impatient_memory.add_messages(
                "held", [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]
            )

    async with connect(flux_empty_database) as other, other.transaction():
        await other.execute("SELECT FROM sessions WHERE id = 'held' FOR UPDATE")
        began = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(
            *(impatient_memory.add_message("held", "user", "x") for _ in range(4)),
            in_a_hurry(),
            return_exceptions=True,
        )
        assert asyncio.get_running_loop().time() - began < 2.5
    assert all(isinstance(outcome, BackendUnavailableError) for outcome in outcomes)
    assert isinstance(outcomes[0], OutcomeUnknownError)
    assert not isinstance(outcomes[-1], OutcomeUnknownError)
    assert "Nothing was stored" in str(outcomes[-1])
    await impatient_memory.add_message("held", "user", "afterwards")
    assert (await impatient_memory.get_history("held"))[-1]["content"] == "afterwards"


@pytest.mark.asyncio
@pytest.mark.parametrize("messages", [1, 2])
async def test_a_session_that_is_deleted_while_a_write_waits_for_its_lock_is_not_found(
    impatient_memory: PostgresConversationMemory, flux_empty_database: str, messages: int
) -> None:
    """The statement sees the session and can no longer lock it: alone, in a batch, and in a rename."""
    batch: list[NewMessage] = [{"role": "user", "content": "x"}] * messages
    async with connect(flux_empty_database) as other, connect(flux_empty_database) as watcher:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("DELETE FROM sessions")
        calls = [asyncio.create_task(impatient_memory.add_messages(id_, batch)) for id_ in ("one", "two", "two")]
        calls.append(asyncio.create_task(impatient_memory.update_session_title("held", "x")))
        await wait_until(partial(watcher.fetchval, "SELECT count(*) = 3 FROM pg_locks WHERE NOT granted"))
        await transaction.commit()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [SessionNotFoundError] * 4
