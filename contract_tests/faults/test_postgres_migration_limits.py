"""Tests migrations to a server with limits or a full disk, through a pooler, or with a replica: reruns complete."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fault_cluster import Cluster, primary_and_replica, run_cluster, wait_for_replica
from fault_migration import MESSAGES, SESSIONS, migrate_succeeds, prepare_target
from fault_pooler import Pooler, with_pooler
from fault_report import Fault
from raw_postgres import connect, execute, fetch_rows, set_defaults, with_parameter
from small_disk import fill_disk, mount_small_disk
from transfer_memories import OTHER, Trigger, complete_migration, make_random_file, move, read_target
from transfer_processes import start_migration, wait_for_lock
from waiting import wait_until

from flux_memory import BackendUnavailableError, FluxMemoryError, PostgresConversationMemory
from flux_memory.errors import MigrationError
from flux_memory.testkit.servers.databases import with_database
from flux_memory.transfer import Plan, Report, Status, migrate

LIMITS = {"statement_timeout": "2s", "idle_in_transaction_session_timeout": "2s"}
NEW_LIMITS = "SELECT name FROM pg_settings WHERE name = 'transaction_timeout'"
"""The limits that not every server has."""
WAITED_LONGER = """
SELECT max(clock_timestamp() - query_start) > '2.2 s' FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
RESTED = """
SELECT count(*) = 0 FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND clock_timestamp() - state_change < '0.6 s'
"""
"""Whether the limit below has passed for each other connection, or closed it."""
FULL = r"the server's disk is full.*run the same command again"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the original application."""
    made = tmp_path_factory.mktemp("limited") / "chat.db"
    make_random_file(made, sessions=SESSIONS, messages=MESSAGES)
    return made


@pytest.fixture(scope="module")
def own_server() -> Iterator[Cluster]:
    """A server for this module."""
    with run_cluster(durable=False) as made:
        yield made


@pytest.mark.fault("migration: statement_timeout", backend="postgres")
def test_the_limits_of_a_database_stop_no_migration(path: Path, flux_empty_database: str, fault: Fault) -> None:
    """The limits target an application's statements; loading and waiting for writers may take longer."""
    dsn = flux_empty_database
    asyncio.run(prepare_target(dsn, []))

    async def run() -> Status:
        limits = LIMITS | {name: "2s" for (name,) in await fetch_rows(dsn, NEW_LIMITS)}
        async with set_defaults(dsn, **limits), connect(dsn) as other:
            await other.execute("; ".join(f"SET {name} = 0" for name in limits))
            await other.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            migrating = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=dsn)))
            await wait_for_lock(other)

            async def waited() -> bool:
                return migrating.done() or (await fetch_rows(dsn, WAITED_LONGER))[0][0]

            await wait_until(waited)
            await other.execute("COMMIT")
            return (await migrating).status

    assert asyncio.run(run()) is Status.IDENTICAL
    fault.add(acknowledged=SESSIONS + MESSAGES)


def test_a_large_file_is_read_beside_an_idle_connection(path: Path, flux_empty_database: str) -> None:
    """A limit on idle sessions does not close the connection while the file is read."""
    dsn = flux_empty_database

    async def rest() -> None:
        async with connect(dsn) as other:
            await wait_until(lambda: other.fetchval(RESTED))

    async def run() -> Status:
        async with set_defaults(dsn, idle_session_timeout="500ms"):
            reading = Trigger("Preflight", lambda: asyncio.run_coroutine_threadsafe(rest(), beside).result())
            return (await migrate(Plan(sqlite_path=path, postgres_dsn=dsn), reading)).status

    beside = asyncio.new_event_loop()
    thread = threading.Thread(target=beside.run_forever)
    thread.start()
    try:
        assert asyncio.run(run()) is Status.IDENTICAL
    finally:
        beside.call_soon_threadsafe(beside.stop)
        thread.join()
        beside.close()


@pytest.mark.fault("migration: lock_timeout", backend="postgres")
def test_a_lock_that_is_never_released_ends_the_migration(path: Path, flux_empty_database: str, fault: Fault) -> None:
    """A lock on a session that gets messages gives a clear error, and the next run adds the missing rows."""
    dsn = flux_empty_database
    assert migrate_succeeds(path, dsn)
    expected = read_target(dsn)

    async def run() -> None:
        await execute(dsn, "DELETE FROM messages", "UPDATE sessions SET message_count = 0")
        async with set_defaults(dsn, lock_timeout="100ms"), connect(dsn) as other, other.transaction():
            await other.execute("SELECT FROM sessions ORDER BY id DESC LIMIT 1 FOR UPDATE")
            with pytest.raises(BackendUnavailableError, match="another transaction holds a lock"):
                await migrate(Plan(sqlite_path=path, postgres_dsn=dsn, batch_size=50))

    asyncio.run(run())
    assert move(path, dsn, batch_size=50).exit_code == 0
    assert read_target(dsn)[1] == expected[1]
    fault.add(acknowledged=SESSIONS + MESSAGES)


@pytest.fixture
def server_disk() -> Iterator[Path]:
    """A small file system for the server."""
    with mount_small_disk("32m", for_server=True) as made:
        yield made


@pytest.fixture
def small_database(own_server: Cluster, server_disk: Path) -> Iterator[str]:
    """A database with its tables and temporary files on the small disk."""
    name = server_disk.name.replace("-", "_")
    asyncio.run(execute(own_server.admin_dsn, f"CREATE TABLESPACE {name} LOCATION '{server_disk}'"))
    asyncio.run(execute(own_server.admin_dsn, f"CREATE DATABASE {name} TEMPLATE template0 TABLESPACE {name}"))
    # So little memory that the sort of digests needs the disk, too.
    asyncio.run(execute(own_server.admin_dsn, f"ALTER DATABASE {name} SET work_mem = '64kB'"))
    try:
        yield with_database(own_server.admin_dsn, name)
    finally:
        asyncio.run(execute(own_server.admin_dsn, f"DROP DATABASE {name} WITH (FORCE)", f"DROP TABLESPACE {name}"))


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with so many sessions that their digests exceed the server's working memory."""
    made = tmp_path_factory.mktemp("longer") / "chat.db"
    make_random_file(made, sessions=3000, messages=6000)
    return made


@pytest.mark.fault("migration: data disk full", backend="postgres")
@pytest.mark.parametrize("others", [[], [OTHER]], ids=["empty", "populated"])
@pytest.mark.parametrize("phase", ["Load", "Verify"])
def test_a_full_data_disk_is_named_and_room_is_enough_to_go_on(
    long_file: Path, server_disk: Path, small_database: str, fault: Fault, phase: str, others: list[str]
) -> None:
    """While rows are loaded and while they are proven; existing rows are unchanged."""
    dsn = small_database
    asyncio.run(prepare_target(dsn, others))
    trigger = Trigger(phase, lambda: fill_disk(server_disk))
    with pytest.raises(MigrationError, match=FULL):
        asyncio.run(migrate(Plan(sqlite_path=long_file, postgres_dsn=dsn), trigger))
    if phase == "Load" and not others:
        assert read_target(dsn) == ([], [])
    (server_disk / "filler").unlink()
    complete_migration(long_file, dsn, kept=len(others))
    fault.add(acknowledged=9000)


@pytest.mark.fault("migration: data disk full", backend="postgres")
def test_the_command_says_that_the_disk_is_full(
    long_file: Path, server_disk: Path, small_database: str, fault: Fault
) -> None:
    """Exit code 1 and a sentence, without a traceback; with free space the migration completes."""
    dsn = small_database
    asyncio.run(prepare_target(dsn, []))
    filler = fill_disk(server_disk)
    process = start_migration(long_file, dsn)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("FAILED")
    assert "the server's disk is full" in errors
    assert "Traceback" not in errors
    assert read_target(dsn) == ([], [])
    filler.unlink()
    complete_migration(long_file, dsn, kept=0)
    fault.add(acknowledged=9000)


@pytest.mark.fault("migration: WAL disk full", backend="postgres")
def test_a_full_wal_disk(tmp_path: Path, fault: Fault) -> None:
    """The server panics; with free space it starts again and gets the missing rows."""
    path = tmp_path / "chat.db"
    make_random_file(path, sessions=10, messages=2000)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE messages SET content = hex(randomblob(10000))")
    with mount_small_disk("96M", for_server=True) as wal, run_cluster() as own_server:
        own_server.end(signal.SIGINT)
        own_server.run(f'cp -a "$1/pg_wal" {wal}/ && rm -r "$1/pg_wal" && ln -s {wal}/pg_wal "$1/pg_wal"', "postgres")
        own_server.start()
        asyncio.run(prepare_target(own_server.dsn, []))
        trigger = Trigger("Load", lambda: fill_disk(wal))
        with pytest.raises(FluxMemoryError):
            asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=own_server.dsn), trigger))
        (wal / "filler").unlink()
        # The server may be going down, running again, or gone.
        with suppress(FileNotFoundError, ProcessLookupError):
            own_server.end(signal.SIGQUIT)
        own_server.start()
        assert read_target(own_server.dsn) == ([], [])
        assert move(path, own_server.dsn).exit_code == 0
        assert len(read_target(own_server.dsn)[1]) == 2000
    fault.add(acknowledged=2010)


@pytest.mark.parametrize("others", [[], [OTHER]], ids=["empty", "populated"])
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.fault("migration: PgBouncer restarted", backend="postgres")),
        pytest.param(signal.SIGKILL, marks=pytest.mark.fault("migration: kill -9 of PgBouncer", backend="postgres")),
    ],
)
def test_the_pooler_ends(
    path: Path, pooler: Pooler, flux_empty_database: str, fault: Fault, how: signal.Signals, others: list[str]
) -> None:
    """Through PgBouncer in transaction mode a migration does not depend on a session."""
    dsn = flux_empty_database
    asyncio.run(prepare_target(dsn, others))
    through = with_parameter(with_pooler(dsn, pooler), "statement_cache_size=0")
    trigger = Trigger("Load", lambda: pooler.end(how), after_rows=500)
    with pytest.raises(BackendUnavailableError):
        asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=through, batch_size=50), trigger))
    assert trigger.acted
    pooler.start()
    assert move(path, through, batch_size=50).exit_code == 0
    sessions, messages = read_target(dsn)
    assert (len(sessions), len(messages)) == (SESSIONS + len(others), MESSAGES)
    fault.add(acknowledged=SESSIONS + MESSAGES)


def test_others_share_the_pooler(path: Path, pooler: Pooler, flux_empty_database: str) -> None:
    """Each transaction may use another server process, so nothing may depend on the last one's state."""
    dsn = flux_empty_database
    asyncio.run(prepare_target(dsn, [OTHER]))
    through = with_parameter(with_pooler(dsn, pooler), "statement_cache_size=0")

    async def chat(migrating: asyncio.Task[Report]) -> None:
        async with PostgresConversationMemory(through, min_size=4) as memory:
            while not migrating.done():
                await asyncio.gather(*(memory.count_sessions() for _ in range(8)))

    async def run() -> Status:
        migrating = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=through, batch_size=20)))
        await chat(migrating)
        return (await migrating).status

    assert asyncio.run(run()) is Status.CONTAINED
    assert len(read_target(dsn)[1]) == MESSAGES


@pytest.mark.fault("migration: kill -9 of the primary, replica promoted", backend="postgres")
def test_a_replica_is_promoted(path: Path, fault: Fault) -> None:
    """The second run finds the new primary among the hosts of the DSN, and the rows that were replicated to it."""
    with primary_and_replica() as (primary, replica, both):
        asyncio.run(prepare_target(both, [OTHER]))
        asyncio.run(wait_for_replica(primary, replica))
        trigger = Trigger("Load", lambda: primary.end(signal.SIGKILL), after_rows=500)
        with pytest.raises(BackendUnavailableError):
            asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=both, batch_size=50), trigger))
        assert trigger.acted
        replica.promote()
        assert move(path, both, batch_size=50).exit_code == 0
        sessions, messages = read_target(replica.dsn)
        assert (len(sessions), len(messages)) == (SESSIONS + 1, MESSAGES)
    fault.add(acknowledged=SESSIONS + MESSAGES)
