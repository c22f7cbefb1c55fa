"""Tests a PostgreSQL memory's pool: idle connections are closed, dead ones replaced, forgotten ones dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from raw_postgres import CONNECTIONS, OPEN, execute, fetch_rows, wait_until_none

from flux_memory import PostgresConversationMemory
from flux_memory.backends.postgres import pool as postgres_pool
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.dsn import parse_dsn
from flux_memory.errors import BackendUnavailableError, FluxMemoryError, MemoryClosedError


@pytest_asyncio.fixture(params=["own", "borrowed"])
async def memory(request: pytest.FixtureRequest, flux_memory_postgres_dsn: str) -> AsyncIterator[Any]:
    """A memory with its own pool, and one with a borrowed pool."""
    if request.param == "own":
        async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
            yield memory
    else:
        async with (
            asyncpg.create_pool(flux_memory_postgres_dsn, min_size=1, max_size=5) as pool,
            PostgresConversationMemory(pool=pool) as memory,
        ):
            yield memory


@pytest.mark.asyncio
async def test_rolled_back_adds_are_retried_a_bounded_number_of_times(
    memory: Any, flux_memory_postgres_dsn: str
) -> None:
    """A counter reset by hand makes every add fail: the call ends with an error of the library and stores nothing."""
    session = await memory.create_session()
    await memory.add_message(session, "user", "first")
    await execute(flux_memory_postgres_dsn, "UPDATE sessions SET message_count = 0")
    with pytest.raises(FluxMemoryError, match="duplicate key value violates unique constraint"):
        await memory.add_message(session, "user", "second")
    assert await fetch_rows(flux_memory_postgres_dsn, "SELECT content FROM messages") == [("first",)]


@pytest.mark.asyncio
async def test_a_connection_that_is_dropped_between_two_steps_of_the_driver_is_lost(
    flux_memory_postgres_dsn: str,
) -> None:
    """The driver then reads what it cleared: the error must be the library's."""
    async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
        await memory.ping()

        async def drop(connection: Any) -> None:
            connection.terminate()
            await connection._do_execute("SELECT 1", lambda *_: None, None)

        state = CallState(writes=False)
        with pytest.raises(BackendUnavailableError, match="AttributeError in the driver"):
            await memory._run(state, lambda store: store.executor.run(state, drop), 0.3)
        await memory.ping()


@pytest.mark.asyncio
async def test_a_connection_that_the_driver_cannot_use_is_replaced(flux_memory_postgres_dsn: str) -> None:
    """A server that ends a session says so before the connection closes; a statement sent in between runs again."""
    used: list[Any] = []
    async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:

        async def select(connection: Any) -> Any:
            used.append(connection)
            if len(used) == 1:
                raise asyncpg.InternalClientError("cannot switch to state 18; another operation (2) is in progress")
            return await connection.fetchval("SELECT 1")

        await memory.ping()
        state = CallState(writes=False)
        assert await memory._run(state, lambda store: store.executor.run(state, select), 5.0) == 1
    assert used[0] is not used[1]
    assert used[0].is_closed()


@pytest.mark.asyncio
async def test_unneeded_connections_are_closed(
    named_dsn: str, flux_memory_postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a burst the pool shrinks to `min_size` connections, and can grow again."""
    monkeypatch.setattr(postgres_pool, "_IDLE_SECONDS", 0.05)
    async with PostgresConversationMemory(named_dsn, min_size=1, max_size=4) as memory:
        for _ in range(2):
            # Held until all are open: on a busy machine the first may be idle for too long before the last one is open.
            held = await asyncio.gather(*(memory._pool.take() for _ in range(4)))
            assert memory._pool.size == 4
            for connection in held:
                memory._pool.put_back(connection)
            await wait_until_none(flux_memory_postgres_dsn, OPEN.replace("count(*)", "count(*) - 1"))


@pytest.mark.asyncio
async def test_a_forgotten_handle_warns_and_drops_its_connections(
    named_dsn: str, flux_memory_postgres_dsn: str
) -> None:
    """The warning names the handle without the password, and the server keeps no idle connection."""
    memory = PostgresConversationMemory(named_dsn)
    await memory.count_sessions()
    forgotten = [memory]
    del memory
    with pytest.warns(
        ResourceWarning, match=r"PostgresConversationMemory\('postgresql://\w+:\*\*\*@.* was never closed"
    ):
        forgotten.clear()
    await wait_until_none(flux_memory_postgres_dsn, OPEN)


@pytest.mark.asyncio
async def test_a_forgotten_handle_on_a_borrowed_pool_leaves_the_pool_alone(flux_memory_postgres_dsn: str) -> None:
    """The pool belongs to its owner, also when the handle is forgotten."""
    async with asyncpg.create_pool(flux_memory_postgres_dsn, min_size=1) as pool:
        memory = PostgresConversationMemory(pool=pool)
        await memory.count_sessions()
        forgotten = [memory]
        del memory
        with pytest.warns(ResourceWarning, match=r"PostgresConversationMemory\('a borrowed pool'\) was never closed"):
            forgotten.clear()
        assert await pool.fetchval("SELECT 1") == 1


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_a_connection_that_hangs(named_dsn: str, flux_memory_postgres_dsn: str) -> None:
    """A statement that runs past the grace period is dropped with its connection."""
    memory = PostgresConversationMemory(named_dsn, timeout=0.3)
    await memory.count_sessions()
    store = await memory._life.opened()
    work = store.executor.run(CallState(writes=False), lambda connection: connection.fetch("SELECT pg_sleep(30)"))
    hanging = asyncio.create_task(work)
    await asyncio.wait([hanging], timeout=0.05)
    await asyncio.wait_for(memory.close(), 5)
    with pytest.raises(MemoryClosedError):
        await hanging
    await execute(flux_memory_postgres_dsn, f"SELECT pg_terminate_backend(pid) {CONNECTIONS}")


@pytest.mark.asyncio
async def test_a_call_that_waits_for_a_connection_is_told_that_the_pool_is_closed() -> None:
    """The call was not cancelled by its caller, so it must not end with `CancelledError`."""
    release = asyncio.Event()
    reached = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await release.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = parse_dsn(f"postgresql://user:secret@127.0.0.1:{port}/db?sslmode=disable")
        pool = postgres_pool.OwnPool(target, 0, 1, 30.0)
        call = asyncio.create_task(pool.take())
        await reached.wait()
        await pool.close(0.1)
        with pytest.raises(MemoryClosedError):
            await call
        release.set()


@pytest.mark.asyncio
async def test_a_connection_that_is_lost_to_a_close_is_not_replaced(
    flux_memory_postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed pool opens no connection: the caller that waits for one learns that the memory is closed."""
    monkeypatch.setattr(postgres_pool, "_SUSPECT_SECONDS", -1.0)
    pool = postgres_pool.OwnPool(parse_dsn(flux_memory_postgres_dsn), 1, 1, 5.0)
    pool.put_back(await pool.take())
    taking = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    pool.terminate()
    with pytest.raises(MemoryClosedError):
        await taking
    assert pool.size == 0


@pytest.mark.asyncio
async def test_a_caller_that_outlived_its_cancellation_outlives_that_of_an_opening(
    flux_memory_postgres_dsn: str,
) -> None:
    """A task that saves its work when it is cancelled gets a connection, even if the opening is cancelled too."""
    pool = postgres_pool.OwnPool(parse_dsn(flux_memory_postgres_dsn), 0, 1, 5.0)

    async def save_what_is_left() -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await pool.take()

    saving = asyncio.create_task(save_what_is_left())
    await asyncio.sleep(0)
    saving.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert pool._openings
    for opening in pool._openings:
        opening.cancel()
    pool.put_back(await saving)
    await pool.close(1.0)
    assert pool.size == 0
