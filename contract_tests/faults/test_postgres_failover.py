"""Tests the promotion of a streaming replica under load: a memory with both hosts in its DSN moves to it."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
from fault_cluster import Cluster, primary_and_replica, run_blocking, run_cluster, wait_for_replica
from fault_load import Load, check_history, run_round
from fault_report import Fault
from private_hosts import use_private_hosts
from raw_postgres import connect, execute, fetch_rows, with_address
from waiting import wait_until

from flux_memory import PostgresConversationMemory
from flux_memory.testkit.histories import check, read_stored

NAME = "database.flux-memory.test"
READ_ONLY = "ALTER SYSTEM SET default_transaction_read_only = on"


async def wait_until_quiet(primary: Cluster) -> None:
    """Wait until the primary writes nothing more."""
    position = ""

    async def is_quiet() -> bool:
        nonlocal position
        before = position
        async with connect(primary.dsn) as connection:
            # Longer than a statement that had already started can take.
            position = await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text FROM pg_sleep(0.2)")
        return position == before

    await wait_until(is_quiet)


@pytest.mark.asyncio
@pytest.mark.fault("fail-over after an orderly shutdown", backend="postgres")
async def test_a_planned_fail_over(fault: Fault, tmp_path: Path) -> None:
    """The shutdown of the primary sends everything to the replica before its promotion: nothing is lost."""
    for number in fault.rounds(1, 10):
        with primary_and_replica() as (primary, replica, both):

            async def move(_: Load, primary: Cluster = primary, replica: Cluster = replica) -> None:
                await run_blocking(primary.end, signal.SIGINT)
                await run_blocking(replica.promote)

            async with PostgresConversationMemory(primary.dsn) as first:
                await first.count_sessions()
            await wait_for_replica(primary, replica)
            async with PostgresConversationMemory(both) as memory, Load(memory, tmp_path / str(number)) as load:
                await load.wait_for_calls(50)
                await move(load)
                await load.wait_for_calls(50)
            assert load.unavailable == []
            await check_history(fault, replica.dsn, load.history())


@pytest.mark.asyncio
@pytest.mark.fault("kill -9 of the primary, synchronous replica promoted", backend="postgres")
async def test_an_unplanned_fail_over_to_a_synchronous_replica(fault: Fault, tmp_path: Path) -> None:
    """Acknowledged writes are on both servers: nothing is lost."""
    for number in fault.rounds(1, 10):
        with primary_and_replica() as (primary, replica, both):
            await execute(
                primary.admin_dsn, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"
            )
            await wait_until_synchronous(primary)
            async with PostgresConversationMemory(both) as memory, Load(memory, tmp_path / str(number)) as load:
                await load.wait_for_calls(50)
                await run_blocking(primary.end, signal.SIGKILL)
                await run_blocking(replica.promote)
                await load.wait_for_calls(50)
            assert load.unavailable == []
            await check_history(fault, replica.dsn, load.history())


async def wait_until_synchronous(primary: Cluster) -> None:
    """Wait until commits wait for the replica."""

    async def is_synchronous() -> object:
        return (await fetch_rows(primary.admin_dsn, "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'")) != []

    await wait_until(is_synchronous)


@pytest.mark.asyncio
@pytest.mark.fault("kill -9 of the primary, asynchronous replica promoted", backend="postgres")
async def test_losses_of_an_asynchronous_replica_are_counted(fault: Fault, tmp_path: Path) -> None:
    """Writes that the primary had not sent are lost with it, which no client can prevent; the test counts them."""
    for number in fault.rounds(1, 10):
        with primary_and_replica() as (primary, replica, both):
            async with PostgresConversationMemory(both) as memory, Load(memory, tmp_path / str(number)) as load:
                await load.wait_for_calls(50)
                await wait_for_replica(primary, replica)
                await load.wait_for_calls(50)
                await run_blocking(primary.end, signal.SIGKILL)
                await run_blocking(replica.promote)
                await load.wait_for_calls(50)
            async with PostgresConversationMemory(replica.dsn) as memory:
                violations = check(load.history(), await read_stored(memory))
            kinds = Counter(violation.kind for violation in violations)
            # A title, or a history that was read before, may contain lost data. A lost pop or update can be made again.
            again = {"undeleted", "removed twice", "overwritten"}
            assert kinds.keys() <= {"lost", "altered", "wrong read", *again}, violations
            history = load.history()
            fault.add(
                acknowledged=history.count("acknowledged"),
                lost=kinds["lost"],
                outage=history.longest_outage(),
                call=history.longest_call(),
            )


@pytest.mark.asyncio
@pytest.mark.fault("primary turned read-only, replica promoted", backend="postgres")
async def test_a_server_that_turned_read_only_is_dropped_at_once(fault: Fault, tmp_path: Path) -> None:
    """Connections that became read-only are replaced, and writes wait for a server that accepts them."""
    for number in fault.rounds(1, 10):
        with primary_and_replica() as (primary, replica, both):

            async def demote(load: Load, primary: Cluster = primary, replica: Cluster = replica) -> None:
                await execute(primary.admin_dsn, READ_ONLY, "SELECT pg_reload_conf()")
                await wait_until_quiet(primary)
                await wait_for_replica(primary, replica)
                await run_blocking(replica.promote)
                await load.wait_for_calls(50)

            load = await run_round(fault, both, tmp_path / str(number), demote, stored_at=None)
            assert load.unavailable == []
            async with PostgresConversationMemory(replica.dsn) as memory:
                assert await memory.count_sessions()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=pytest.mark.fault(f"DNS entry changed, primary {how}", backend="postgres"))
        for how in ("shut down", "turned read-only")
    ],
)
async def test_a_changed_dns_entry_is_followed(fault: Fault, tmp_path: Path, how: str) -> None:
    """Behind one host name: connections to the old server are dropped, and calls wait for the new one."""
    for number in fault.rounds(1, 10):
        hosts_file = tmp_path / f"hosts-{number}"
        with run_cluster({"wal_level": "replica"}) as primary, use_private_hosts(hosts_file) as hosts:
            replica = primary.start_standby("127.0.0.2")
            hosts.point(NAME, "127.0.0.1")
            dsn = f"{with_address(primary.dsn, host=NAME)}?target_session_attrs=read-write"
            async with (
                PostgresConversationMemory(dsn, timeout=20) as memory,
                Load(memory, tmp_path / str(number)) as load,
            ):
                await load.wait_for_calls(50)
                if how == "shut down":
                    # A shutdown sends everything to the replica.
                    await wait_for_replica(primary, replica)
                    await run_blocking(primary.end, signal.SIGINT)
                else:
                    await execute(primary.admin_dsn, READ_ONLY, "SELECT pg_reload_conf()")
                    await wait_until_quiet(primary)
                    await wait_for_replica(primary, replica)
                await run_blocking(replica.promote)
                hosts.point(NAME, "127.0.0.2")
                await load.wait_for_calls(50)
            assert load.unavailable == []
            await check_history(fault, replica.dsn, load.history())
