"""Tests a PostgreSQL server that dies, stops, restarts or is full: acknowledged messages are stored once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cluster import Cluster, run_blocking, run_cluster
from fault_load import Load, run_round
from fault_report import Fault
from raw_postgres import CONNECTIONS, connect, fetch_rows, with_application_name

from flux_memory import BackendUnavailableError, PostgresConversationMemory, deadline


@pytest.fixture(scope="module")
def own_server() -> Iterator[Cluster]:
    """A durable server for this module."""
    with run_cluster({"max_connections": "30", "superuser_reserved_connections": "3"}) as made:
        yield made


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("how", "usual"),
    [
        pytest.param(
            signal.SIGKILL, 4, id="kill -9", marks=pytest.mark.fault("kill -9 of the postmaster", backend="postgres")
        ),
        pytest.param(
            signal.SIGQUIT, 2, id="immediate", marks=pytest.mark.fault("immediate shutdown", backend="postgres")
        ),
        pytest.param(signal.SIGINT, 2, id="fast", marks=pytest.mark.fault("fast shutdown", backend="postgres")),
    ],
)
async def test_the_server_goes_and_comes_back_amid_commits(
    own_server: Cluster, fault: Fault, tmp_path: Path, how: signal.Signals, usual: int
) -> None:
    """Every acknowledged message is stored once and in order, the handle recovers by itself, and no call fails."""

    async def restart(_: Load) -> None:
        await run_blocking(own_server.restart, how)

    for number in fault.rounds(usual, 50):
        load = await run_round(fault, own_server.dsn, tmp_path / str(number), restart)
        assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("kill -9 of one backend", backend="postgres")
async def test_one_backend_is_killed(own_server: Cluster, fault: Fault, tmp_path: Path) -> None:
    """The server ends all its connections and recovers; the handle retries its calls."""

    async def kill(load: Load) -> None:
        for pid, *_ in (await fetch_rows(own_server.dsn, f"SELECT pid {CONNECTIONS}"))[:1]:
            os.kill(pid, signal.SIGKILL)
        await load.wait_for_calls(20)

    for number in fault.rounds(3, 50):
        load = await run_round(
            fault, with_application_name(own_server.dsn), tmp_path / str(number), kill, stored_at=own_server.dsn
        )
        assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("pg_terminate_backend of busy connections", backend="postgres")
async def test_busy_connections_are_terminated(own_server: Cluster, fault: Fault, tmp_path: Path) -> None:
    """Acknowledged calls are stored and the others are retried: no caller sees an error."""

    async def terminate(load: Load) -> None:
        for _ in range(5):
            await fetch_rows(own_server.dsn, f"SELECT pg_terminate_backend(pid) {CONNECTIONS}")
            await load.wait_for_calls(20)

    for number in fault.rounds(3, 50):
        load = await run_round(
            fault, with_application_name(own_server.dsn), tmp_path / str(number), terminate, stored_at=own_server.dsn
        )
        assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("pg_terminate_backend of idle connections", backend="postgres")
async def test_idle_connections_are_terminated(own_server: Cluster, fault: Fault) -> None:
    """No call fails because of a connection that died while idle, even right after its death."""
    async with PostgresConversationMemory(with_application_name(own_server.dsn), min_size=4) as memory:
        session = await memory.create_session()
        await asyncio.gather(*(memory.count_sessions() for _ in range(10)))
        for number in fault.rounds(10, 100):
            await fetch_rows(own_server.dsn, f"SELECT pg_terminate_backend(pid) {CONNECTIONS}")
            assert await memory.add_message(session, "user", str(number), message_id=f"m{number}") == f"m{number}"
            assert [message["content"] for message in await memory.get_history(session, 1)] == [str(number)]
            fault.add(acknowledged=2)


@pytest.mark.asyncio
@pytest.mark.fault("restart between calls", backend="postgres")
async def test_the_server_is_restarted_between_calls(own_server: Cluster, fault: Fault) -> None:
    """The next call finds the restarted server."""
    async with PostgresConversationMemory(own_server.dsn) as memory:
        session = await memory.create_session()
        for number in fault.rounds(2, 50):
            await run_blocking(own_server.restart, signal.SIGINT)
            await memory.add_message(session, "user", str(number))
            fault.add(acknowledged=1)
        stored = [message["content"] for message in await memory.get_history(session)]
        assert stored == [str(number) for number in range(len(stored))]


@pytest.mark.asyncio
@pytest.mark.fault("max_connections reached", backend="postgres")
async def test_the_server_has_no_connection_to_spare(own_server: Cluster, fault: Fault) -> None:
    """A call waits for a free connection until its deadline; then the error says why, and nothing was stored."""
    async with connect(own_server.dsn) as admin:
        await admin.execute("CREATE ROLE crowd LOGIN PASSWORD 'crowd' CONNECTION LIMIT 2")
        await admin.execute("GRANT ALL ON SCHEMA public TO crowd")
        dsn = own_server.dsn.replace(own_server.dsn.partition("//")[2].partition("@")[0], "crowd:crowd")
        try:
            async with PostgresConversationMemory(own_server.dsn) as owner:
                session = await owner.create_session()
            await admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO crowd")
            async with PostgresConversationMemory(dsn, timeout=20) as memory:
                async with connect(dsn), connect(dsn):
                    began = asyncio.get_running_loop().time()
                    with deadline(1), pytest.raises(BackendUnavailableError, match=r"too many connections.*max_conn"):
                        await memory.add_message(session, "user", "none free")
                    took = asyncio.get_running_loop().time() - began
                    waiting = asyncio.create_task(memory.add_message(session, "user", "waited"))
                    await asyncio.wait([waiting], timeout=0.3)
                    assert not waiting.done()
                await waiting
                assert [message["content"] for message in await memory.get_history(session)] == ["waited"]
                assert took < 2
                fault.add(acknowledged=1, call=took)
        finally:
            await admin.execute("DROP OWNED BY crowd; DROP ROLE crowd")
