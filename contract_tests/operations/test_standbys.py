"""Runs the operator's commands on a primary with a replica, and on the replica itself."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from fault_cluster import wait_for_replica
from raw_postgres import create_role, execute
from replicated_cluster import Replicated, replay_paused, run_replicated
from rich.console import Console
from secret_watch import watch_password
from waiting import wait_until

from flux_memory import PostgresConversationMemory
from flux_memory.cli import main, top_view
from flux_memory.operations.top import Reading
from flux_memory.operations.top.server_activity import ServerActivity


@pytest.fixture(scope="module")
def pair() -> Iterator[Replicated]:
    """A primary and one replica."""
    with run_replicated(1, durable=False) as pair:
        watch_password(pair.primary.dsn)
        yield pair


async def read(dsn: str) -> Reading:
    activity = ServerActivity(dsn, 5)
    try:
        return await activity.read()
    finally:
        await activity.close()


def draw(reading: Reading) -> str:
    console = Console(width=120, height=60, color_system=None)
    with console.capture() as capture:
        console.print(top_view.draw(reading, 120))
    return capture.get()


@pytest.mark.asyncio
async def test_the_lag_is_shown_on_both_sides(pair: Replicated) -> None:
    """A replica that does not replay falls behind, as the primary and the replica itself say, and catches up."""
    (replica,) = pair.replicas
    async with PostgresConversationMemory(pair.primary.dsn) as memory:
        await memory.create_session(session_id="one")
        await wait_for_replica(pair.primary, replica)
        async with replay_paused(replica):
            for _ in range(20):
                await memory.add_message("one", "user", "x" * 1000)

            async def seen() -> bool:
                (lag,) = (await read(pair.primary.dsn)).replicas
                return (lag.behind_bytes or 0) > 20_000 and ((await read(replica.dsn)).behind_bytes or 0) > 20_000

            await wait_until(seen)
            there, here = await read(pair.primary.dsn), await read(replica.dsn)
        await wait_for_replica(pair.primary, replica)
    assert (there.role, here.role) == ("primary", "standby")
    assert there.replicas[0].state == "streaming"
    assert "Replicas" in draw(there)
    assert "received and not yet replayed" in draw(here)
    assert "lag=" in top_view.as_line(here)
    assert (await read(replica.dsn)).behind_bytes == 0


@pytest.mark.asyncio
async def test_the_lag_needs_a_right(pair: Replicated) -> None:
    """A role without it learns that there is a replica, and what it lacks."""
    async with create_role(pair.primary.dsn) as dsn:
        reading = await read(dsn)
        assert reading.replicas == []
        assert any(
            each.startswith("the lag of the replicas (1): needs the role pg_read_all_stats") for each in reading.missing
        )
        await execute(pair.primary.dsn, f"GRANT pg_read_all_stats TO {dsn.partition('//')[2].partition(':')[0]}")
        assert len((await read(dsn)).replicas) == 1


def test_the_check_names_a_standby_and_a_deletion_is_refused_there(pair: Replicated) -> None:
    """Monitoring sees the role, and an operator who took the wrong host learns it at once."""
    (replica,) = pair.replicas
    found = json.loads(CliRunner().invoke(main, ["check", "--json", "--postgres-dsn", replica.dsn]).stdout)
    assert (found["ok"], found["role"]) == (True, "standby")
    assert any("standby" in finding["message"] for finding in found["findings"])
    result = CliRunner().invoke(main, ["prune", "--postgres-dsn", replica.dsn, "--inactive", "1h"])
    assert result.exit_code == 1
    assert "connect to the primary" in result.stderr or "standby" in result.stderr
    assert (
        CliRunner().invoke(main, ["prune", "--postgres-dsn", replica.dsn, "--inactive", "1h", "--dry-run"]).exit_code
        == 0
    )
