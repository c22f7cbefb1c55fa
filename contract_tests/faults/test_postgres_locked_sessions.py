"""Tests locked sessions on PostgreSQL: reads, and calls on other sessions, do not wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

import pytest
from fault_outcomes import (
    add_with_id,
    gather_outcomes,
    is_in_order,
    lock_rows,
    make_sessions,
    open_postgres,
    settle,
)
from raw_postgres import connect, execute, with_application_name

from flux_memory import FluxMemoryError, PostgresConversationMemory, deadline

PROMPT_SECONDS: Final = 1.0
"""Limit, on a busy machine, for a call that has nothing to wait for; 0.02 s is usual."""


async def measure_seconds(call: Awaitable[object]) -> float:
    """Await a call and return the seconds it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await call
    return loop.time() - began


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
@pytest.mark.parametrize(
    ("count", "each", "borrowed"),
    [(10, 1, False), (10, 3, False), (30, 1, False), (100, 1, False), (100, 3, False), (10, 1, True)],
)
async def test_held_sessions_stop_neither_reads_nor_free_sessions(
    flux_empty_database: str, count: int, each: int, borrowed: bool
) -> None:
    """With as many locked sessions as the pool has connections, or a migration's batch sessions, others continue."""
    shut = [f"held {number}" for number in range(count)]
    await make_sessions(flux_empty_database, ["free", "free too", *shut])
    async with open_postgres(with_application_name(flux_empty_database), borrowed=borrowed) as memory:
        await settle(memory, flux_empty_database, ["free"], close=False)
        longest = 0.0
        async with lock_rows(flux_empty_database, shut):
            waiting = {
                f"{session} {number}": add_with_id(memory, 20, session, f"{session} {number}")
                for number in range(each)
                for session in shut
            }
            loop = asyncio.get_running_loop()
            end = loop.time() + 1.5
            done = 0
            while loop.time() < end:
                with deadline(4):
                    took = await asyncio.gather(
                        measure_seconds(memory.get_history("free")),
                        measure_seconds(memory.get_sessions()),
                        measure_seconds(memory.get_history(shut[0])),
                        measure_seconds(memory.add_message("free", "user", f"free {done}")),
                        measure_seconds(memory.add_messages("free too", [{"role": "user", "content": f"too {done}"}])),
                        measure_seconds(memory.update_session_title("free", f"{done}")),
                        return_exceptions=True,
                    )
                assert not [str(one) for one in took if isinstance(one, BaseException)]
                longest = max(longest, *(one for one in took if isinstance(one, float)))
                done += 1
            assert not any(call.done() for call in waiting.values())
        seen = await gather_outcomes(waiting)
        assert len(seen.acknowledged) == len(waiting), seen.errors
        found = await settle(memory, flux_empty_database, ["free"])
        assert len(found) == len(waiting) + 2 * done
        assert set(found.values()) == {1}
        assert await is_in_order(flux_empty_database, seen.acknowledged)
        assert longest < PROMPT_SECONDS


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
@pytest.mark.parametrize("size", [3, 10])
async def test_renames_and_deletions_of_held_sessions_stop_nothing_else(flux_empty_database: str, size: int) -> None:
    """As many calls as connections, beside adds to the same sessions: reads, adds and creations continue."""
    shut = [f"held {number}" for number in range(size)]
    await make_sessions(flux_empty_database, ["free", *shut])
    async with PostgresConversationMemory(with_application_name(flux_empty_database), max_size=size) as memory:
        await settle(memory, flux_empty_database, ["free"], close=False)
        async with lock_rows(flux_empty_database, shut):
            waiting = [add_with_id(memory, 20, session, session) for session in shut]
            with deadline(20):
                waiting += [
                    asyncio.ensure_future(call)
                    for session in shut
                    for call in (memory.update_session_title(session, "new"), memory.delete_session(session))
                ]
            await asyncio.wait(waiting, timeout=0.3)
            with deadline(4):
                took = [
                    await measure_seconds(memory.get_history("free")),
                    await measure_seconds(memory.get_sessions()),
                    await measure_seconds(memory.add_message("free", "user", "x")),
                    await measure_seconds(memory.create_session()),
                    await measure_seconds(memory.create_session(session_id="new")),
                ]
            assert not any(call.done() for call in waiting)
        await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        assert max(took) < PROMPT_SECONDS, took


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
async def test_renames_of_held_sessions_stop_no_rename_of_a_free_one(flux_empty_database: str) -> None:
    """Creations and deletions continue too: only callers of a session wait for its row."""
    shut = [f"held {number}" for number in range(6)]
    await make_sessions(flux_empty_database, ["free", "gone", *shut])
    async with PostgresConversationMemory(with_application_name(flux_empty_database)) as memory:
        await settle(memory, flux_empty_database, ["free"], close=False)
        async with lock_rows(flux_empty_database, shut):
            with deadline(20):
                waiting = [asyncio.ensure_future(memory.update_session_title(session, "new")) for session in shut]
            await asyncio.wait(waiting, timeout=0.3)
            with deadline(4):
                took = await asyncio.gather(
                    measure_seconds(memory.update_session_title("free", "new")),
                    measure_seconds(memory.delete_session("gone")),
                    measure_seconds(memory.create_session(session_id="new")),
                    return_exceptions=True,
                )
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
        assert [str(one) for one in took if isinstance(one, BaseException)] == []
        assert all(isinstance(one, float) and one < PROMPT_SECONDS for one in took), took


@pytest.mark.asyncio
@pytest.mark.fault("sessions held by others", backend="postgres")
@pytest.mark.parametrize("call", ["create_session", "clear_all"])
async def test_creations_and_clears_that_wait_for_others_stop_no_read(flux_empty_database: str, call: str) -> None:
    """As many calls as the pool has connections wait for uncommitted ids or locked sessions."""
    await make_sessions(flux_empty_database, ["free"])
    async with PostgresConversationMemory(with_application_name(flux_empty_database), max_size=4) as memory:
        await settle(memory, flux_empty_database, ["free"], close=False)
        async with connect(flux_empty_database) as other, other.transaction():
            await other.execute(
                "INSERT INTO sessions (id, created_at, updated_at) SELECT 'new ' || n, now(), now() "
                "FROM generate_series(0, 5) AS n"
            )
            await other.execute("SELECT FROM sessions WHERE id = 'free' FOR UPDATE")
            calls = [
                memory.create_session(session_id=f"new {n}") if call == "create_session" else memory.clear_all()
                for n in range(6)
            ]
            waiting = [asyncio.ensure_future(each) for each in calls]
            await asyncio.wait(waiting, timeout=0.3)
            with deadline(4):
                took = [
                    await measure_seconds(memory.get_history("free")),
                    await measure_seconds(memory.create_session()),
                ]
            assert not any(each.done() for each in waiting)
        await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        assert max(took) < PROMPT_SECONDS, took


@pytest.mark.asyncio
@pytest.mark.fault("thousands of adds to held sessions", backend="postgres")
@pytest.mark.parametrize("sessions", [1, 100])
async def test_thousands_that_wait_for_held_sessions_do_not_slow_down_a_read(
    flux_empty_database: str, sessions: int
) -> None:
    """Waiting callers, and callers that leave at once, cost the event loop little."""
    shut = [f"held {number}" for number in range(sessions)]
    await make_sessions(flux_empty_database, ["free", *shut])
    async with PostgresConversationMemory(with_application_name(flux_empty_database)) as memory:
        await settle(memory, flux_empty_database, ["free"], close=False)
        async with lock_rows(flux_empty_database, shut):
            leaving = [add_with_id(memory, 20, shut[number % sessions], f"leaves {number}") for number in range(4000)]
            staying = {
                f"{number}": add_with_id(memory, 20, shut[number % sessions], f"{number}") for number in range(400)
            }
            await asyncio.wait(leaving, timeout=0.5)
            waiting = [await measure_seconds(memory.get_history("free")) for _ in range(30)]
            for call in leaving:
                call.cancel()
            gone = await measure_seconds(asyncio.wait(leaving))
            after = [await measure_seconds(memory.get_history("free")) for _ in range(10)]
        seen = await gather_outcomes(staying)
        assert len(seen.acknowledged) == len(staying), seen.errors
        found = await settle(memory, flux_empty_database, ["free"])
        assert {content: found[content] for content in staying} == dict.fromkeys(staying, 1)
        assert len([content for content in found if "leaves" in content]) == 0
        assert await is_in_order(flux_empty_database, [*staying])
        assert sorted(waiting)[len(waiting) // 2] < 0.05, waiting
        assert max(*waiting, *after) < PROMPT_SECONDS
        assert gone < 2


@pytest.mark.asyncio
@pytest.mark.fault("refused row beside a held session", backend="postgres")
@pytest.mark.parametrize("refused", ["by a constraint", "by its id", "by its session"])
@pytest.mark.parametrize("first", ["held", "bad"])
async def test_a_refused_row_makes_no_free_session_wait_behind_a_held_one(
    flux_empty_database: str, refused: str, first: str
) -> None:
    """The other calls of a bad row's statement are sent again, separately by session, none behind a lock."""
    await make_sessions(flux_empty_database, ["free 0", "free 1", "free 2", "free 3", "held", "bad"])
    async with PostgresConversationMemory(with_application_name(flux_empty_database)) as memory:
        await settle(memory, flux_empty_database, ["free 0"], close=False)
        await memory.add_message("bad", "user", "good", message_id="taken")
        await execute(flux_empty_database, "ALTER TABLE messages ADD CONSTRAINT good CHECK (content NOT LIKE 'bad%')")
        bad_call = {
            "by a constraint": lambda: memory.add_message("bad", "user", "bad"),
            "by its id": lambda: memory.add_message("bad", "user", "another", message_id="taken"),
            "by its session": lambda: memory.add_message("none", "user", "x"),
        }[refused]
        async with lock_rows(flux_empty_database, ["held"]):
            # The others queue while the first two are in flight.
            free = {f"{number}": add_with_id(memory, 10, f"free {number}", f"{number}") for number in range(2)}
            bad: list[asyncio.Future[Any]] = []
            if first == "bad":
                bad.append(asyncio.ensure_future(bad_call()))
            held_calls = {f"held {number}": add_with_id(memory, 10, "held", f"held {number}") for number in range(2)}
            if first == "held":
                bad.append(asyncio.ensure_future(bad_call()))
            free |= {f"{number}": add_with_id(memory, 10, f"free {number % 4}", f"{number}") for number in range(2, 10)}
            took = await measure_seconds(asyncio.wait([*bad, *free.values()], timeout=3))
            late = [content for content, call in free.items() if not call.done()]
            assert not any(call.done() for call in held_calls.values())
        outcomes = await asyncio.wait_for(asyncio.gather(*bad, return_exceptions=True), 11)
        assert isinstance(outcomes[0], FluxMemoryError)
        seen = await gather_outcomes(held_calls | free)
        assert len(seen.acknowledged) == len(held_calls) + len(free), seen.errors
        found = await settle(memory, flux_empty_database, ["free 0"])
        assert dict(found) == dict.fromkeys([*seen.acknowledged, "good"], 1)
        assert await is_in_order(flux_empty_database, [*held_calls, *free])
        assert late == []
        assert took < PROMPT_SECONDS
