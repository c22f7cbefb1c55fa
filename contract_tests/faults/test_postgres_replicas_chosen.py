"""Tests the choice of servers to read from: wrong hosts, standbys, roles, and the words of the check."""

from __future__ import annotations

import asyncio
import re
import secrets
import time

import pytest
from check_command import password_of, run_check
from fault_cluster import wait_for_replica
from fault_report import Fault
from raw_postgres import execute
from replicated_cluster import (
    ReplicaCounts,
    Replicated,
    look_at_replicas,
    read_own_writes,
    wait_for_use,
)
from waiting import wait_until

from flux_memory import PostgresConversationMemory
from flux_memory.errors import BackendUnavailableError, InvalidInputError


@pytest.mark.asyncio
@pytest.mark.fault("a host of the replicas' DSN is another server", backend="postgres")
async def test_another_server_is_not_read(replicated: Replicated, flux_empty_database: str, fault: Fault) -> None:
    """A host that is a primary, another database, or nothing at all is not a replica; the primary answers."""
    nothing = replicated.replica_dsn.replace("@127.0.0.1:", "@127.0.0.1:1,127.0.0.1:")
    for wrong in (replicated.primary.dsn, flux_empty_database, replicated.replicas[0].admin_dsn, nothing):
        async with PostgresConversationMemory(replicated.primary.dsn, replica_dsn=wrong) as memory:
            await memory.count_sessions()
            await read_own_writes(memory, 5)
            await wait_until(lambda memory=memory: _are_judged(memory))
            assert not look_at_replicas(memory)[0].in_use
    fault.add(acknowledged=20)


async def _are_judged(memory: PostgresConversationMemory) -> bool:
    await memory.get_session("none")
    return all("not been looked at" not in replica.trouble for replica in look_at_replicas(memory))


@pytest.mark.asyncio
@pytest.mark.fault("handle on a standby alone", backend="postgres")
@pytest.mark.parametrize("attributes", ["standby", "prefer-standby", "read-only"])
async def test_a_write_on_a_standby_ends_at_once(replicated: Replicated, fault: Fault, attributes: str) -> None:
    """Reads work; a write cannot succeed later, so it does not use up its deadline, and reads go on."""
    async with PostgresConversationMemory(replicated.primary.dsn) as primary:
        session = await primary.create_session()
    for replica in replicated.replicas:
        await wait_for_replica(replicated.primary, replica)
    async with PostgresConversationMemory(f"{replicated.replica_dsn}?target_session_attrs={attributes}") as memory:
        assert await memory.get_session(session) is not None
        began = time.monotonic()
        for write in (
            memory.create_session(),
            memory.add_message(session, "user", "x"),
            memory.add_message("new", "user", "x", create=True),
            memory.pop_message(session),
            memory.update_session(session, title="x"),
            memory.update_session_title(session, "x"),
            memory.fork_session(session),
            memory.delete_session(session),
            memory.delete_sessions(user_id="x"),
            memory.clear_all(),
        ):
            with pytest.raises(BackendUnavailableError, match="is a standby, or read-only; connect to the primary"):
                await write
            assert await memory.get_session(session) is not None
        took = time.monotonic() - began
        assert took < 10
        fault.add(acknowledged=10, call=took)


@pytest.mark.fault("standby and replicas looked at by flux-memory check", backend="postgres")
def test_the_check_names_standbys_and_replicas(
    broken_replicated: Replicated, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby without tables fails; a replica that reads do not use is a warning with its reason."""
    primary, (first, second) = broken_replicated.primary, broken_replicated.replicas
    asyncio.run(wait_for_replica(primary, first))
    empty = run_check("--postgres-dsn", first.dsn)
    assert empty.exit_code == 1
    assert "the server is a standby, and its tables are not those of this release" in empty.output
    monkeypatch.setenv("DATABASE_BACKEND", "postgres")
    monkeypatch.setenv("POSTGRES_DSN", primary.dsn)
    monkeypatch.setenv("POSTGRES_REPLICA_DSN", broken_replicated.replica_dsn)
    both = run_check("--full")
    assert both.exit_code == 0
    assert len(re.findall(r"127\.0\.0\.1:\d+, [\d,]+ bytes behind", both.output)) == 2
    assert "WARNING" not in both.output
    second.promote()
    one = run_check()
    assert one.exit_code == 0
    assert re.search(r"WARNING +reads do not use the replica 127\.0\.0\.1:\d+: it accepts writes", one.output)
    asyncio.run(wait_for_replica(primary, first))
    alone = run_check("--postgres-dsn", first.dsn)
    assert alone.exit_code == 0
    assert "a standby: reads work, writes need the primary" in alone.output
    assert "Replicas" not in alone.output
    writing = run_check("--full", "--postgres-dsn", first.dsn)
    assert writing.exit_code == 1
    assert "connect to the primary" in writing.output
    assert password_of(primary.dsn) not in "".join(each.output for each in (empty, both, one, alone, writing))
    fault.add(acknowledged=5)


@pytest.mark.asyncio
@pytest.mark.fault("replicas read by roles without superuser rights", backend="postgres")
async def test_roles_with_least_privilege_read_on_replicas(replicated: Replicated, fault: Fault) -> None:
    """The owner of the tables writes, and another role, which may only read, reads on the replicas."""
    admin = replicated.primary.dsn
    database = f"owned_{secrets.token_hex(4)}"
    await execute(
        admin,
        f"CREATE ROLE {database} LOGIN PASSWORD '{database}'",
        f"CREATE ROLE {database}_reader LOGIN PASSWORD '{database}'",
        f"CREATE DATABASE {database} OWNER {database} TEMPLATE template0 ENCODING 'UTF8'",
    )
    own, reading = (
        re.sub(r"//[^@]+@(.*)/.*", rf"//{role}:{database}@\1/{database}", dsn)
        for role, dsn in ((database, admin), (f"{database}_reader", replicated.replica_dsn))
    )
    async with PostgresConversationMemory(own) as memory:
        await memory.count_sessions()
    await execute(own, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {database}_reader")
    for replica in replicated.replicas:
        await wait_for_replica(replicated.primary, replica)
    async with PostgresConversationMemory(own, replica_dsn=reading) as memory:
        await memory.count_sessions()
        await wait_for_use(memory, 2)
        counts = ReplicaCounts(memory)
        await read_own_writes(memory, 5)
        assert counts.answered
    await execute(own, "ALTER TABLE messages ENABLE ROW LEVEL SECURITY")
    async with PostgresConversationMemory(own, replica_dsn=reading) as memory:
        await memory.count_sessions()
        # Policies would hide every message from the reader.
        await read_own_writes(memory, 5)
        assert ["its role sees other tables or rows" in each.trouble for each in look_at_replicas(memory)] == [True] * 2
    await execute(
        admin, f"DROP DATABASE {database} WITH (FORCE)", f"DROP ROLE {database}", f"DROP ROLE {database}_reader"
    )
    fault.add(acknowledged=10)


def test_replicas_need_a_dsn_of_the_primary(replicated: Replicated) -> None:
    """A mistake in the replicas' DSN names the argument, and shows no password."""
    with pytest.raises(InvalidInputError, match="replica_dsn: the DSN is not a URL"):
        PostgresConversationMemory(replicated.primary.dsn, replica_dsn="localhost")
    for lag in (-1, float("nan"), float("inf"), "1", True, False):
        with pytest.raises(InvalidInputError, match="max_replica_lag"):
            PostgresConversationMemory(replicated.primary.dsn, max_replica_lag=lag)  # type: ignore[arg-type]
