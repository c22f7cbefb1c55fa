"""Tests reads on replicas that lag or hang: no read is stale, none goes back, own writes show on any event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Final

import pytest
from fault_report import Fault
from raw_postgres import OTHER_CLIENTS, execute, wait_until_none
from replicated_cluster import (
    ReplicaCounts,
    Replicated,
    look_at_replicas,
    read_own_writes,
    receiver_stopped,
    replay_paused,
    wait_for_use,
)
from waiting import wait_until

from flux_memory import PostgresConversationMemory, deadline

MAX_LAG_SECONDS: Final = 1.0


@pytest.mark.asyncio
@pytest.mark.fault("reads on two replicas", backend="postgres")
async def test_reads_go_to_replicas_and_show_own_writes(replicated: Replicated, fault: Fault) -> None:
    """A handle sees its own writes at once, though replicas answer nearly all of its reads."""
    async with replicated.open() as memory:
        await memory.count_sessions()
        await wait_for_use(memory, 2)
        counts = ReplicaCounts(memory)
        await read_own_writes(memory, 40)
        # A busy machine may keep a replica from catching up within the time that a read waits for it.
        assert counts.answered > 100
        fault.add(acknowledged=40)


@pytest.mark.asyncio
@pytest.mark.fault("replay paused on two replicas", backend="postgres")
async def test_a_paused_replay_hides_no_own_write(replicated: Replicated, fault: Fault) -> None:
    """The primary answers what the replicas have not replayed; they take over again."""
    async with replicated.open() as memory:
        await memory.count_sessions()
        await wait_for_use(memory, 2)
        async with replay_paused(*replicated.replicas):
            await read_own_writes(memory, 10)
        counts = ReplicaCounts(memory)

        async def are_back() -> bool:
            await memory.get_session("none")
            return counts.answered >= 10

        await wait_until(are_back)
        fault.add(acknowledged=10)


@pytest.mark.asyncio
@pytest.mark.fault("receiver of the log stopped", backend="postgres")
@pytest.mark.parametrize("how", ["replay paused", "receiver stopped"])
async def test_no_read_is_staler_than_allowed(replicated: Replicated, fault: Fault, how: str) -> None:
    """Writes of another handle show within the lag allowed, though the replicas stand still."""
    first, second = replicated.replicas
    async with PostgresConversationMemory(replicated.primary.dsn) as writer, replicated.open() as reader:
        session = await writer.create_session()
        await reader.count_sessions()
        await wait_for_use(reader, 2)
        longest = 0.0
        async with replay_paused(second), replay_paused(first) if how == "replay paused" else receiver_stopped(first):
            for _ in range(3):
                message = await writer.add_message(session, "user", "x")
                acknowledged = time.monotonic()
                while True:
                    began = time.monotonic()
                    if await reader.get_message(session, message) is not None:
                        break
                    assert began - acknowledged < MAX_LAG_SECONDS
                longest = max(longest, time.monotonic() - acknowledged)
        # The replicas have nothing newer: the primary must have answered.
        assert longest > 0
        fault.add(acknowledged=3, outage=longest)


@pytest.mark.asyncio
@pytest.mark.fault("two replicas of different lag", backend="postgres")
async def test_no_read_of_a_handle_goes_back(replicated: Replicated, fault: Fault) -> None:
    """A history, once read, does not get shorter, though one replica is 0.7 s behind: now and then too much."""
    slow = replicated.replicas[1]
    await execute(slow.admin_dsn, "ALTER SYSTEM SET recovery_min_apply_delay = '700ms'", "SELECT pg_reload_conf()")
    try:
        async with PostgresConversationMemory(replicated.primary.dsn) as writer, replicated.open() as reader:
            sessions = [await writer.create_session() for _ in range(6)]
            await reader.count_sessions()
            await wait_for_use(reader, 2)
            counts = ReplicaCounts(reader)
            stop = asyncio.Event()

            async def write() -> None:
                while not stop.is_set():
                    await asyncio.gather(*(writer.add_message(session, "user", "x") for session in sessions))

            async def read(session: str) -> int:
                seen = reads = listed = 0
                while not stop.is_set():
                    history = len(await reader.get_history(session))
                    assert history >= seen
                    counted = {each["id"]: each["message_count"] for each in await reader.get_sessions(None)}
                    assert counted[session] >= listed
                    listed = counted[session]
                    found = await reader.get_session(session)
                    assert found is not None
                    assert found["message_count"] >= history
                    seen, reads = found["message_count"], reads + 1
                return reads

            writing = asyncio.create_task(write())
            reading = [asyncio.create_task(read(session)) for session in sessions]
            await asyncio.sleep(3)
            stop.set()
            await asyncio.gather(writing, *reading)
            assert counts.answered > 20
            fault.add(acknowledged=sum(task.result() for task in reading))
    finally:
        await execute(slow.admin_dsn, "ALTER SYSTEM RESET recovery_min_apply_delay", "SELECT pg_reload_conf()")


@pytest.mark.asyncio
@pytest.mark.fault("replica stopped, short deadlines", backend="postgres")
async def test_a_hung_replica_leaves_time_for_the_primary(replicated: Replicated, fault: Fault) -> None:
    """A read with a deadline shorter than it takes to notice the replica's silence is answered within it."""
    async with replicated.open() as memory:
        session = await memory.create_session()
        await wait_for_use(memory, 2)
        pids = [pid for replica in replicated.replicas for pid in replica.list_processes()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            longest = 0.0
            for _ in range(10):
                began = time.monotonic()
                with deadline(0.8):
                    assert await memory.get_session(session) is not None
                longest = max(longest, time.monotonic() - began)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        await wait_for_use(memory, 2)
        fault.add(acknowledged=10, call=longest)


@pytest.mark.asyncio
@pytest.mark.fault("replay paused, calls from other event loops", backend="postgres")
async def test_own_writes_show_on_any_event_loop(replicated: Replicated, fault: Fault) -> None:
    """A handle is one reader, also where its calls come from other loops, which have connections of their own."""
    async with replicated.open() as memory:
        session = await memory.create_session()
        await asyncio.to_thread(asyncio.run, memory.get_session(session))
        await wait_for_use(memory, 2)
        async with replay_paused(*replicated.replicas):
            for _ in range(5):
                message = await memory.add_message(session, "user", "here")
                assert await asyncio.to_thread(asyncio.run, memory.get_message(session, message)) is not None
                message = await asyncio.to_thread(asyncio.run, memory.add_message(session, "user", "there"))
                assert await memory.get_message(session, message) is not None
        fault.add(acknowledged=10)


@pytest.mark.asyncio
@pytest.mark.fault("connections to replicas, from two event loops", backend="postgres")
async def test_the_figures_of_the_connections_name_each_replica(replicated: Replicated, fault: Fault) -> None:
    """Those of the primary stay as they are, so that an exhausted pool shows beside idle replicas."""
    async with replicated.open(max_size=4) as memory:
        assert [stats.size for stats in memory.pool_stats().replicas.values()] == [0, 0]
        await memory.count_sessions()
        await wait_for_use(memory, 2)
        stats = memory.pool_stats()
        assert sorted(stats.replicas) == sorted(replica.shown for replica in look_at_replicas(memory))
        assert (stats.max_size, [each.max_size for each in stats.replicas.values()]) == (4, [5, 5])
        assert all(each.size >= 1 for each in stats.replicas.values())
        acquired = sum(each.acquired for each in stats.replicas.values())
        for _ in range(20):
            await memory.get_session("none")
        assert sum(each.acquired for each in memory.pool_stats().replicas.values()) > acquired
        await asyncio.to_thread(asyncio.run, memory.get_session("none"))
        assert [each.max_size for each in memory.pool_stats().replicas.values()] == [10, 10]
    assert [each.size for each in memory.pool_stats().replicas.values()] == [0, 0]
    fault.add(acknowledged=20)


@pytest.mark.asyncio
@pytest.mark.fault("every task of the application cancelled", backend="postgres")
async def test_a_handle_outlives_the_cancellation_of_every_task(replicated: Replicated, fault: Fault) -> None:
    """Recipes for a shutdown cancel all tasks, and then still use the handle; no connection is left behind."""
    async with replicated.open() as memory:
        session = await memory.create_session()
        await wait_for_use(memory, 2)
        for _ in range(5):
            callers = [asyncio.create_task(memory.get_history(session)) for _ in range(20)]
            await asyncio.sleep(0)
            own = asyncio.current_task()
            for task in asyncio.all_tasks():
                if task is not own:
                    task.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            await memory.add_message(session, "user", "x")
        await wait_for_use(memory, 2)
        counts = ReplicaCounts(memory)
        assert len(await memory.get_history(session)) == 5
        await wait_until(lambda: _reads_on_replica(memory, session, counts))
    for replica in replicated.replicas:
        await wait_until_none(replica.dsn, OTHER_CLIENTS)
    fault.add(acknowledged=5)


async def _reads_on_replica(memory: PostgresConversationMemory, session: str, counts: ReplicaCounts) -> bool:
    await memory.get_history(session)
    return counts.answered > 0


@pytest.mark.fault("event loop ended without a close", backend="postgres")
def test_the_end_of_a_loop_closes_the_connections(replicated: Replicated, fault: Fault) -> None:
    """A later call opens the replicas anew, from another loop."""
    memory = replicated.open()

    async def use() -> None:
        await memory.count_sessions()
        await memory.get_session("none")

    for _ in range(3):
        asyncio.run(use())
    asyncio.run(memory.close())

    async def look() -> None:
        for replica in replicated.replicas:
            await wait_until_none(replica.dsn, OTHER_CLIENTS)

    asyncio.run(look())
    fault.add(acknowledged=3)
