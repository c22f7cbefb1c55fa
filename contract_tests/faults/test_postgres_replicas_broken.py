"""Tests reads under load while replicas die, hang or are promoted: no call fails, and no other history shows."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from fault_cluster import run_blocking, wait_for_replica
from fault_load import Load, check_history
from fault_report import Fault
from raw_postgres import execute, fetch_rows
from replicated_cluster import (
    ReplicaCounts,
    Replicated,
    look_at_replicas,
    read_own_writes,
    replay_paused,
    wait_for_use,
)
from waiting import wait_until

from flux_memory import BackendUnavailableError, PostgresConversationMemory


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


GUIDE: Final = Path(__file__).parents[2] / "docs/operations/replicas.md"
ENOUGH_SECONDS: Final = 3.0
"""Seconds without the primary after which every look at the replicas and at the primary's log has failed."""
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
@pytest.mark.fault("primary killed, reads by a second handle on the replicas", backend="postgres")
async def test_the_recipe_reads_while_the_primary_is_down(broken_replicated: Replicated, fault: Fault) -> None:
    """As the guide prints it: an old answer says so, also if the second handle opens during the outage."""
    recipe: dict[str, Any] = {}
    section = GUIDE.read_text().partition("\n## While the primary is down\n")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    exec(code, recipe)
    replicated = broken_replicated
    async with (
        replicated.open() as memory,
        PostgresConversationMemory(replicated.replica_dsn) as early,
        PostgresConversationMemory(replicated.replica_dsn) as late,
    ):
        session = await memory.create_session()
        await memory.add_message(session, "user", "before")
        for replica in replicated.replicas:
            await wait_for_replica(replicated.primary, replica)
        assert await early.get_session(session) is not None
        history, is_old = await recipe["read_history"](memory, early, session)
        assert ([message["content"] for message in history], is_old) == (["before"], False)
        await run_blocking(replicated.primary.end, signal.SIGKILL)

        async def reads_old(standby: PostgresConversationMemory) -> bool:
            history, is_old = await recipe["read_history"](memory, standby, session)
            assert [message["content"] for message in history] == ["before"]
            return bool(is_old)

        for standby in (early, late):
            await wait_until(partial(reads_old, standby))
    fault.add(acknowledged=2)


@pytest.mark.asyncio
@pytest.mark.fault("primary killed, reads within the allowed lag", backend="postgres")
async def test_reads_go_on_without_the_primary_for_the_allowed_lag(broken_replicated: Replicated, fault: Fault) -> None:
    """The replicas have what was acknowledged before the primary ended, which is not older than allowed."""
    replicated = broken_replicated
    async with replicated.open(max_replica_lag=60, timeout=5) as memory:
        session = await memory.create_session()
        await memory.add_message(session, "user", "before")
        await wait_for_use(memory, 2)
        counts = ReplicaCounts(memory)

        async def comes_from_a_replica() -> bool:
            before = counts.answered
            await memory.count_sessions()
            await memory.get_history(session)
            return counts.answered == before + 2

        await wait_until(comes_from_a_replica)
        await run_blocking(replicated.primary.end, signal.SIGKILL)
        began = time.monotonic()
        while time.monotonic() - began < ENOUGH_SECONDS:
            assert [message["content"] for message in await memory.get_history(session)] == ["before"]
            assert await memory.count_sessions() == 1
        with pytest.raises(BackendUnavailableError):
            await memory.add_message(session, "user", "after")
    fault.add(acknowledged=2)
