"""Tests that a proven migration survives a failure of the server right after the proof."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from fault_cluster import Cluster, primary_and_replica, run_blocking, run_cluster, wait_for_replica
from fault_migration import CLEAN, prepare_target
from fault_pooler import run_pooler, with_pooler
from fault_report import Fault
from raw_postgres import execute, fetch_rows, with_parameter
from transfer_memories import EMPTY, OTHER, Trigger, make_random_file, move, read_target
from waiting import wait_until

from flux_memory.errors import MigrationError
from flux_memory.transfer import Mode, Plan, Status, migrate, migrate_back

SESSIONS, MESSAGES = 20, 400
WITHOUT_WAITING: Final = "ALTER ROLE CURRENT_USER SET synchronous_commit = off"
WAITING: Final = """
SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep'
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the original application."""
    made = tmp_path_factory.mktemp("durable") / "chat.db"
    make_random_file(made, sessions=SESSIONS, messages=MESSAGES)
    return made


@pytest.fixture(scope="module")
def own_server() -> Iterator[Cluster]:
    """A server that flushes its log for transactions that wait for it, and otherwise after ten seconds."""
    with run_cluster({"wal_writer_delay": "10s", "autovacuum": "off"}) as made:
        yield made


def migrate_directly(path: Path, own_server: Cluster) -> None:
    """Move rows in batches, or all at once into an empty target."""
    assert move(path, own_server.dsn, batch_size=50).exit_code == 0


def migrate_through_pooler(path: Path, own_server: Cluster) -> None:
    """Move rows through PgBouncer in transaction mode."""
    with run_pooler(own_server.dsn) as pooler:
        dsn = with_parameter(with_pooler(own_server.dsn, pooler), "statement_cache_size=0")
        assert move(path, dsn, batch_size=50).exit_code == 0
        # While the pooler runs, because its end would give the server time to flush.
        own_server.end(signal.SIGKILL)


def resume_migration(path: Path, own_server: Cluster) -> None:
    """Continue an interrupted run that committed every batch, with nothing left to move."""
    interrupt_migration(path, own_server)
    assert move(path, own_server.dsn).exit_code == 0


def compare_only(path: Path, own_server: Cluster) -> None:
    """Move nothing, and still call the rows proven."""
    interrupt_migration(path, own_server)
    assert move(path, own_server.dsn, mode=Mode.VERIFY).exit_code == 0


def interrupt_migration(path: Path, own_server: Cluster) -> None:
    """Commit all batches without a proof."""

    async def run() -> None:
        trigger = Trigger("Verify", lambda: task.cancel())  # noqa: PLW0108 - the task is not there yet
        task = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=own_server.dsn, batch_size=50), trigger))
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(run())


@pytest.mark.fault("migration: kill -9 of the server after the proof", backend="postgres")
@pytest.mark.parametrize("others", [[], [OTHER]], ids=["empty", "populated"])
@pytest.mark.parametrize(
    "by", [migrate_directly, migrate_through_pooler, resume_migration, compare_only], ids=lambda by: by.__name__
)
@pytest.mark.parametrize("before", [[], [WITHOUT_WAITING]], ids=["waiting", "synchronous_commit off"])
def test_proven_rows_survive_a_crash_of_the_server(
    path: Path,
    own_server: Cluster,
    fault: Fault,
    before: list[str],
    by: Callable[[Path, Cluster], None],
    others: list[str],
) -> None:
    """Every way to a proof waits for the disk, regardless of the role's setting."""
    asyncio.run(execute(own_server.dsn, CLEAN, *before))
    asyncio.run(prepare_target(own_server.dsn, others))
    for _ in fault.rounds(1, 20):
        asyncio.run(execute(own_server.dsn, *EMPTY, *others, "CHECKPOINT"))
        by(path, own_server)
        with suppress(FileNotFoundError, ProcessLookupError):
            own_server.end(signal.SIGKILL)
        own_server.start()
        sessions, messages = read_target(own_server.dsn)
        lost = SESSIONS + len(others) - len(sessions) + MESSAGES - len(messages)
        fault.add(acknowledged=SESSIONS + MESSAGES, lost=lost)
        assert lost == 0
    asyncio.run(execute(own_server.dsn, "ALTER ROLE CURRENT_USER RESET synchronous_commit"))


@pytest.mark.fault("migration: kill -9 of the server after the proof", backend="postgres")
def test_what_was_replaced_stays_replaced_when_the_server_comes_back(
    path: Path, own_server: Cluster, fault: Fault
) -> None:
    """The proof of --replace comes before its commit, and its verdict after the disk has both."""
    asyncio.run(execute(own_server.dsn, CLEAN, WITHOUT_WAITING))
    asyncio.run(prepare_target(own_server.dsn, []))
    for _ in fault.rounds(1, 20):
        asyncio.run(execute(own_server.dsn, *EMPTY, OTHER, "CHECKPOINT"))
        assert move(path, own_server.dsn, replace=True).status is Status.IDENTICAL
        with suppress(FileNotFoundError, ProcessLookupError):
            own_server.end(signal.SIGKILL)
        own_server.start()
        sessions, messages = read_target(own_server.dsn)
        fault.add(acknowledged=SESSIONS + MESSAGES, lost=SESSIONS - len(sessions) + MESSAGES - len(messages))
        assert (len(sessions), len(messages)) == (SESSIONS, MESSAGES)
    asyncio.run(execute(own_server.dsn, "ALTER ROLE CURRENT_USER RESET synchronous_commit"))


@pytest.fixture
def standby() -> Iterator[tuple[Cluster, Cluster]]:
    """A primary, and the stopped standby that must confirm its commits."""
    with primary_and_replica() as (primary, replica, _):
        asyncio.run(prepare_target(primary.dsn, [OTHER, WITHOUT_WAITING]))
        asyncio.run(wait_for_replica(primary, replica))
        replica.end(signal.SIGINT)
        asyncio.run(
            execute(
                primary.dsn, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()", "CHECKPOINT"
            )
        )
        yield primary, replica


@pytest.mark.fault("migration: synchronous standby away", backend="postgres")
@pytest.mark.parametrize("mode", [Mode.MOVE, Mode.VERIFY])
def test_the_proof_waits_for_a_synchronous_standby(
    path: Path, standby: tuple[Cluster, Cluster], fault: Fault, mode: Mode
) -> None:
    """Proven rows exist on a standby that takes over right after the proof."""
    primary, replica = standby
    if mode is Mode.VERIFY:
        interrupt_migration(path, primary)

    async def run() -> Status:
        migrating = asyncio.create_task(
            migrate(Plan(sqlite_path=path, postgres_dsn=primary.dsn, mode=mode, batch_size=50))
        )

        async def waits() -> bool:
            return migrating.done() or bool(await fetch_rows(primary.dsn, WAITING))

        await wait_until(waits)
        assert not migrating.done()
        await run_blocking(replica.start)
        return (await migrating).status

    assert asyncio.run(run()) is Status.CONTAINED
    primary.end(signal.SIGKILL)
    replica.promote()
    sessions, messages = read_target(replica.dsn)
    assert (len(sessions), len(messages)) == (SESSIONS + 1, MESSAGES)
    fault.add(acknowledged=SESSIONS + MESSAGES)


@pytest.mark.fault("migration: synchronous standby away", backend="postgres")
def test_a_cancelled_wait_for_the_standby_is_not_a_proof(
    path: Path, standby: tuple[Cluster, Cluster], fault: Fault
) -> None:
    """When an administrator cancels the wait, the server commits nonetheless and only warns."""
    primary, replica = standby

    async def run() -> Any:
        migrating = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=primary.dsn, batch_size=50)))

        async def given_up() -> bool:
            return migrating.done() or bool(
                await fetch_rows(primary.dsn, f"SELECT pg_cancel_backend(pid) FROM ({WAITING}) w")
            )

        await wait_until(given_up)
        return await migrating

    with pytest.raises(MigrationError, match=r"does not confirm that the rows are on all disks.*run again"):
        asyncio.run(run())
    replica.start()
    migrate_directly(path, primary)
    fault.add(acknowledged=SESSIONS + MESSAGES)


@pytest.mark.fault("migration: proven on a replica", backend="postgres")
def test_a_replica_can_be_compared_and_read_back(path: Path, tmp_path: Path, fault: Fault) -> None:
    """A replica refuses writes, and shows only rows that are on its disk."""
    with primary_and_replica() as (primary, replica, _):
        migrate_directly(path, primary)
        asyncio.run(wait_for_replica(primary, replica))
        assert move(path, replica.dsn, mode=Mode.VERIFY).exit_code == 0
        assert asyncio.run(migrate_back(replica.dsn, tmp_path / "back.db")).status is Status.IDENTICAL
    fault.add(acknowledged=SESSIONS + MESSAGES)
