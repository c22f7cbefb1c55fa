"""A migration to a server that has limits or no room, through a pooler, or with a replica: a second run completes."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fault_cluster import Cluster, caught_up, cluster, pair
from fault_migration import MESSAGES, SESSIONS, ended_well, prepared
from fault_pooler import Pooler, behind
from fault_report import Fault
from raw_postgres import by_default, connected, execute, rows, with_parameter
from small_disk import fill, small_disk
from transfer_memories import OTHER, Trigger, everything, make_random, move
from transfer_processes import start_there, waiting_for_lock
from waiting import until

from flux_memory import BackendUnavailableError, FluxMemoryError, PostgresConversationMemory
from flux_memory.errors import MigrationError
from flux_memory.testkit.servers.databases import with_database
from flux_memory.transfer import Plan, Report, Status, migrate

LIMITS = {"statement_timeout": "2s", "idle_in_transaction_session_timeout": "2s"}
WAITED_LONGER = """
SELECT max(clock_timestamp() - query_start) > '2.2 s' FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
FULL = r"the server's disk is full.*run the same command again"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the original application."""
    made = tmp_path_factory.mktemp("limited") / "chat.db"
    make_random(made, sessions=SESSIONS, messages=MESSAGES)
    return made


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    """A server of this module's own."""
    with cluster(durable=False) as made:
        yield made


@pytest.mark.fault("migration: statement_timeout", backend="postgres")
def test_the_limits_of_a_database_stop_no_migration(path: Path, flux_empty_database: str, fault: Fault) -> None:
    """They are for an application's statements; loading, and waiting for those who write, takes its time."""
    dsn = flux_empty_database
    asyncio.run(prepared(dsn, []))

    async def run() -> Status:
        async with by_default(dsn, **LIMITS), connected(dsn) as other:
            await other.execute("SET idle_in_transaction_session_timeout = 0")
            await other.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            migrating = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=dsn)))
            await waiting_for_lock(other)

            async def waited() -> bool:
                return migrating.done() or (await rows(dsn, WAITED_LONGER))[0][0]

            await until(waited)
            await other.execute("COMMIT")
            return (await migrating).status

    assert asyncio.run(run()) is Status.IDENTICAL
    fault.add(acknowledged=SESSIONS + MESSAGES)


@pytest.mark.fault("migration: lock_timeout", backend="postgres")
def test_a_lock_that_is_not_to_be_had(path: Path, flux_empty_database: str, fault: Fault) -> None:
    """Somebody holds a session that gets messages: an error that says so, and the next run adds what is missing."""
    dsn = flux_empty_database
    assert ended_well(path, dsn)
    expected = everything(dsn)

    async def run() -> None:
        await execute(dsn, "DELETE FROM messages", "UPDATE sessions SET message_count = 0")
        async with by_default(dsn, lock_timeout="100ms"), connected(dsn) as other, other.transaction():
            await other.execute("SELECT FROM sessions ORDER BY id DESC LIMIT 1 FOR UPDATE")
            with pytest.raises(BackendUnavailableError, match="another transaction holds a lock"):
                await migrate(Plan(sqlite_path=path, postgres_dsn=dsn, batch_size=50))

    asyncio.run(run())
    assert move(path, dsn, batch_size=50).status is Status.IDENTICAL
    assert everything(dsn)[1] == expected[1]
    fault.add(acknowledged=SESSIONS + MESSAGES)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system of the server's."""
    with small_disk("32m", for_server=True) as made:
        yield made


@pytest.fixture
def on_small_disk(own: Cluster, disk: Path) -> Iterator[str]:
    """A database whose tables and temporary files are on the small disk."""
    name = disk.name.replace("-", "_")
    asyncio.run(execute(own.admin_dsn, f"CREATE TABLESPACE {name} LOCATION '{disk}'"))
    asyncio.run(execute(own.admin_dsn, f"CREATE DATABASE {name} TEMPLATE template0 TABLESPACE {name}"))
    # So little that the sorting of digests needs the disk, too.
    asyncio.run(execute(own.admin_dsn, f"ALTER DATABASE {name} SET work_mem = '64kB'"))
    try:
        yield with_database(own.admin_dsn, name)
    finally:
        asyncio.run(execute(own.admin_dsn, f"DROP DATABASE {name} WITH (FORCE)", f"DROP TABLESPACE {name}"))


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with so many sessions that their digests do not fit into a server's working memory."""
    made = tmp_path_factory.mktemp("longer") / "chat.db"
    make_random(made, sessions=3000, messages=6000)
    return made


@pytest.mark.fault("migration: data disk full", backend="postgres")
@pytest.mark.parametrize("others", [[], [OTHER]], ids=["empty", "populated"])
@pytest.mark.parametrize("phase", ["Load", "Verify"])
def test_a_full_data_disk_is_named_and_room_is_enough_to_go_on(
    longer: Path, disk: Path, on_small_disk: str, fault: Fault, phase: str, others: list[str]
) -> None:
    """While rows are loaded, and while they are proven; what was there is as it was."""
    dsn = on_small_disk
    asyncio.run(prepared(dsn, others))
    trigger = Trigger(phase, lambda: fill(disk))
    with pytest.raises(MigrationError, match=FULL):
        asyncio.run(migrate(Plan(sqlite_path=longer, postgres_dsn=dsn), trigger))
    if phase == "Load" and not others:
        assert everything(dsn) == ([], [])
    (disk / "filler").unlink()
    complete(longer, dsn, kept=len(others))
    fault.add(acknowledged=9000)


def complete(path: Path, dsn: str, *, kept: int) -> None:
    """Run it again; everything is there, once."""
    assert move(path, dsn).status is Status.IDENTICAL
    sessions, messages = everything(dsn)
    assert (len(sessions), len(messages)) == (3000 + kept, 6000)
    assert len({row[1] for row in messages}) == 6000


@pytest.mark.fault("migration: data disk full", backend="postgres")
def test_the_command_says_that_the_disk_is_full(longer: Path, disk: Path, on_small_disk: str, fault: Fault) -> None:
    """Exit code 1 and a sentence, no traceback; with room it completes."""
    dsn = on_small_disk
    asyncio.run(prepared(dsn, []))
    filler = fill(disk)
    process = start_there(longer, dsn)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("FAILED")
    assert "the server's disk is full" in errors
    assert "Traceback" not in errors
    assert everything(dsn) == ([], [])
    filler.unlink()
    complete(longer, dsn, kept=0)
    fault.add(acknowledged=9000)


@pytest.mark.fault("migration: WAL disk full", backend="postgres")
def test_a_full_wal_disk(tmp_path: Path, fault: Fault) -> None:
    """The server goes down in a panic; back with room to write, it gets what is missing."""
    path = tmp_path / "chat.db"
    make_random(path, sessions=10, messages=2000)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE messages SET content = hex(randomblob(10000))")
    with small_disk("96M", for_server=True) as wal, cluster() as own:
        own.end(signal.SIGINT)
        own.run(f'cp -a "$1/pg_wal" {wal}/ && rm -r "$1/pg_wal" && ln -s {wal}/pg_wal "$1/pg_wal"', "postgres")
        own.start()
        asyncio.run(prepared(own.dsn, []))
        trigger = Trigger("Load", lambda: fill(wal))
        with pytest.raises(FluxMemoryError):
            asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=own.dsn), trigger))
        (wal / "filler").unlink()
        # It may be on its way down, up again, or gone.
        with suppress(FileNotFoundError, ProcessLookupError):
            own.end(signal.SIGQUIT)
        own.start()
        assert everything(own.dsn) == ([], [])
        assert move(path, own.dsn).status is Status.IDENTICAL
        assert len(everything(own.dsn)[1]) == 2000
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
    """Through PgBouncer in transaction mode as well: nothing is bound to a session."""
    dsn = flux_empty_database
    asyncio.run(prepared(dsn, others))
    through = with_parameter(behind(dsn, pooler), "statement_cache_size=0")
    trigger = Trigger("Load", lambda: pooler.end(how), after_rows=500)
    with pytest.raises(BackendUnavailableError):
        asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=through, batch_size=50), trigger))
    assert trigger.acted
    pooler.start()
    assert move(path, through, batch_size=50).status is Status.IDENTICAL
    sessions, messages = everything(dsn)
    assert (len(sessions), len(messages)) == (SESSIONS + len(others), MESSAGES)
    fault.add(acknowledged=SESSIONS + MESSAGES)


def test_others_share_the_pooler(path: Path, pooler: Pooler, flux_empty_database: str) -> None:
    """Each transaction may be another server process's: what the last one had is not there."""
    dsn = flux_empty_database
    asyncio.run(prepared(dsn, [OTHER]))
    through = with_parameter(behind(dsn, pooler), "statement_cache_size=0")

    async def chat(migrating: asyncio.Task[Report]) -> None:
        async with PostgresConversationMemory(through, min_size=4) as memory:
            while not migrating.done():
                await asyncio.gather(*(memory.count_sessions() for _ in range(8)))

    async def run() -> Status:
        migrating = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=through, batch_size=20)))
        await chat(migrating)
        return (await migrating).status

    assert asyncio.run(run()) is Status.IDENTICAL
    assert len(everything(dsn)[1]) == MESSAGES


@pytest.mark.fault("migration: kill -9 of the primary, replica promoted", backend="postgres")
def test_a_replica_is_promoted(path: Path, fault: Fault) -> None:
    """The second run finds the new primary among the hosts of the DSN, and whatever came through to it."""
    with pair() as (primary, replica, both):
        asyncio.run(prepared(both, [OTHER]))
        asyncio.run(caught_up(primary, replica))
        trigger = Trigger("Load", lambda: primary.end(signal.SIGKILL), after_rows=500)
        with pytest.raises(BackendUnavailableError):
            asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=both, batch_size=50), trigger))
        assert trigger.acted
        replica.promote()
        assert move(path, both, batch_size=50).status is Status.IDENTICAL
        sessions, messages = everything(replica.dsn)
        assert (len(sessions), len(messages)) == (SESSIONS + 1, MESSAGES)
    fault.add(acknowledged=SESSIONS + MESSAGES)
