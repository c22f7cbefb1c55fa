"""`pool_stats()` and `ping()`: true figures of the connections on either engine, and the time of a round trip."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from raw_postgres import connect, with_address
from sqlite_locks import WRITE_LOCK, hold_lock
from waiting import wait_until

from flux_memory import (
    BackendUnavailableError,
    ConversationMemory,
    InvalidInputError,
    MemoryClosedError,
    PoolStats,
    PostgresConversationMemory,
    SchemaError,
    deadline,
)
from flux_memory.backends.pool_stats import RECENT_WAITS
from flux_memory.sync import SyncMemory
from flux_memory.testkit import ReferenceMemory, ReferenceStore

Own = ConversationMemory | PostgresConversationMemory


@pytest.fixture(params=["sqlite", "postgres"])
def open_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Own]:
    """Opens a handle of either engine."""
    if request.param == "sqlite":
        return lambda: ConversationMemory(tmp_path / "chat.db", timeout=10)
    dsn: str = request.getfixturevalue("flux_memory_postgres_dsn")
    return lambda: PostgresConversationMemory(dsn, timeout=10)


@pytest.fixture
def locked_sessions(tmp_path: Path) -> Iterator[Path]:
    """A SQLite file that another process holds locked."""
    path = tmp_path / "locked.db"
    asyncio.run(_make(path))
    with hold_lock(path, *WRITE_LOCK):
        yield path


async def _make(path: Path) -> None:
    async with ConversationMemory(path) as memory:
        await memory.create_session(session_id="one")


@pytest.mark.asyncio
async def test_the_figures_follow_a_handle_through_its_life(open_memory: Callable[[], Own]) -> None:
    """Nothing is open before the first call; afterwards connections are idle; after `close()` all are closed."""
    memory = open_memory()
    assert memory.pool_stats() == PoolStats(
        min_size=memory.pool_stats().min_size,
        max_size=memory.pool_stats().max_size,
        **dict.fromkeys(("size", "idle", "in_use", "waiting", "acquired", "timeouts", "created", "closed"), 0),
        longest_wait_seconds=0.0,
        median_wait_seconds=0.0,
    )
    session = await memory.create_session()
    await memory.add_message(session, "user", "Hello")
    await memory.get_history(session)
    await wait_until(lambda: _is_idle(memory))
    used = memory.pool_stats()
    assert used.created == used.size >= 1
    assert used.closed == used.waiting == used.timeouts == used.in_use == 0
    assert used.acquired >= 3
    assert used.longest_wait_seconds >= used.median_wait_seconds >= 0.0
    await memory.close()
    closed = memory.pool_stats()
    assert (closed.size, closed.idle, closed.in_use) == (0, 0, 0)
    assert closed.closed == closed.created == used.created


async def _is_idle(memory: Own) -> bool:
    return memory.pool_stats().in_use == 0


@pytest.mark.asyncio
async def test_a_full_postgres_pool_shows_who_waits_and_for_how_long(flux_memory_postgres_dsn: str) -> None:
    """Calls beyond `max_size` are waiting; their waits are in the figures; one whose deadline passes is a timeout."""
    async with PostgresConversationMemory(flux_memory_postgres_dsn, min_size=0, max_size=1) as memory:
        await memory.ping()
        taken = await memory._pool.take()
        assert (memory.pool_stats().in_use, memory.pool_stats().idle) == (1, 0)
        waiting = asyncio.create_task(memory.count_sessions())
        await wait_until(lambda: _has_waiting(memory))
        with deadline(0.05), pytest.raises(BackendUnavailableError, match=r"no connection was free within 0\.05 s"):
            await memory.count_sessions()
        assert memory.pool_stats().timeouts == 1
        memory._pool.put_back(taken)
        await waiting
        stats = memory.pool_stats()
        assert stats.waiting == 0
        assert stats.longest_wait_seconds >= 0.05
        assert stats.median_wait_seconds < stats.longest_wait_seconds
        assert (stats.created, stats.size, stats.max_size, stats.min_size) == (1, 1, 1, 0)


async def _has_waiting(memory: Own) -> bool:
    return memory.pool_stats().waiting == 1


@pytest.mark.asyncio
async def test_a_lost_connection_is_counted_as_closed(flux_memory_postgres_dsn: str) -> None:
    """A connection that the server ended is closed, and the one that replaces it is created."""
    async with PostgresConversationMemory(flux_memory_postgres_dsn, min_size=1, max_size=1) as memory:
        await memory.ping()
        async with connect(flux_memory_postgres_dsn) as other:
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        await memory.ping()
        stats = memory.pool_stats()
        assert (stats.created, stats.closed, stats.size) == (2, 1, 1)


@pytest.mark.asyncio
async def test_a_borrowed_pool_has_figures_too(flux_memory_postgres_dsn: str) -> None:
    """The sizes are those of the application's pool; the memory itself opens and closes nothing."""
    async with (
        asyncpg.create_pool(flux_memory_postgres_dsn, min_size=2, max_size=3) as pool,
        PostgresConversationMemory(pool=pool) as memory,
    ):
        await memory.ping()
        async with pool.acquire():
            stats = memory.pool_stats()
        assert (stats.min_size, stats.max_size, stats.size, stats.in_use) == (2, 3, 2, 1)
        assert (stats.created, stats.closed) == (0, 0)
        assert stats.acquired >= 1


@pytest.mark.asyncio
async def test_calls_that_wait_for_a_lock_on_the_file_are_waiting(locked_sessions: Path) -> None:
    """A write that waits for another process is waiting, and a timeout once its deadline passes."""
    async with ConversationMemory(locked_sessions, timeout=10) as memory:
        await memory.count_sessions()
        with deadline(0.3):
            write = asyncio.create_task(memory.add_message("one", "user", "Hello"))
        await wait_until(lambda: _has_waiting(memory))
        with pytest.raises(BackendUnavailableError):
            await write
        assert memory.pool_stats().timeouts == 1
        assert memory.pool_stats().waiting == 0


def test_the_twin_of_another_event_loop_is_counted(open_memory: Callable[[], Own], tmp_path: Path) -> None:
    """Calls from a second event loop use connections of their own, and the figures are the sums."""

    async def use() -> None:
        async with open_memory() as memory:
            await memory.ping()
            before = memory.pool_stats()
            await asyncio.to_thread(lambda: asyncio.run(memory.ping()))
            after = memory.pool_stats()
            assert after.max_size == 2 * before.max_size
            assert after.created > before.created
            assert after.acquired > before.acquired

    asyncio.run(use())


@pytest.mark.asyncio
async def test_the_waits_that_are_kept_are_bounded(open_memory: Callable[[], Own]) -> None:
    """The figures of a handle that lives for weeks take no more memory than those of its last calls."""
    async with open_memory() as memory:
        for _ in range(RECENT_WAITS // 50 + 1):
            await asyncio.gather(*(memory.get_session("missing") for _ in range(50)))
        assert memory.pool_stats().acquired > RECENT_WAITS
        assert [len(counters.waits) for _, counters in memory._life.observers._pools] == [RECENT_WAITS]


@pytest.mark.asyncio
async def test_a_ping_returns_the_seconds_of_a_round_trip(open_memory: Callable[[], Own]) -> None:
    """The time is positive and not longer than the call; after `close()` the error is that of every call."""
    loop = asyncio.get_running_loop()
    async with open_memory() as memory:
        began = loop.time()
        seconds = await memory.ping()
        assert 0.0 < seconds <= loop.time() - began
    with pytest.raises(MemoryClosedError):
        await memory.ping()


@pytest.mark.asyncio
async def test_a_ping_of_a_server_that_is_away_fails_within_its_deadline(flux_memory_postgres_dsn: str) -> None:
    """A health check needs an answer in time, and the error of a call."""
    async with PostgresConversationMemory(with_address(flux_memory_postgres_dsn, port=1)) as memory:
        with deadline(0.5), pytest.raises(BackendUnavailableError, match="nothing listens there"):
            await memory.ping()


@pytest.mark.asyncio
async def test_a_ping_reads_the_file(tmp_path: Path) -> None:
    """A file that lost its tables fails the ping: a statement without a table would succeed."""
    path = tmp_path / "chat.db"
    async with ConversationMemory(path) as memory:
        await memory.ping()
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE flux_memory_schema")
        with pytest.raises(SchemaError, match="no such table"):
            await memory.ping()


def test_both_are_there_without_await(open_memory: Callable[[], Own]) -> None:
    """`SyncMemory` passes both on."""
    with SyncMemory(open_memory()) as memory:
        assert memory.ping() > 0.0
        assert memory.pool_stats().acquired >= 1


def test_another_memory_without_them_says_so() -> None:
    """A memory of another project has the methods of `Memory` only."""
    with SyncMemory(ReferenceMemory(ReferenceStore())) as memory:
        with pytest.raises(InvalidInputError, match=r"does not support ping\(\)"):
            memory.ping()
        with pytest.raises(InvalidInputError, match=r"does not support pool_stats\(\)"):
            memory.pool_stats()
