"""A streaming replica is promoted under load: a memory with both hosts in its DSN goes on there."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
from fault_cluster import Cluster, caught_up, cluster, meanwhile, pair
from fault_load import Load, judge, through
from fault_report import Fault
from private_hosts import private_hosts
from raw_postgres import connected, elsewhere, execute, rows
from waiting import until

from flux_memory import PostgresConversationMemory
from flux_memory.testkit.histories import check, read_stored

NAME = "database.flux-memory.test"
READ_ONLY = "ALTER SYSTEM SET default_transaction_read_only = on"


async def until_quiet(primary: Cluster) -> None:
    """Wait until the primary writes nothing any more."""
    position = ""

    async def is_quiet() -> bool:
        nonlocal position
        before = position
        async with connected(primary.dsn) as connection:
            # Longer than a statement takes that was begun before.
            position = await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text FROM pg_sleep(0.2)")
        return position == before

    await until(is_quiet)


@pytest.mark.asyncio
@pytest.mark.fault("fail-over after an orderly shutdown", backend="postgres")
async def test_a_planned_fail_over(fault: Fault, tmp_path: Path) -> None:
    """The primary is shut down, which sends everything to the replica, and the replica is promoted: nothing is lost."""
    for number in fault.rounds(1, 10):
        with pair() as (primary, replica, both):

            async def move(_: Load, primary: Cluster = primary, replica: Cluster = replica) -> None:
                await meanwhile(primary.end, signal.SIGINT)
                await meanwhile(replica.promote)

            async with PostgresConversationMemory(primary.dsn) as first:
                await first.count_sessions()
            await caught_up(primary, replica)
            async with PostgresConversationMemory(both) as memory, Load(memory, tmp_path / str(number)) as load:
                await load.more(50)
                await move(load)
                await load.more(50)
            assert load.unavailable == []
            await judge(fault, replica.dsn, load.history())


@pytest.mark.asyncio
@pytest.mark.fault("kill -9 of the primary, synchronous replica promoted", backend="postgres")
async def test_an_unplanned_fail_over_to_a_synchronous_replica(fault: Fault, tmp_path: Path) -> None:
    """What was acknowledged is on both servers: nothing is lost."""
    for number in fault.rounds(1, 10):
        with pair() as (primary, replica, both):
            await execute(
                primary.admin_dsn, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"
            )
            await until_synchronous(primary)
            async with PostgresConversationMemory(both) as memory, Load(memory, tmp_path / str(number)) as load:
                await load.more(50)
                await meanwhile(primary.end, signal.SIGKILL)
                await meanwhile(replica.promote)
                await load.more(50)
            assert load.unavailable == []
            await judge(fault, replica.dsn, load.history())


async def until_synchronous(primary: Cluster) -> None:
    """Wait until commits wait for the replica."""

    async def is_synchronous() -> object:
        return (await rows(primary.admin_dsn, "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'")) != []

    await until(is_synchronous)


@pytest.mark.asyncio
@pytest.mark.fault("kill -9 of the primary, asynchronous replica promoted", backend="postgres")
async def test_what_an_asynchronous_replica_may_lose(fault: Fault, tmp_path: Path) -> None:
    """What the primary had not sent is lost with it, which no client can help: this is counted, and nothing else."""
    for number in fault.rounds(1, 10):
        with pair() as (primary, replica, both):
            async with PostgresConversationMemory(both) as memory, Load(memory, tmp_path / str(number)) as load:
                await load.more(50)
                await caught_up(primary, replica)
                await load.more(50)
                await meanwhile(primary.end, signal.SIGKILL)
                await meanwhile(replica.promote)
                await load.more(50)
            async with PostgresConversationMemory(replica.dsn) as memory:
                violations = check(load.history(), await read_stored(memory))
            kinds = Counter(violation.kind for violation in violations)
            # A title, or a history read before, can be of what was lost.
            assert kinds.keys() <= {"lost", "altered", "wrong read"}, violations
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
    """Its connections work, but for reads only: they are replaced, and writes wait for the server that takes them."""
    for number in fault.rounds(1, 10):
        with pair() as (primary, replica, both):

            async def demote(load: Load, primary: Cluster = primary, replica: Cluster = replica) -> None:
                await execute(primary.admin_dsn, READ_ONLY, "SELECT pg_reload_conf()")
                await until_quiet(primary)
                await caught_up(primary, replica)
                await meanwhile(replica.promote)
                await load.more(50)

            load = await through(fault, both, tmp_path / str(number), demote, stored_at=None)
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
    """A fail-over behind one name: what is left of the old server is dropped, and calls wait for the new one."""
    for number in fault.rounds(1, 10):
        hosts_file = tmp_path / f"hosts-{number}"
        with cluster({"wal_level": "replica"}) as primary, private_hosts(hosts_file) as hosts:
            replica = primary.standby("127.0.0.2")
            hosts.point(NAME, "127.0.0.1")
            dsn = f"{elsewhere(primary.dsn, host=NAME)}?target_session_attrs=read-write"
            async with (
                PostgresConversationMemory(dsn, timeout=20) as memory,
                Load(memory, tmp_path / str(number)) as load,
            ):
                await load.more(50)
                if how == "shut down":
                    # Which sends everything to the replica.
                    await caught_up(primary, replica)
                    await meanwhile(primary.end, signal.SIGINT)
                else:
                    await execute(primary.admin_dsn, READ_ONLY, "SELECT pg_reload_conf()")
                    await until_quiet(primary)
                    await caught_up(primary, replica)
                await meanwhile(replica.promote)
                hosts.point(NAME, "127.0.0.2")
                await load.more(50)
            assert load.unavailable == []
            await judge(fault, replica.dsn, load.history())
