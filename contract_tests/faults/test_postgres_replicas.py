"""Tests reads on replicas that lag, hang, die or are promoted: no read is stale, none goes back, none fails."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from check_command import password_of, run_check
from fault_cluster import run_blocking, wait_for_replica
from fault_load import Load, check_history
from fault_report import Fault
from raw_postgres import OTHER_CLIENTS, execute, fetch_rows, wait_until_none
from replicated_cluster import (
    ReplicaCounts,
    Replicated,
    look_at_replicas,
    receiver_stopped,
    replay_paused,
    run_replicated,
    wait_for_use,
)
from waiting import wait_until

from flux_memory import PostgresConversationMemory, deadline
from flux_memory.errors import BackendUnavailableError, InvalidInputError

MAX_LAG_SECONDS: Final = 1.0


@pytest.fixture(scope="module")
def replicated() -> Iterator[Replicated]:
    """A primary and two replicas, which every test leaves well."""
    with run_replicated() as made:
        yield made


@pytest.fixture
def broken_replicated() -> Iterator[Replicated]:
    """A primary and two replicas for one test, which breaks them for good."""
    with run_replicated() as made:
        yield made


async def read_own_writes(memory: PostgresConversationMemory, number: int) -> None:
    """Add to a session and read it at once; each read shows the add, in the history, the session and the listing."""
    session = await memory.create_session(user_id="own")
    for each in range(number):
        message = await memory.add_message(session, "user", f"{each}")
        assert (await memory.get_history(session, 1))[0]["id"] == message
        assert (await memory.get_message(session, message)) is not None
        found = await memory.get_session(session)
        assert found is not None
        assert found["message_count"] == each + 1
        assert (await memory.get_sessions(1, user_id="own"))[0]["message_count"] == each + 1
    await memory.delete_session(session)
    assert await memory.get_session(session) is None
    assert await memory.count_sessions(user_id="own") == 0


@pytest.mark.asyncio
@pytest.mark.fault("reads on two replicas", backend="postgres")
async def test_reads_go_to_replicas_and_show_own_writes(replicated: Replicated, fault: Fault) -> None:
    """A handle sees its own writes at once, though replicas answer nearly all of its reads."""
    async with replicated.open() as memory:
        await memory.count_sessions()
        await wait_for_use(memory, 2)
        counts = ReplicaCounts(memory)
        await read_own_writes(memory, 40)
        # A busy machine may keep a replica from catching up within the time that a read waits for it.
        assert counts.answered > 100
        fault.add(acknowledged=40)


@pytest.mark.asyncio
@pytest.mark.fault("replay paused on two replicas", backend="postgres")
async def test_a_paused_replay_hides_no_own_write(replicated: Replicated, fault: Fault) -> None:
    """The primary answers what the replicas have not replayed; they take over again."""
    async with replicated.open() as memory:
        await memory.count_sessions()
        await wait_for_use(memory, 2)
        async with replay_paused(*replicated.replicas):
            await read_own_writes(memory, 10)
        counts = ReplicaCounts(memory)

        async def are_back() -> bool:
            await memory.get_session("none")
            return counts.answered >= 10

        await wait_until(are_back)
        fault.add(acknowledged=10)


@pytest.mark.asyncio
@pytest.mark.fault("receiver of the log stopped", backend="postgres")
@pytest.mark.parametrize("how", ["replay paused", "receiver stopped"])
async def test_no_read_is_staler_than_allowed(replicated: Replicated, fault: Fault, how: str) -> None:
    """Writes of another handle show within the lag allowed, though the replicas stand still."""
    first, second = replicated.replicas
    async with PostgresConversationMemory(replicated.primary.dsn) as writer, replicated.open() as reader:
        session = await writer.create_session()
        await reader.count_sessions()
        await wait_for_use(reader, 2)
        longest = 0.0
        async with replay_paused(second), replay_paused(first) if how == "replay paused" else receiver_stopped(first):
            for _ in range(3):
                message = await writer.add_message(session, "user", "x")
                acknowledged = time.monotonic()
                while True:
                    began = time.monotonic()
                    if await reader.get_message(session, message) is not None:
                        break
                    assert began - acknowledged < MAX_LAG_SECONDS
                longest = max(longest, time.monotonic() - acknowledged)
        # The replicas have nothing newer: the primary must have answered.
        assert longest > 0
        fault.add(acknowledged=3, outage=longest)


@pytest.mark.asyncio
@pytest.mark.fault("two replicas of different lag", backend="postgres")
async def test_no_read_of_a_handle_goes_back(replicated: Replicated, fault: Fault) -> None:
    """A history, once read, does not get shorter, though one replica is 0.7 s behind: now and then too much."""
    slow = replicated.replicas[1]
    await execute(slow.admin_dsn, "ALTER SYSTEM SET recovery_min_apply_delay = '700ms'", "SELECT pg_reload_conf()")
    try:
        async with PostgresConversationMemory(replicated.primary.dsn) as writer, replicated.open() as reader:
            sessions = [await writer.create_session() for _ in range(6)]
            await reader.count_sessions()
            await wait_for_use(reader, 2)
            counts = ReplicaCounts(reader)
            stop = asyncio.Event()

            async def write() -> None:
                while not stop.is_set():
                    await asyncio.gather(*(writer.add_message(session, "user", "x") for session in sessions))

            async def read(session: str) -> int:
                seen = reads = listed = 0
                while not stop.is_set():
                    history = len(await reader.get_history(session))
                    assert history >= seen
                    counted = {each["id"]: each["message_count"] for each in await reader.get_sessions(None)}
                    assert counted[session] >= listed
                    listed = counted[session]
                    found = await reader.get_session(session)
                    assert found is not None
                    assert found["message_count"] >= history
                    seen, reads = found["message_count"], reads + 1
                return reads

            writing = asyncio.create_task(write())
            reading = [asyncio.create_task(read(session)) for session in sessions]
            await asyncio.sleep(3)
            stop.set()
            await asyncio.gather(writing, *reading)
            assert counts.answered > 20
            fault.add(acknowledged=sum(task.result() for task in reading))
    finally:
        await execute(slow.admin_dsn, "ALTER SYSTEM RESET recovery_min_apply_delay", "SELECT pg_reload_conf()")


@pytest.mark.asyncio
@pytest.mark.fault("replica stopped, short deadlines", backend="postgres")
async def test_a_hung_replica_leaves_time_for_the_primary(replicated: Replicated, fault: Fault) -> None:
    """A read with a deadline shorter than it takes to notice the replica's silence is answered within it."""
    async with replicated.open() as memory:
        session = await memory.create_session()
        await wait_for_use(memory, 2)
        pids = [pid for replica in replicated.replicas for pid in replica.list_processes()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            longest = 0.0
            for _ in range(10):
                began = time.monotonic()
                with deadline(0.8):
                    assert await memory.get_session(session) is not None
                longest = max(longest, time.monotonic() - began)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        await wait_for_use(memory, 2)
        fault.add(acknowledged=10, call=longest)


@pytest.mark.asyncio
@pytest.mark.fault("replay paused, calls from other event loops", backend="postgres")
async def test_own_writes_show_on_any_event_loop(replicated: Replicated, fault: Fault) -> None:
    """A handle is one reader, also where its calls come from other loops, which have connections of their own."""
    async with replicated.open() as memory:
        session = await memory.create_session()
        await asyncio.to_thread(asyncio.run, memory.get_session(session))
        await wait_for_use(memory, 2)
        async with replay_paused(*replicated.replicas):
            for _ in range(5):
                message = await memory.add_message(session, "user", "here")
                assert await asyncio.to_thread(asyncio.run, memory.get_message(session, message)) is not None
                message = await asyncio.to_thread(asyncio.run, memory.add_message(session, "user", "there"))
                assert await memory.get_message(session, message) is not None
        fault.add(acknowledged=10)


async def restart(replicated: Replicated) -> None:
    """Kill a replica, and start it again."""
    await run_blocking(replicated.replicas[0].restart, signal.SIGKILL)


async def hold_up(replicated: Replicated) -> None:
    """Stop every process of a replica for a while."""
    pids = replicated.replicas[0].list_processes()
    for each in pids:
        os.kill(each, signal.SIGSTOP)
    await asyncio.sleep(2)
    for each in pids:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGCONT)


async def pause(replicated: Replicated) -> None:
    """Pause the replay on both replicas for a while, on one of them for longer."""
    async with replay_paused(replicated.replicas[0]):
        async with replay_paused(replicated.replicas[1]):
            await asyncio.sleep(1)
        await asyncio.sleep(1)


BREAKING: Final[dict[str, Callable[[Replicated], Awaitable[None]]]] = {
    "killed and started again": restart,
    "every process stopped for 2 s": hold_up,
    "replay paused": pause,
}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.fault(f"replica: {how}", backend="postgres")) for how in BREAKING]
)
async def test_a_load_does_not_notice_a_broken_replica(
    replicated: Replicated, fault: Fault, tmp_path: Path, how: str
) -> None:
    """No call fails, and the recorded history is that of one correct store."""
    async with PostgresConversationMemory(replicated.primary.dsn) as before:
        await before.clear_all()
    for number in fault.rounds(1, 10):
        async with replicated.open() as memory, Load(memory, tmp_path / str(number)) as load:
            await load.wait_for_calls(50)
            await wait_for_use(memory, 2)
            counts = ReplicaCounts(memory)
            await BREAKING[how](replicated)
            await load.wait_for_calls(50)
            await wait_for_use(memory, 2)
            await load.wait_for_calls(50)
            assert counts.answered
        assert load.unavailable == []
        await check_history(fault, replicated.primary.dsn, load.history())
        async with PostgresConversationMemory(replicated.primary.dsn) as after:
            await after.clear_all()


@pytest.mark.asyncio
@pytest.mark.fault("replica promoted beside its primary", backend="postgres")
async def test_a_promoted_replica_is_not_read(broken_replicated: Replicated, fault: Fault, tmp_path: Path) -> None:
    """What the promoted server stores from then on is another history, which no read shows."""
    replicated = broken_replicated
    strange = replicated.replicas[0]
    async with replicated.open() as memory, Load(memory, tmp_path) as load:
        await load.wait_for_calls(50)
        await wait_for_use(memory, 2)
        await run_blocking(strange.promote)
        async with PostgresConversationMemory(strange.dsn) as other:
            await other.clear_all()
            await other.create_session("strange", session_id="strange")
        for _ in range(50):
            assert await memory.get_session("strange") is None
            assert all(session["title"] != "strange" for session in await memory.get_sessions(None))
        await load.wait_for_calls(50)
        await wait_for_use(memory, 1)
        assert look_at_replicas(memory)[0].trouble.endswith("it was promoted, or never was a replica")
    assert load.unavailable == []
    await check_history(fault, replicated.primary.dsn, load.history())


@pytest.mark.asyncio
@pytest.mark.fault("primary killed, one replica promoted, the other left behind", backend="postgres")
async def test_a_replica_of_the_dead_primary_is_not_read(
    broken_replicated: Replicated, fault: Fault, tmp_path: Path
) -> None:
    """The position of the replica that was left behind may be ahead of the new primary's, in another history."""
    replicated = broken_replicated
    first, second = replicated.replicas
    await execute(
        replicated.primary.admin_dsn,
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
        "SELECT pg_reload_conf()",
    )
    async with (
        PostgresConversationMemory(replicated.any_primary_dsn, replica_dsn=replicated.replica_dsn) as memory,
        Load(memory, tmp_path) as load,
    ):
        await load.wait_for_calls(50)
        await wait_for_use(memory, 2)
        # The replica that will be promoted has what the other has, and not what the primary writes without commits.
        await run_blocking(replicated.primary.end, signal.SIGINT)
        await run_blocking(first.promote)
        await load.wait_for_calls(50)
        await read_own_writes(memory, 20)
        assert not any(replica.in_use for replica in look_at_replicas(memory))
    async with PostgresConversationMemory(replicated.any_primary_dsn, replica_dsn=replicated.replica_dsn) as later:
        await read_own_writes(later, 20)
        assert [replica.trouble for replica in look_at_replicas(later)] == [
            "it accepts writes: it was promoted, or never was a replica",
            "it has replayed nothing yet that shows that it follows timeline 2",
        ]
    assert load.unavailable == []
    assert await fetch_rows(second.dsn, "SELECT pg_is_in_recovery()") == [(True,)]
    await check_history(fault, first.dsn, load.history())


@pytest.mark.asyncio
@pytest.mark.fault("every task of the application cancelled", backend="postgres")
async def test_a_handle_outlives_the_cancellation_of_every_task(replicated: Replicated, fault: Fault) -> None:
    """Recipes for a shutdown cancel all tasks, and then still use the handle; no connection is left behind."""
    async with replicated.open() as memory:
        session = await memory.create_session()
        await wait_for_use(memory, 2)
        for _ in range(5):
            callers = [asyncio.create_task(memory.get_history(session)) for _ in range(20)]
            await asyncio.sleep(0)
            own = asyncio.current_task()
            for task in asyncio.all_tasks():
                if task is not own:
                    task.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            await memory.add_message(session, "user", "x")
        await wait_for_use(memory, 2)
        counts = ReplicaCounts(memory)
        assert len(await memory.get_history(session)) == 5
        await wait_until(lambda: _reads_on_replica(memory, session, counts))
    for replica in replicated.replicas:
        await wait_until_none(replica.dsn, OTHER_CLIENTS)
    fault.add(acknowledged=5)


async def _reads_on_replica(memory: PostgresConversationMemory, session: str, counts: ReplicaCounts) -> bool:
    await memory.get_history(session)
    return counts.answered > 0


@pytest.mark.fault("event loop ended without a close", backend="postgres")
def test_the_end_of_a_loop_closes_the_connections(replicated: Replicated, fault: Fault) -> None:
    """A later call opens the replicas anew, from another loop."""
    memory = replicated.open()

    async def use() -> None:
        await memory.count_sessions()
        await memory.get_session("none")

    for _ in range(3):
        asyncio.run(use())
    asyncio.run(memory.close())

    async def look() -> None:
        for replica in replicated.replicas:
            await wait_until_none(replica.dsn, OTHER_CLIENTS)

    asyncio.run(look())
    fault.add(acknowledged=3)


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
