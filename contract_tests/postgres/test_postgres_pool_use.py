"""Tests the use of a handle's connections: none leaks, a borrowed pool stays its owner's, dead ones are replaced."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from raw_postgres import (
    BUSY,
    CONNECTIONS,
    OPEN,
    connect,
    execute,
    fetch_rows,
    wait_until_none,
    with_application_name,
)
from waiting import becomes_true

from flux_memory import PostgresConversationMemory, deadline
from flux_memory.errors import (
    BackendUnavailableError,
    ConflictError,
    MemoryClosedError,
    OutcomeUnknownError,
    SchemaError,
    SessionNotFoundError,
)
from flux_memory.schema.postgres import LOCK
from flux_memory.testkit import Proxy


@asynccontextmanager
async def lock_session(dsn: str, session_id: str) -> AsyncIterator[None]:
    """Hold the lock of a session's row."""
    async with connect(dsn) as other, other.transaction():
        await other.execute("SELECT FROM sessions WHERE id = $1 FOR UPDATE", session_id)
        yield


@pytest.mark.asyncio
async def test_a_borrowed_pool_stays_its_owners(flux_memory_postgres_dsn: str) -> None:
    """The pool is never closed, each connection goes back, and the owner's codecs have no effect on the memory."""

    async def codecs(connection: Any) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        await connection.set_type_codec(
            "timestamp", encoder=str, decoder=lambda text: f"theirs {text}", schema="pg_catalog", format="text"
        )

    async with asyncpg.create_pool(flux_memory_postgres_dsn, min_size=1, max_size=2, init=codecs) as pool:
        async with PostgresConversationMemory(pool=pool) as memory:
            assert repr(memory) == "PostgresConversationMemory('a borrowed pool')"
            session = await memory.create_session(metadata={"a": [1, 2.0]})
            await asyncio.gather(*(memory.add_message(session, "user", f"{n}", {"n": n}) for n in range(10)))
            messages = await memory.get_history(session)
            assert {message["metadata"]["n"] for message in messages} == set(range(10))
            assert (await memory.get_sessions(metadata={"a": [2]}))[0]["metadata"] == {"a": [1, 2.0]}
        with pytest.raises(MemoryClosedError):
            await memory.count_sessions()
        assert not pool._closed
        assert pool.get_idle_size() == pool.get_size()
        assert await pool.fetchval("SELECT count(*) FROM messages") == 10
    async with PostgresConversationMemory(pool=pool) as memory:
        with pytest.raises(BackendUnavailableError, match="a borrowed pool: pool is closed; pass an open one"):
            await memory.count_sessions()
    async with PostgresConversationMemory(pool=asyncpg.create_pool(flux_memory_postgres_dsn)) as memory:
        with pytest.raises(BackendUnavailableError, match="pool is not initialized; pass an open one, from 'await"):
            await memory.count_sessions()


@pytest.mark.asyncio
async def test_an_exhausted_pool_ends_the_call_in_time(flux_memory_postgres_dsn: str, named_dsn: str) -> None:
    """Calls that wait for a connection or a lock end at their deadline; afterwards everything works."""
    async with PostgresConversationMemory(named_dsn, min_size=1, max_size=1, timeout=0.4) as memory:
        session = await memory.create_session(session_id="s")
        async with lock_session(flux_memory_postgres_dsn, "s"):
            began = asyncio.get_running_loop().time()
            with deadline(1):
                adding = asyncio.ensure_future(memory.add_message(session, "user", "x"))
            await asyncio.sleep(0)
            outcomes = await asyncio.gather(*(memory.count_sessions() for _ in range(3)), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [BackendUnavailableError] * 3
            with pytest.raises(OutcomeUnknownError, match="within 1 s; whether the call took effect is not"):
                await adding
            assert asyncio.get_running_loop().time() - began < 3
        await wait_until_none(flux_memory_postgres_dsn, BUSY)
        assert await memory.count_sessions() == 1
        await memory.add_message(session, "user", "afterwards")
        assert (await memory.get_history(session))[-1]["content"] == "afterwards"


@pytest.mark.asyncio
async def test_errors_and_cancellations_leak_no_connection(flux_memory_postgres_dsn: str, named_dsn: str) -> None:
    """After many calls that failed or were cancelled at any moment, all connections are idle and usable."""
    async with PostgresConversationMemory(named_dsn, min_size=1, max_size=2, timeout=10) as memory:
        await memory.create_session(session_id="s")
        for turns in range(40):
            tasks = [
                asyncio.create_task(memory.add_message("s", "user", "x")),
                asyncio.create_task(memory.add_message("none", "user", "x")),
                asyncio.create_task(memory.get_history("s")),
                asyncio.create_task(memory.update_session_title("s", "x")),
            ]
            for _ in range(turns % 20):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with lock_session(flux_memory_postgres_dsn, "s"):
            stuck = [asyncio.create_task(memory.add_message("s", "user", "stuck")) for _ in range(4)]
            await asyncio.wait(stuck, timeout=0.05)
            for task in stuck:
                task.cancel()
            assert set(map(type, await asyncio.gather(*stuck, return_exceptions=True))) == {asyncio.CancelledError}
        kinds = await asyncio.gather(
            memory.create_session(session_id="s"),
            memory.add_message("none", "user", "x"),
            memory.update_session_title("none", "x"),
            return_exceptions=True,
        )
        assert [type(kind) for kind in kinds] == [ConflictError, SessionNotFoundError, SessionNotFoundError]
        await asyncio.gather(*(memory.add_message("s", "user", "fine") for _ in range(10)))
        await asyncio.gather(*(memory.count_sessions() for _ in range(10)))
        await wait_until_none(flux_memory_postgres_dsn, BUSY)
        ((still_open,),) = await fetch_rows(flux_memory_postgres_dsn, OPEN)
        assert still_open <= 2
        stored = await fetch_rows(
            flux_memory_postgres_dsn, "SELECT seq FROM messages WHERE session_id = 's' ORDER BY seq"
        )
        assert stored == [(n,) for n in range(1, len(stored) + 1)]
    await wait_until_none(flux_memory_postgres_dsn, OPEN)


@pytest.mark.asyncio
async def test_a_failed_opening_leaks_no_connection(flux_empty_database: str) -> None:
    """A refused database leaves no connection behind, after any number of attempts."""
    await execute(flux_empty_database, "CREATE TABLE sessions (token text)")
    async with PostgresConversationMemory(with_application_name(flux_empty_database)) as memory:
        for _ in range(5):
            with pytest.raises(SchemaError):
                await memory.count_sessions()
        await wait_until_none(flux_empty_database, OPEN)


@pytest.mark.asyncio
async def test_the_pool_fills_while_the_schema_is_checked(flux_empty_database: str) -> None:
    """The checks take several round trips, and connecting takes some more; far from the server one hides the other."""
    with Proxy(flux_empty_database) as proxy:
        async with connect(flux_empty_database) as other, PostgresConversationMemory(proxy.dsn, min_size=3) as memory:
            async with other.transaction():
                await other.execute(LOCK)
                call = asyncio.create_task(memory.count_sessions())
                assert await asyncio.to_thread(becomes_true, lambda: proxy.connections == 3)
                assert not call.done()
            assert await call == 0
            assert proxy.connections == 3


@pytest.mark.asyncio
async def test_connections_that_the_server_ended_are_replaced(flux_memory_postgres_dsn: str, named_dsn: str) -> None:
    """Idle connections die when a server restarts or a firewall drops them: the handle opens new ones."""
    async with PostgresConversationMemory(named_dsn, min_size=2, max_size=3) as memory:
        await asyncio.gather(*(memory.count_sessions() for _ in range(6)))
        ended = await fetch_rows(flux_memory_postgres_dsn, "SELECT pid, pg_terminate_backend(pid) " + CONNECTIONS)
        assert ended
        pids = ", ".join(str(pid) for pid, _ in ended)
        await wait_until_none(flux_memory_postgres_dsn, f"SELECT count(*) FROM pg_stat_activity WHERE pid IN ({pids})")
        for _ in range(4):
            assert await memory.count_sessions() == 0
        assert await asyncio.gather(*(memory.count_sessions() for _ in range(6))) == [0] * 6


@pytest.mark.asyncio
async def test_closing_while_calls_are_in_flight_loses_none(flux_memory_postgres_dsn: str) -> None:
    """Calls that started before `close()` are answered and stored; no connection is left."""
    memory = PostgresConversationMemory(flux_memory_postgres_dsn)
    session = await memory.create_session()
    writes = [asyncio.create_task(memory.add_message(session, "user", str(number))) for number in range(50)]
    await asyncio.sleep(0)
    await asyncio.gather(*(memory.close() for _ in range(3)))
    assert len(await asyncio.gather(*writes)) == 50
    await memory.close()
    assert await fetch_rows(flux_memory_postgres_dsn, "SELECT count(*) FROM messages") == [(50,)]


@pytest.mark.asyncio
async def test_closing_while_opening(flux_memory_postgres_dsn: str) -> None:
    """A caller that had started gets an answer, and nothing stays open."""
    memory = PostgresConversationMemory(flux_memory_postgres_dsn)
    calls = [asyncio.create_task(memory.count_sessions()) for _ in range(3)]
    await asyncio.sleep(0)
    await memory.close()
    assert await asyncio.gather(*calls) == [0] * 3
    with pytest.raises(MemoryClosedError):
        await memory.count_sessions()
