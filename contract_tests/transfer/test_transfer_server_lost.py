"""Tests a server that dies during a migration: the error is one sentence, and the next run completes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from raw_postgres import connect, execute
from transfer_memories import OTHER, Trigger, complete_migration, make_random_file, make_tables
from transfer_processes import start_migration, wait_for_lock
from waiting import wait_until

from flux_memory.errors import FluxMemoryError
from flux_memory.testkit.servers import Server, start_server
from flux_memory.testkit.servers import local as local_servers
from flux_memory.testkit.servers.binaries import Binaries, find_binaries, server_account
from flux_memory.testkit.servers.directories import processes_of
from flux_memory.transfer import Plan, migrate


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lost") / "chat.db"
    make_random_file(path, sessions=3000, messages=6000)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that the test may kill."""
    with start_server("local") as server:
        yield server


def kill_server(server: Server) -> None:
    """Kill the server's first process; the others notice it and end."""
    (pid,) = processes_of(server_directory(server))
    os.kill(pid, signal.SIGKILL)


def server_directory(server: Server) -> Path:
    return Path(server._running.directory)  # type: ignore[attr-defined]


def restart_server(server: Server) -> None:
    """Start the server on its data, as after a power cut."""
    top = server_directory(server)
    layout = local_servers._Layout(top)
    copied = top / "programs" / "bin" / "postgres"
    program = copied if copied.exists() else find_binaries().directory / "postgres"

    async def started() -> bool:
        # Refused until the last old process has ended; the first may stay a zombie and keep its locks.
        for lock in (layout.data / "postmaster.pid", *layout.home.glob(".s.PGSQL.*.lock")):
            lock.unlink(missing_ok=True)
        pid = local_servers._run(Binaries(program.parent, ""), server_account(), layout, {})
        return local_servers._becomes_ready(layout, pid)

    asyncio.run(wait_until(started))


@pytest.mark.parametrize("populated", [False, True], ids=["empty", "populated"])
@pytest.mark.parametrize(("phase", "rows"), [("Preflight", 0), ("Load", 4000), ("Verify", 0)])
def test_a_killed_server_is_started_and_the_migration_run_again(
    path: Path, server: Server, phase: str, rows: int, populated: bool
) -> None:
    """The next run completes after `kill -9` of PostgreSQL in each phase, for load and merge."""
    dsn = server.create_database()
    make_tables(dsn)
    asyncio.run(execute(dsn, *([OTHER] if populated else [])))
    trigger = Trigger(phase, lambda: kill_server(server), after_rows=rows)
    with pytest.raises(FluxMemoryError, match="PostgreSQL"):
        asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=dsn), trigger))
    assert trigger.acted
    restart_server(server)
    complete_migration(path, dsn, kept=populated)


def test_the_command_says_that_the_server_is_gone(path: Path, server: Server) -> None:
    """The command ends with exit code 1 and a sentence, without a traceback."""
    dsn = server.create_database()
    make_tables(dsn)

    async def killed() -> tuple[int, str]:
        async with connect(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            process = start_migration(path, dsn)
            await wait_for_lock(connection)
            kill_server(server)
            _, errors = await asyncio.to_thread(process.communicate, timeout=60)
            # This connection's server process.
            connection.terminate()
            return process.returncode, errors

    code, errors = asyncio.run(killed())
    restart_server(server)
    assert code == 1
    assert errors.startswith("FAILED  PostgreSQL at")
    assert "Traceback" not in errors
    complete_migration(path, dsn, kept=False)
