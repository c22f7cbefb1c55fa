"""Tests an interrupted first use of a PostgreSQL database: the schema is complete or absent, and use continues."""

from __future__ import annotations

import asyncio
import signal

import pytest
from fault_cluster import Cluster, run_blocking
from fault_report import Fault
from postgres_proxy import PostgresProxy
from raw_postgres import dump_database, execute, fetch_rows, make_original

from flux_memory import BackendUnavailableError, PostgresConversationMemory
from flux_memory.testkit.servers import Server

TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"


@pytest.mark.asyncio
@pytest.mark.fault("black hole while the schema is made", backend="postgres")
async def test_a_black_hole_in_the_transaction_of_the_schema(flux_empty_database: str, fault: Fault) -> None:
    """The call ends in time, though the driver would wait forever for its ROLLBACK; then the handle opens."""
    with PostgresProxy(flux_empty_database) as proxy:
        async with PostgresConversationMemory(proxy.dsn, timeout=1.5) as memory:
            proxy.silence_at("query")
            began = asyncio.get_running_loop().time()
            with pytest.raises(BackendUnavailableError):
                await memory.create_session()
            took = asyncio.get_running_loop().time() - began
            assert took < 2.5
            proxy.heal()
            await memory.create_session(session_id="s")
            assert await fetch_rows(flux_empty_database, "SELECT id FROM sessions") == [("s",)]
            fault.add(acknowledged=1, call=took)


@pytest.mark.asyncio
@pytest.mark.fault("cut after any byte of an upgrade", backend="postgres")
async def test_cut_after_each_byte_of_an_upgrade(flux_postgres_server: Server, fault: Fault) -> None:
    """The adoption of an original database is atomic under a break at any byte."""
    expected = None
    places = fault.rounds(8, 80)
    for place in places:
        dsn = flux_postgres_server.create_database()
        try:
            await make_original(dsn)
            with PostgresProxy(dsn) as proxy:
                proxy.cut(after=1500 + place * 9000 // len(places))
                async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
                    assert await memory.count_sessions() == 2
                    assert len(await memory.get_history("one")) == 4
            await execute(dsn, "UPDATE flux_memory_schema SET applied_at = '2000-01-01'")
            await execute(dsn, "UPDATE sessions SET revision = '00000000-0000-0000-0000-000000000000'")
            found = await dump_database(dsn)
            expected = expected or found
            assert found == expected
        finally:
            flux_postgres_server.drop_database(dsn)
    fault.add(rounds=len(places), acknowledged=2 * len(places))


@pytest.mark.asyncio
@pytest.mark.fault("kill -9 while the schema is made", backend="postgres")
async def test_the_server_is_killed_while_the_schema_is_made(own_server: Cluster, fault: Fault) -> None:
    """Handles that race to a dying server's database all open it later, and find one complete schema."""
    for number in fault.rounds(2, 50):
        await execute(
            own_server.dsn, "DROP TABLE IF EXISTS messages, session_details, sessions, feedback, flux_memory_schema"
        )
        handles = [PostgresConversationMemory(own_server.dsn, min_size=1) for _ in range(3)]
        try:
            calls = [asyncio.create_task(handle.create_session()) for handle in handles]
            await asyncio.wait(calls, timeout=number % 10 / 200)
            await run_blocking(own_server.restart, signal.SIGKILL)
            await asyncio.gather(*calls)
            assert await handles[0].count_sessions() == 3
            assert await fetch_rows(own_server.dsn, TABLES) == [(5,)]
            fault.add(acknowledged=3)
        finally:
            for handle in handles:
                await handle.close()
