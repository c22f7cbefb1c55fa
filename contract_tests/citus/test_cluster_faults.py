"""Breaks the servers of a cluster, and what is between them, while sessions are written to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from cluster_stores import COORDINATOR, in_schema
from raw_postgres import connect, fetch_rows
from waiting import wait_until

from flux_memory import BackendUnavailableError, PostgresConversationMemory, deadline
from flux_memory.operations.distribute import distribute

KILL: Final = "FLUX_MEMORY_CITUS_KILL"
"""The variable with the command that kills a worker."""
START: Final = "FLUX_MEMORY_CITUS_START"
"""The variable with the command that starts it again, and returns once it answers."""
SESSIONS: Final = 12
CUT: Final = """
SELECT * FROM run_command_on_workers($$
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE usename = current_user AND pid <> pg_backend_pid() AND application_name LIKE 'citus_internal%'
$$)
"""
SELECT_SERVER: Final = """
SELECT nodename || ':' || nodeport
FROM pg_dist_placement
JOIN pg_dist_node USING (groupid)
WHERE shardid = get_shard_id_for_distribution_column('sessions', $1::text)
"""


class Writers:
    """Tasks that add numbered messages to sessions, each its own, and remember what was answered."""

    def __init__(self, memory: PostgresConversationMemory) -> None:
        self._memory = memory
        self.stored: dict[str, list[str]] = {f"session {number}": [] for number in range(SESSIONS)}
        self.failed: list[Exception] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write until the block ends."""
        for name in self.stored:
            await self._memory.create_session(session_id=name)
        ended = asyncio.Event()
        tasks = [asyncio.create_task(self._write(name, ended)) for name in self.stored]
        try:
            yield
        finally:
            ended.set()
            await asyncio.gather(*tasks)

    async def wait_for(self, more: int) -> None:
        """Wait until each session has that many more messages."""
        goal = {name: len(ids) + more for name, ids in self.stored.items()}

        async def is_reached() -> bool:
            return bool(self.failed) or all(len(self.stored[name]) >= wanted for name, wanted in goal.items())

        await wait_until(is_reached, seconds=120)

    async def _write(self, name: str, ended: asyncio.Event) -> None:
        while not ended.is_set():
            id_ = f"message {len(self.stored[name]) + 1}"
            try:
                await self._memory.add_message(name, "user", "Hello", message_id=id_)
            except Exception as error:  # noqa: BLE001 - each is reported
                self.failed.append(error)
                return
            self.stored[name].append(id_)


async def histories(memory: PostgresConversationMemory, writers: Writers) -> dict[str, list[str]]:
    """Return the ids of the stored messages by session."""
    return {name: [message["id"] for message in await memory.get_history(name)] for name in writers.stored}


@pytest.mark.asyncio
async def test_connections_between_the_servers_that_are_cut_lose_and_repeat_nothing(emptied: str) -> None:
    """The coordinator answers over a living connection that it has lost another one: the call must be retried."""
    dsn = in_schema(COORDINATOR, emptied)
    async with PostgresConversationMemory(dsn) as memory:
        writers = Writers(memory)
        async with writers.running(), connect(dsn) as connection:
            for _ in range(10):
                await writers.wait_for(2)
                await connection.fetch(CUT)
            await writers.wait_for(2)
        assert writers.failed == []
        assert await histories(memory, writers) == writers.stored


@pytest.mark.asyncio
async def test_calls_are_answered_while_the_tables_are_distributed(fresh_schema: str) -> None:
    """A handle that was opened before goes on, by statements of one server, then by those of the cluster."""
    dsn = in_schema(COORDINATOR, fresh_schema)
    async with PostgresConversationMemory(dsn) as memory:
        writers = Writers(memory)
        async with writers.running():
            await writers.wait_for(3)
            done = await distribute(f"{dsn}&citus.shard_count=4")
            assert done.is_done
            await writers.wait_for(10)
        assert writers.failed == []
        assert await histories(memory, writers) == writers.stored
    async with PostgresConversationMemory(dsn) as memory:
        await memory.add_message("session 0", "user", "Hello")
        assert len(await memory.get_history("session 0")) == len(writers.stored["session 0"]) + 1


@pytest.mark.asyncio
@pytest.mark.skipif(KILL not in os.environ, reason=f"{KILL} and {START} do not say how to kill and start a worker")
async def test_a_killed_worker_stops_its_own_sessions_only(emptied: str) -> None:
    """Sessions on other workers go on; those of the worker go on when it is back, without loss or repetition."""
    dsn = in_schema(COORDINATOR, emptied)
    async with PostgresConversationMemory(dsn) as memory:
        writers = Writers(memory)
        async with writers.running():
            await writers.wait_for(2)
        servers = {name: (await fetch_rows(dsn, SELECT_SERVER, name))[0][0] for name in writers.stored}
        assert len(set(servers.values())) == 2
        await _run(os.environ[KILL])
        try:
            with deadline(5):
                outcomes = dict(
                    zip(
                        servers,
                        await asyncio.gather(
                            *(memory.add_message(name, "user", "Hello", message_id="during") for name in servers),
                            return_exceptions=True,
                        ),
                        strict=True,
                    )
                )
        finally:
            await _run(os.environ[START])
        stopped = {servers[name] for name, outcome in outcomes.items() if isinstance(outcome, BaseException)}
        assert len(stopped) == 1
        for name, outcome in outcomes.items():
            assert isinstance(outcome, BackendUnavailableError) if servers[name] in stopped else outcome == "during"
        for name in servers:
            await memory.add_message(name, "user", "Hello", message_id="during")
            writers.stored[name].append("during")
        assert await histories(memory, writers) == writers.stored


async def _run(command: str) -> None:
    process = await asyncio.create_subprocess_shell(command)
    assert await process.wait() == 0
