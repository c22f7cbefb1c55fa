"""Tests isolation between callers on PostgreSQL: silent connections, locked rows and refused rows cost no neighbour."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from fault_outcomes import (
    AWAITING_A_LOCK,
    SESSIONS,
    add_with_id,
    count_contents,
    gather_outcomes,
    is_in_order,
    lock_rows,
    make_sessions,
    settle,
    until_statements_wait,
    used_memory,
)
from postgres_proxy import PostgresProxy
from raw_postgres import BUSY, connect, fetch_rows, with_application_name
from waiting import wait_until

from flux_memory import FluxMemoryError, PostgresConversationMemory

WAITING_STATEMENTS = "SELECT pid, query_start FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

# A connection that falls silent.


@pytest.mark.asyncio
@pytest.mark.fault("silent connection loss beside a patient neighbour", backend="postgres")
@pytest.mark.parametrize("leaving", ["by deadline beside a patient neighbour", "all by wait_for"])
async def test_a_retry_after_a_silent_loss_waits_for_no_neighbour(
    proxy: PostgresProxy, flux_empty_database: str, leaving: str
) -> None:
    """Callers of a swallowed statement retry with the same ids, and succeed on a working connection."""
    everybody = "all" in leaving
    async with used_memory(proxy.dsn, flux_empty_database, timeout=30) as memory:
        proxy.silence_at("bind")
        first = {
            session: add_with_id(memory, 20 if session == "s3" or everybody else 0.7, session, f"of {session}")
            for session in SESSIONS
        }
        if everybody:
            calls: dict[str, Awaitable[Any]] = {session: asyncio.wait_for(call, 0.7) for session, call in first.items()}
        else:
            calls = {session: call for session, call in first.items() if session != "s3"}
        outcomes = await asyncio.wait_for(asyncio.gather(*calls.values(), return_exceptions=True), 4)
        assert all(isinstance(outcome, FluxMemoryError | TimeoutError) for outcome in outcomes)
        # From here on the network works again; connections that fell silent stay silent.
        proxy.lose_reply_to("bind", times=0)
        again = {f"of {session}": add_with_id(memory, 4, session, f"of {session}") for session in calls}
        seen = await gather_outcomes(again, within=6)
        assert len(seen.acknowledged) == len(calls), [str(error) for error in seen.errors]
        for call in first.values():
            call.cancel()
        await asyncio.wait_for(asyncio.wait(first.values()), 3)
        proxy.heal()
        found = await settle(memory, flux_empty_database, SESSIONS)
        assert {content: found[content] for content in again} == dict.fromkeys(again, 1)
        assert found.total() <= len(SESSIONS)


@pytest.mark.asyncio
@pytest.mark.fault("silent connection loss beside a patient neighbour", backend="postgres")
async def test_no_error_blames_the_pool_where_connections_are_free(
    proxy: PostgresProxy, flux_empty_database: str
) -> None:
    """A caller behind a hanging statement learns what it waited for; the error does not blame max_size."""
    async with used_memory(proxy.dsn, flux_empty_database, timeout=30) as memory:
        proxy.silence_at("bind")
        stuck = [add_with_id(memory, 20, session, f"of {session}") for session in SESSIONS]
        await asyncio.wait(stuck, timeout=0.2)
        late = {f"late {session}": add_with_id(memory, 0.5, session, f"late {session}") for session in SESSIONS}
        seen = await gather_outcomes(late, within=3)
        assert len(seen.errors) == len(SESSIONS)
        assert [str(error) for error in seen.errors if "max_size" in str(error)] == []
        for call in stuck:
            call.cancel()
        await asyncio.wait_for(asyncio.wait(stuck), 3)
        proxy.heal()
        found = await settle(memory, flux_empty_database, SESSIONS)
        assert [content for content in seen.refused if content in found] == []


# A session that another program locks.


@pytest.mark.asyncio
@pytest.mark.fault("add cancelled while its session is held", backend="postgres")
@pytest.mark.parametrize("how", ["cancelled", "wait_for"])
@pytest.mark.parametrize(("count", "sessions"), [(1, 1), (4, 1), (8, 8), (8, 3)])
async def test_an_add_cancelled_while_it_waits_for_a_lock_is_not_stored(
    flux_empty_database: str, count: int, sessions: int, how: str
) -> None:
    """The statement ends with its last caller, shared or alone, long before the lock is released."""
    async with used_memory(with_application_name(flux_empty_database), flux_empty_database) as memory:
        async with connect(flux_empty_database) as other:
            async with lock_rows(flux_empty_database, SESSIONS[:sessions]):
                adds = [
                    asyncio.ensure_future(memory.add_message(SESSIONS[number % sessions], "user", str(number)))
                    for number in range(count)
                ]
                await until_statements_wait(other)
                await asyncio.wait(adds, timeout=0.2)
                if how == "wait_for":
                    leaving = asyncio.gather(*(asyncio.wait_for(call, 0.01) for call in adds), return_exceptions=True)
                    outcomes = await asyncio.wait_for(leaving, 3)
                else:
                    for call in adds:
                        call.cancel()
                    outcomes = await asyncio.wait_for(asyncio.gather(*adds, return_exceptions=True), 3)
                assert not any(isinstance(outcome, str) for outcome in outcomes)

                async def none_waits() -> bool:
                    return not await other.fetchval(AWAITING_A_LOCK)

                try:
                    await wait_until(none_waits, seconds=3)
                except TimeoutError:
                    still = await other.fetchval(AWAITING_A_LOCK)
                else:
                    still = 0
            found = await settle(memory, flux_empty_database, SESSIONS)
        assert dict(found) == {}, f"stored for callers that had left; {still} statements still waited"
        assert still == 0, "statements waited without callers"


@pytest.mark.asyncio
@pytest.mark.fault("add cancelled while its session is held", backend="postgres")
async def test_a_caller_that_leaves_a_held_session_takes_no_neighbour_along(flux_empty_database: str) -> None:
    """Half of the callers leave: the messages of the others are stored once and in order after the release."""
    async with used_memory(with_application_name(flux_empty_database), flux_empty_database) as memory:
        async with connect(flux_empty_database) as other, lock_rows(flux_empty_database, SESSIONS[:2]):
            adds = {f"{number}": add_with_id(memory, 20, SESSIONS[number % 2], f"{number}") for number in range(12)}
            await until_statements_wait(other)
            await asyncio.wait(adds.values(), timeout=0.1)
            left = set(await other.fetch(WAITING_STATEMENTS))
            leaving = [call for content, call in adds.items() if int(content) % 3 == 0]
            for call in leaving:
                call.cancel()
            await asyncio.wait_for(asyncio.wait(leaving), 3)

            async def have_ended() -> bool:
                return left.isdisjoint(await other.fetch(WAITING_STATEMENTS))

            await wait_until(have_ended)
        staying = {content: call for content, call in adds.items() if int(content) % 3}
        seen = await gather_outcomes(staying, within=15)
        assert len(seen.acknowledged) == len(staying), seen.errors
        found = await settle(memory, flux_empty_database, SESSIONS)
        assert found == dict.fromkeys(staying, 1)
        assert await is_in_order(flux_empty_database, seen.acknowledged)


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
async def test_an_error_behind_a_held_session_names_the_lock_and_not_the_pool(flux_empty_database: str) -> None:
    """Nine of ten connections are free: a higher max_size would not help."""
    async with used_memory(with_application_name(flux_empty_database), flux_empty_database) as memory:
        async with lock_rows(flux_empty_database, ["s0"]):
            adds = {f"{number}": add_with_id(memory, 0.6, "s0", f"{number}") for number in range(6)}
            seen = await gather_outcomes(adds, within=3)
        assert len(seen.errors) == len(adds)
        assert [str(error) for error in seen.errors if "raise max_size" in str(error)] == []
        found = await settle(memory, flux_empty_database, SESSIONS)
        assert [content for content in seen.refused if content in found] == []


@pytest.mark.asyncio
@pytest.mark.fault("call cancelled in a slow statement", backend="postgres")
async def test_a_cancelled_call_leaves_no_statement_on_the_server(flux_empty_database: str) -> None:
    """For each method: the statement of a cancelled call ends on the server long before the lock is released."""
    await make_sessions(flux_empty_database, SESSIONS)
    async with (
        PostgresConversationMemory(with_application_name(flux_empty_database)) as memory,
        connect(flux_empty_database) as other,
    ):
        await memory.count_sessions()
        async with lock_rows(flux_empty_database, SESSIONS):
            calls = [
                asyncio.ensure_future(call)
                for call in (
                    memory.update_session_title("s0", "cancelled"),
                    memory.delete_session("s1"),
                    memory.clear_all(),
                    memory.add_message("s2", "user", "cancelled"),
                    memory.add_message("s3", "user", "cancelled"),
                    memory.add_messages("s4", [{"role": "user", "content": "cancelled"}] * 2),
                )
            ]
            await until_statements_wait(other)
            await asyncio.wait(calls, timeout=0.2)
            for call in calls:
                call.cancel()
            await asyncio.wait_for(asyncio.wait(calls), 3)

            async def none_is_busy() -> bool:
                return not await other.fetchval(BUSY)

            await wait_until(none_is_busy, seconds=3)
        assert await fetch_rows(flux_empty_database, "SELECT count(*) FROM session_details WHERE title = ''") == [(8,)]
        assert dict(await count_contents(flux_empty_database)) == {}
