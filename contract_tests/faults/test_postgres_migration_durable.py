"""A migration that was called proven survives what happens to the server in the next moment."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from fault_cluster import Cluster, caught_up, cluster, meanwhile, pair
from fault_migration import CLEAN, prepared
from fault_pooler import behind, started_pooler
from fault_report import Fault
from raw_postgres import execute, rows, with_parameter
from transfer_memories import OTHER, Trigger, everything, make_random, move
from waiting import until

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
    make_random(made, sessions=SESSIONS, messages=MESSAGES)
    return made


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    """A server whose log reaches the disk only where a transaction waits for it, or after ten seconds."""
    with cluster({"wal_writer_delay": "10s", "autovacuum": "off"}) as made:
        yield made


def directly(path: Path, own: Cluster) -> None:
    """In batches, or at once where the target is empty."""
    assert move(path, own.dsn, batch_size=50).status is Status.IDENTICAL


def pooled(path: Path, own: Cluster) -> None:
    """Through PgBouncer in transaction mode."""
    with started_pooler(own.dsn) as pooler:
        dsn = with_parameter(behind(own.dsn, pooler), "statement_cache_size=0")
        assert move(path, dsn, batch_size=50).status is Status.IDENTICAL
        # While the pooler is there: its end would give the server time.
        own.end(signal.SIGKILL)


def resumed(path: Path, own: Cluster) -> None:
    """Every batch was committed by a run that was interrupted, so that there is nothing left to do."""
    interrupted(path, own)
    assert move(path, own.dsn).status is Status.IDENTICAL


def compared(path: Path, own: Cluster) -> None:
    """Nothing is moved, and the rows are called proven all the same."""
    interrupted(path, own)
    assert move(path, own.dsn, mode=Mode.VERIFY).status is Status.IDENTICAL


def interrupted(path: Path, own: Cluster) -> None:
    """Leave all batches behind, and no proof."""

    async def run() -> None:
        trigger = Trigger("Verify", lambda: task.cancel())  # noqa: PLW0108 - the task is not there yet
        task = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=own.dsn, batch_size=50), trigger))
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(run())


@pytest.mark.fault("migration: kill -9 of the server after the proof", backend="postgres")
@pytest.mark.parametrize("others", [[], [OTHER]], ids=["empty", "populated"])
@pytest.mark.parametrize("by", [directly, pooled, resumed, compared], ids=lambda by: by.__name__)
@pytest.mark.parametrize("before", [[], [WITHOUT_WAITING]], ids=["waiting", "synchronous_commit off"])
def test_what_was_proven_is_there_when_the_server_comes_back(
    path: Path, own: Cluster, fault: Fault, before: list[str], by: Callable[[Path, Cluster], None], others: list[str]
) -> None:
    """Every path to the proof waits for the disk, regardless of the role's setting."""
    asyncio.run(execute(own.dsn, CLEAN, *before))
    asyncio.run(prepared(own.dsn, others))
    for _ in fault.rounds(1, 20):
        asyncio.run(execute(own.dsn, "DELETE FROM sessions", *others, "CHECKPOINT"))
        by(path, own)
        with suppress(FileNotFoundError, ProcessLookupError):
            own.end(signal.SIGKILL)
        own.start()
        sessions, messages = everything(own.dsn)
        lost = SESSIONS + len(others) - len(sessions) + MESSAGES - len(messages)
        fault.add(acknowledged=SESSIONS + MESSAGES, lost=lost)
        assert lost == 0
    asyncio.run(execute(own.dsn, "ALTER ROLE CURRENT_USER RESET synchronous_commit"))


@pytest.fixture
def standby() -> Iterator[tuple[Cluster, Cluster]]:
    """A primary and the standby that has to confirm its commits, which is down."""
    with pair() as (primary, replica, _):
        asyncio.run(prepared(primary.dsn, [OTHER, WITHOUT_WAITING]))
        asyncio.run(caught_up(primary, replica))
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
    """What was proven is there on the standby that takes over in the next moment."""
    primary, replica = standby
    if mode is Mode.VERIFY:
        interrupted(path, primary)

    async def run() -> Status:
        migrating = asyncio.create_task(
            migrate(Plan(sqlite_path=path, postgres_dsn=primary.dsn, mode=mode, batch_size=50))
        )

        async def waits() -> bool:
            return migrating.done() or bool(await rows(primary.dsn, WAITING))

        await until(waits)
        assert not migrating.done()
        await meanwhile(replica.start)
        return (await migrating).status

    assert asyncio.run(run()) is Status.IDENTICAL
    primary.end(signal.SIGKILL)
    replica.promote()
    sessions, messages = everything(replica.dsn)
    assert (len(sessions), len(messages)) == (SESSIONS + 1, MESSAGES)
    fault.add(acknowledged=SESSIONS + MESSAGES)


@pytest.mark.fault("migration: synchronous standby away", backend="postgres")
def test_a_wait_for_the_standby_that_is_given_up_is_no_proof(
    path: Path, standby: tuple[Cluster, Cluster], fault: Fault
) -> None:
    """An administrator who cancels it makes the server commit all the same, with no more than a warning."""
    primary, replica = standby

    async def run() -> Any:
        migrating = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=primary.dsn, batch_size=50)))

        async def given_up() -> bool:
            return migrating.done() or bool(
                await rows(primary.dsn, f"SELECT pg_cancel_backend(pid) FROM ({WAITING}) w")
            )

        await until(given_up)
        return await migrating

    with pytest.raises(MigrationError, match=r"does not confirm that the rows are on all disks.*run again"):
        asyncio.run(run())
    replica.start()
    directly(path, primary)
    fault.add(acknowledged=SESSIONS + MESSAGES)


@pytest.mark.fault("migration: proven on a replica", backend="postgres")
def test_a_replica_can_be_compared_and_read_back(path: Path, tmp_path: Path, fault: Fault) -> None:
    """It takes no writes, and shows nothing that is not on its disk."""
    with pair() as (primary, replica, _):
        directly(path, primary)
        asyncio.run(caught_up(primary, replica))
        assert move(path, replica.dsn, mode=Mode.VERIFY).status is Status.IDENTICAL
        assert asyncio.run(migrate_back(replica.dsn, tmp_path / "back.db")).status is Status.IDENTICAL
    fault.add(acknowledged=SESSIONS + MESSAGES)
