"""If the server dies during a migration, the error is one sentence, and the next run completes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from raw_postgres import connected, execute
from transfer_memories import OTHER, Trigger, everything, make_random, make_tables, move
from transfer_processes import start_there, waiting_for_lock
from waiting import until

from flux_memory.errors import FluxMemoryError
from flux_memory.testkit.servers import Server, start_server
from flux_memory.testkit.servers import local as local_servers
from flux_memory.testkit.servers.binaries import find_binaries, run_as, server_account
from flux_memory.testkit.servers.directories import _processes_in
from flux_memory.transfer import Plan, Status, migrate


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lost") / "chat.db"
    make_random(path, sessions=3000, messages=6000)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that the test may kill."""
    with start_server("local") as server:
        yield server


def kill(server: Server) -> None:
    """Kill the server's first process; the others notice it and end."""
    (pid,) = _processes_in(directory(server))
    os.kill(pid, signal.SIGKILL)


def directory(server: Server) -> Path:
    return Path(server._running.directory)  # type: ignore[attr-defined]


def start_again(server: Server) -> None:
    """Start the server on its data, as after a power cut."""
    top = directory(server)
    layout = local_servers._Layout(top)
    copied = top / "programs" / "bin" / "postgres"
    program = copied if copied.exists() else find_binaries().directory / "postgres"
    command = ["/bin/sh", "-c", local_servers._IN_BACKGROUND, str(program), str(layout.data), str(layout.log)]

    async def started() -> bool:
        # Refused until the last old process has ended; the first may stay a zombie and keep its locks.
        for lock in (layout.data / "postmaster.pid", *layout.home.glob(".s.PGSQL.*.lock")):
            lock.unlink(missing_ok=True)
        process = run_as(server_account(), command, local_servers._ENVIRONMENT)
        return local_servers._becomes_ready(layout, int(process.stdout))

    asyncio.run(until(started))


@pytest.mark.parametrize("populated", [False, True], ids=["empty", "populated"])
@pytest.mark.parametrize(("phase", "rows"), [("Preflight", 0), ("Load", 4000), ("Verify", 0)])
def test_a_killed_server_is_started_and_the_migration_run_again(
    path: Path, server: Server, phase: str, rows: int, populated: bool
) -> None:
    """The next run completes after `kill -9` of PostgreSQL in each phase, for load and merge."""
    dsn = server.create_database()
    make_tables(dsn)
    asyncio.run(execute(dsn, *([OTHER] if populated else [])))
    trigger = Trigger(phase, lambda: kill(server), after_rows=rows)
    with pytest.raises(FluxMemoryError, match="PostgreSQL"):
        asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=dsn), trigger))
    assert trigger.acted
    start_again(server)
    complete(path, dsn, kept=populated)


def complete(path: Path, dsn: str, *, kept: bool) -> None:
    """Run the migration again; each row is stored once."""
    assert move(path, dsn).status is Status.IDENTICAL
    sessions, messages = everything(dsn)
    assert (len(sessions), len(messages)) == (3000 + kept, 6000)
    assert len({row[1] for row in messages}) == 6000


def test_the_command_says_that_the_server_is_gone(path: Path, server: Server) -> None:
    """The command ends with exit code 1 and a sentence, without a traceback."""
    dsn = server.create_database()
    make_tables(dsn)

    async def killed() -> tuple[int, str]:
        async with connected(dsn) as connection:
            await connection.execute("BEGIN; SELECT FROM sessions; SELECT FROM messages")
            process = start_there(path, dsn)
            await waiting_for_lock(connection)
            kill(server)
            _, errors = await asyncio.to_thread(process.communicate, timeout=60)
            # The server process of our own connection.
            connection.terminate()
            return process.returncode, errors

    code, errors = asyncio.run(killed())
    start_again(server)
    assert code == 1
    assert errors.startswith("FAILED  PostgreSQL at")
    assert "Traceback" not in errors
    complete(path, dsn, kept=False)
