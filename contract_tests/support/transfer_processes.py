"""The migration command in a process of its own, and the moment at which it waits for a lock."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in its own process."""
    command = [sys.executable, "-m", "flux_memory", "migrate", "--yes", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_there(path: Path, dsn: str) -> subprocess.Popen[str]:
    return start("--sqlite-path", path, "--postgres-dsn", dsn, "--batch-size", 50)


async def waiting_for_lock(connection: Any) -> int:
    """Wait until the migration waits for a lock, and return the pid of its server process."""
    async with asyncio.timeout(20):
        while True:
            pid = await connection.fetchval(
                "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'messages'::regclass LIMIT 1"
            ) or await connection.fetchval(
                "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'sessions'::regclass LIMIT 1"
            )
            if pid:
                return int(pid)
