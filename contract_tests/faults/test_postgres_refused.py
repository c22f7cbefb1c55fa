"""Tests that a refused write is not stored on PostgreSQL: an absent server, lost replies, a stalled event loop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from fault_cluster import run_blocking, run_cluster
from fault_outcomes import (
    ADDS,
    ASLEEP,
    SESSIONS,
    SLOW_SESSIONS,
    Outcomes,
    cut_off,
    gather_outcomes,
    is_in_order,
    make_sessions,
    settle,
    start_add,
    used_memory,
)
from postgres_proxy import PostgresProxy
from raw_postgres import connect, execute, with_application_name
from waiting import wait_until

from flux_memory import Memory, PostgresConversationMemory, deadline


@dataclass(frozen=True)
class QueuedAdds:
    """Eight adds that queue while the server is away."""

    sessions: int = 8
    kinds: tuple[str, ...] = ("message",)
    arguments: dict[str, Any] = field(default_factory=dict)
    used: bool = True
    """Whether the handle was used before the server went away."""
    apart_seconds: float = 0.0
    """Seconds between two starts."""
    silent: bool = False
    """Whether the network swallows packets instead of refusing connections."""


QUEUED_ADDS: Final = {
    "different sessions": QueuedAdds(),
    "one session": QueuedAdds(sessions=1),
    "two sessions": QueuedAdds(sessions=2),
    "batches": QueuedAdds(kinds=("batch",)),
    "messages with ids": QueuedAdds(kinds=("message with an id",)),
    "all kinds in one session": QueuedAdds(sessions=1, kinds=tuple(ADDS)),
    "one connection": QueuedAdds(sessions=3, arguments={"min_size": 1, "max_size": 1}),
    "handle not yet opened": QueuedAdds(used=False),
    "different start times": QueuedAdds(sessions=3, apart_seconds=0.03),
    "borrowed pool": QueuedAdds(sessions=3, arguments={"borrowed": True}),
    "silent network": QueuedAdds(sessions=3, silent=True, kinds=("message with an id",)),
}


@pytest.mark.asyncio
@pytest.mark.fault("server away, deadlines mixed on one handle", backend="postgres")
@pytest.mark.parametrize("name", QUEUED_ADDS)
async def test_a_refused_add_is_not_sent_with_its_neighbours(
    proxy: PostgresProxy, flux_empty_database: str, name: str
) -> None:
    """Half of the callers leave while the server is away: none of their messages is stored, the others' are once."""
    gathering = QUEUED_ADDS[name]
    dsn, sessions = flux_empty_database, SESSIONS[: gathering.sessions]
    async with used_memory(proxy.dsn, dsn, sessions, used=gathering.used, timeout=20, **gathering.arguments) as memory:
        if gathering.silent:
            proxy.silence()
        else:
            await cut_off(proxy, dsn)
        tasks: dict[str, asyncio.Future[Any]] = {}
        kinds: dict[str, str] = {}
        for number in range(8):
            content = f"{number} {'patient' if number % 2 else 'impatient'}"
            kinds[content] = gathering.kinds[number % len(gathering.kinds)]
            seconds = 15 if number % 2 else 0.5
            tasks[content] = start_add(memory, seconds, sessions[number % len(sessions)], content, kinds[content])
            if gathering.apart_seconds:
                await asyncio.wait([tasks[content]], timeout=gathering.apart_seconds)
        impatient = await gather_outcomes({each: tasks[each] for each in tasks if " impatient" in each}, within=3)
        assert impatient.acknowledged == []
        assert gathering.silent or len(impatient.refused) == 4
        proxy.heal()
        patient = await gather_outcomes({each: tasks[each] for each in tasks if " patient" in each}, within=16)
        assert len(patient.acknowledged) == 4, patient.errors
        impatient.check(await settle(memory, dsn, sessions, close=False))
        # A caller whose call may be repeated would do so.
        again = impatient.refused + [each for each in impatient.unknown if kinds[each] == "message with an id"]
        for content in again:
            await ADDS[kinds[content]](memory, sessions[int(content[0]) % len(sessions)], content)
        found = await settle(memory, dsn, sessions)
        Outcomes(acknowledged=[*patient.acknowledged, *again]).check(found)
        assert await is_in_order(dsn, patient.acknowledged)


@pytest.mark.asyncio
@pytest.mark.fault("server stopped, deadlines mixed on one handle", backend="postgres")
async def test_an_add_refused_by_a_stopped_server_is_not_stored_after_its_restart() -> None:
    """The same with a server that has really ended, and many callers."""
    with run_cluster(durable=False) as own_server:
        async with used_memory(with_application_name(own_server.dsn), own_server.dsn, timeout=20) as memory:
            await run_blocking(own_server.end, signal.SIGINT)
            tasks = {
                f"{number}": start_add(
                    memory, 25 if number % 2 else 0.5 + number / 100, SESSIONS[number % 7], f"{number}"
                )
                for number in range(40)
            }
            impatient = await gather_outcomes({each: tasks[each] for each in tasks if not int(each) % 2}, within=3)
            assert len(impatient.refused) == 20
            await run_blocking(own_server.start)
            patient = await gather_outcomes({each: tasks[each] for each in tasks if int(each) % 2})
            assert len(patient.acknowledged) == 20, patient.errors
            assert dict(await settle(memory, own_server.dsn, SESSIONS)) == dict.fromkeys(patient.acknowledged, 1)
            assert await is_in_order(own_server.dsn, patient.acknowledged)


@pytest.mark.asyncio
@pytest.mark.fault("shared answers lost, then refused", backend="postgres")
@pytest.mark.parametrize("kind", ADDS)
async def test_a_stored_add_with_a_lost_reply_is_not_refused(
    proxy: PostgresProxy, flux_empty_database: str, kind: str
) -> None:
    """Callers that leave before the retry have an unknown outcome; the messages of the others are stored once."""
    async with used_memory(proxy.dsn, flux_empty_database, timeout=20) as memory:
        proxy.lose_reply_to("sync", times=100)
        proxy.refuse()
        tasks = {
            f"{number}": start_add(memory, 15 if number % 3 else 0.6, SESSIONS[number % 5], f"{number}", kind)
            for number in range(12)
        }
        impatient = await gather_outcomes({each: tasks[each] for each in tasks if not int(each) % 3}, within=3)
        assert impatient.acknowledged == []
        proxy.heal()
        patient = await gather_outcomes({each: tasks[each] for each in tasks if int(each) % 3}, within=16)
        assert len(patient.acknowledged) == 8, patient.errors
        found = await settle(memory, flux_empty_database, SESSIONS)
        impatient.check(found)
        patient.check(found)
        assert await is_in_order(flux_empty_database, patient.acknowledged)


@pytest.mark.asyncio
@pytest.mark.fault("tasks of the library cancelled in flight, then refused", backend="postgres")
async def test_an_add_in_flight_is_not_refused_when_the_librarys_tasks_are_cancelled(
    proxy: PostgresProxy, flux_empty_database: str
) -> None:
    """An application cancels all other tasks, and the server cannot be reached any more: the outcome is unknown."""
    async with used_memory(proxy.dsn, flux_empty_database, timeout=20) as memory:
        await execute(flux_empty_database, SLOW_SESSIONS)
        async with connect(flux_empty_database) as other:
            tasks = {f"{number}": start_add(memory, 1.0, SESSIONS[number % 8], f"{number}") for number in range(12)}
            await wait_until(lambda: other.fetchval(ASLEEP))
        proxy.refuse()
        for task in asyncio.all_tasks() - {asyncio.current_task(), *tasks.values()}:
            task.cancel()
        # The server does not notice, and executes the statements it got.
        proxy.reset()
        seen = await gather_outcomes(tasks, within=4)
        proxy.heal()
        seen.check(await settle(memory, flux_empty_database, SESSIONS))
        assert seen.cancelled == []


STALL_STARTS_SECONDS: Final = (0.0, 0.01, 0.03, 0.06, 0.1, 0.14)
"""Starts of a stall, after calls whose statements take 0.1 s: unsent, in flight, with the next ones in flight."""


@pytest.mark.asyncio
@pytest.mark.fault("event loop stalled past the deadline", backend="postgres")
@pytest.mark.parametrize(("count", "mixed"), [(1, False), (4, False), (4, True), (20, False), (20, True)])
async def test_an_answer_found_together_with_the_deadline_is_not_called_refused(
    flux_empty_database: str, count: int, mixed: bool
) -> None:
    """The loop finds both in one turn: the caller learns the truth, or that the outcome is unknown.

    If `mixed`, some callers with time left keep the shared statement alive.
    """
    async with used_memory(with_application_name(flux_empty_database), flux_empty_database) as memory:
        await execute(flux_empty_database, SLOW_SESSIONS)
        seen = Outcomes()
        for start in STALL_STARTS_SECONDS:
            tasks = {
                f"{start} {number}": start_add(
                    memory, 10 if mixed and number % 5 == 3 else 0.25, SESSIONS[number % 8], f"{start} {number}", kind
                )
                for number, kind in zip(range(count), [*ADDS, "message"] * count, strict=False)
            }
            await asyncio.wait(tasks.values(), timeout=start)
            time.sleep(0.5)  # noqa: ASYNC251 - the stall under test
            outcomes = await asyncio.gather(*tasks.values(), return_exceptions=True)
            for content, outcome in zip(tasks, outcomes, strict=True):
                seen.note(content, outcome)
        found = await settle(memory, flux_empty_database, SESSIONS)
        assert found, "nothing was in flight during the stall"
        seen.check(found)


@dataclass(frozen=True)
class OtherWrite:
    """A write that is not an add, and a query that returns 1 once it took effect."""

    call: Callable[[Memory], Awaitable[object]]
    effect: str


OTHER_WRITES: Final = {
    "create_session": OtherWrite(
        lambda memory: memory.create_session("new"), "SELECT count(*) FROM session_details WHERE title = 'new'"
    ),
    "create_session with an id": OtherWrite(
        lambda memory: memory.create_session("new", session_id="new"), "SELECT count(*) FROM sessions WHERE id = 'new'"
    ),
    "update_session_title": OtherWrite(
        lambda memory: memory.update_session_title("s0", "new"),
        "SELECT count(*) FROM session_details WHERE title = 'new'",
    ),
    "delete_session": OtherWrite(
        lambda memory: memory.delete_session("s0"), "SELECT 1 - count(*) FROM sessions WHERE id = 's0'"
    ),
    "clear_all": OtherWrite(lambda memory: memory.clear_all(), "SELECT 1 - count(*) FROM sessions WHERE id = 's0'"),
}


@pytest.mark.asyncio
@pytest.mark.fault("event loop stalled past the deadline", backend="postgres")
@pytest.mark.parametrize("name", OTHER_WRITES)
async def test_an_answer_of_other_writes_found_with_the_deadline_is_not_called_refused(
    flux_empty_database: str, name: str
) -> None:
    """Writes that are not adds take effect during the stall, so they are acknowledged or of unknown outcome."""
    await make_sessions(flux_empty_database, ["s1", "s0"])
    async with PostgresConversationMemory(with_application_name(flux_empty_database)) as memory:
        await memory.count_sessions()
        await execute(flux_empty_database, SLOW_SESSIONS)
        write = OTHER_WRITES[name]
        with deadline(0.3):
            call = asyncio.ensure_future(write.call(memory))
        async with connect(flux_empty_database) as other:
            await wait_until(lambda: other.fetchval(ASLEEP))
            time.sleep(0.5)  # noqa: ASYNC251 - the stall under test
            seen = await gather_outcomes({name: call}, within=2)
            assert await other.fetchval(write.effect) == 1
        assert seen.acknowledged or seen.unknown, seen.errors
