"""The migration command as a separate process, and a wait for the moment at which it needs a lock."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner, Result

from flux_memory.cli.migrate import migrate

# The migration kills itself after a given number of rows and reports.
CHILD: Final = """
import asyncio, os, signal, sys
from pathlib import Path
from flux_memory.transfer import Plan, migrate
from flux_memory.transfer.source import snapshot
path, dsn, rows, batch_size, helper_bytes = sys.argv[1:]
snapshot._HELPER_MIN_BYTES = int(helper_bytes)
class Watcher:
    left = int(rows)
    def phase(self, name, rows): self.advance(1)
    def say(self, line): pass
    def advance(self, rows):
        self.left -= rows
        if self.left < 0: os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(migrate(Plan(sqlite_path=Path(path), postgres_dsn=dsn, batch_size=int(batch_size)), Watcher()))
"""
ROUNDS_PER_KILL: Final = 4
"""Most rounds for each kill or interrupt; a run that ends first does not count."""


def seeded_random() -> random.Random:
    """Return the random numbers of a run, which `FLUX_MEMORY_TRANSFER_SEED` varies."""
    return random.Random(os.environ.get("FLUX_MEMORY_TRANSFER_SEED", "7"))


def start_command(*arguments: object) -> subprocess.Popen[str]:
    """Start the command."""
    command = [sys.executable, "-m", "flux_memory", "migrate", "--yes", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_migration(path: Path, dsn: str) -> subprocess.Popen[str]:
    return start_command("--sqlite-path", path, "--postgres-dsn", dsn, "--batch-size", 50)


def migrate_until_killed(path: Path, dsn: str, rows: int, *, batch_size: int, helper_bytes: int = 10**12) -> bool:
    """Run a migration that kills itself after some rows, and return whether it did.

    Args:
        path: The file.
        dsn: The target.
        rows: The rows and phases.
        batch_size: The rows of a commit.
        helper_bytes: The size from which a second process reads half of the file.
    """
    command = [sys.executable, "-c", CHILD, *map(str, (path, dsn, rows, batch_size, helper_bytes))]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL


async def wait_for_lock(connection: Any) -> int:
    """Wait until the migration waits for a lock, and return the process id of its server process."""
    async with asyncio.timeout(20):
        while True:
            pid = await connection.fetchval(
                "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'messages'::regclass LIMIT 1"
            ) or await connection.fetchval(
                "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'sessions'::regclass LIMIT 1"
            )
            if pid:
                return int(pid)


def invoke_migrate(*arguments: object) -> Result:
    """Run the command in this process."""
    result = CliRunner().invoke(migrate, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def name_sides(path: Path, dsn: str) -> tuple[object, ...]:
    """Return the options that name both sides."""
    return "--sqlite-path", path, "--postgres-dsn", dsn
