"""Runs a week of operation on one store under load: backups, a lost replica, a fail-over, pruning, a move to SQLite."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from fault_cluster import run_blocking, wait_for_replica
from fault_load import Load
from fault_report import Fault
from raw_postgres import execute
from replicated_cluster import Replicated, run_replicated, wait_for_use

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory, Session
from flux_memory.testkit.histories import check, read_stored

CALLS_A_DAY: Final = 60
OLD_SESSIONS: Final = 12
PAGE: Final = 50
MAKE_OLD: Final = "UPDATE sessions SET updated_at = '2026-01-02' WHERE user_id = 'inactive'"


async def run_command(*arguments: str) -> Any:
    """Run a command in a process of its own, beside the load, and return the object that it prints."""
    command = [sys.executable, "-m", "flux_memory", *arguments, "--json"]
    done = await run_blocking(lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


async def add_old_sessions(memory: Memory, dsn: str) -> None:
    """Store sessions without a change for a long time, with feedback, which outlives them."""
    for number in range(OLD_SESSIONS):
        session, message = f"old-{number}", f"answer {number}"
        await memory.add_message(session, "user", "Hello", message_id=message, create=True, user_id="inactive")
        await memory.feedback.add(session, number % 3 - 1, message_id=message, comment="한국어 \U0001f600")
    await execute(dsn, MAKE_OLD)


async def read_everything(memory: Memory) -> dict[str, Any]:
    """Return all sessions, histories and feedback. Revisions are made anew by a restore."""
    sessions: list[Session] = []
    while page := await memory.get_sessions(PAGE, before=sessions[-1] if sessions else None):
        sessions += page
    return {
        "sessions": [{**each, "revision": ""} for each in sessions],
        "histories": {each["id"]: await memory.get_history(each["id"]) for each in sessions},
        "feedback": await memory.feedback.get(None),
        "stats": await memory.feedback.stats(),
    }


async def operate(memory: PostgresConversationMemory, store: Replicated, load: Load, backups: Path) -> None:
    """Do an operator's work of seven days, with calls of the application before and after each of them."""
    first, second = store.replicas
    dsn = store.any_primary_dsn
    backup = ("backup", str(backups), "--postgres-dsn", dsn, "--keep-daily", "2")

    await load.wait_for_calls(CALLS_A_DAY)
    await run_command(*backup)

    await run_blocking(second.end, signal.SIGQUIT)
    await load.wait_for_calls(CALLS_A_DAY)
    await run_command(*backup)

    await run_blocking(second.start)
    await wait_for_use(memory, 2)
    await load.wait_for_calls(CALLS_A_DAY)

    # An orderly shutdown sends everything to the replicas before it ends.
    await run_blocking(store.primary.end, signal.SIGINT)
    await run_blocking(first.promote)
    await load.wait_for_calls(CALLS_A_DAY)
    await run_command(*backup)

    await run_command(*backup, "--archive")
    await load.wait_for_calls(CALLS_A_DAY)

    assert await memory.count_sessions(user_id="inactive") == OLD_SESSIONS
    await run_blocking(
        lambda: subprocess.run(
            [sys.executable, "-m", "flux_memory", "prune", "--postgres-dsn", dsn, "--inactive", "90d", "--yes"],
            check=True,
            capture_output=True,
        )
    )
    await load.wait_for_calls(CALLS_A_DAY)
    assert await memory.count_sessions(user_id="inactive") == 0


@pytest.mark.asyncio
@pytest.mark.fault("a week of operation", backend="postgres")
async def test_a_week_of_operation_ends_with_equal_stores(tmp_path: Path, fault: Fault) -> None:
    """Nothing acknowledged is lost on the way, and the last archive holds in SQLite exactly what PostgreSQL holds."""
    backups, restored = tmp_path / "backups", tmp_path / "restored.db"
    backups.mkdir()
    with run_replicated() as store:
        dsn = store.any_primary_dsn
        async with PostgresConversationMemory(dsn, replica_dsn=store.replica_dsn, timeout=60) as memory:
            await add_old_sessions(memory, store.primary.dsn)
            await wait_for_replica(store.primary, store.replicas[0])
            await wait_for_use(memory, 2)
            async with Load(memory, tmp_path / "journal", writers=4) as load:
                await operate(memory, store, load, backups)
            assert not load.unavailable

            (archive,) = {Path((await run_command("backup", str(backups), "--archive", "--postgres-dsn", dsn))["path"])}
            await run_command("restore", str(archive), "--sqlite-path", str(restored))
            async with ConversationMemory(restored) as copy:
                assert await read_everything(copy) == await read_everything(memory)

            stored = await read_stored(memory)
            assert check(load.history(), stored) == []
            fault.add(acknowledged=load.acknowledged)
    assert len(await asyncio.to_thread(lambda: [*backups.iterdir()])) > 0
