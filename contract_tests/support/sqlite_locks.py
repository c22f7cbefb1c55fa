"""A second process that holds the lock of a SQLite file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

HOLDER: Final = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    db.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.read()
"""
# The first keeps writers out. The second keeps readers out too; take it while no other client has the file open.
WRITE_LOCK: Final = ("BEGIN IMMEDIATE",)
EXCLUSIVE: Final = (
    "PRAGMA locking_mode = EXCLUSIVE",
    "BEGIN EXCLUSIVE",
    "UPDATE sessions SET user_id = user_id",
    "COMMIT",
)


@contextmanager
def hold_lock(path: Path, *statements: str) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold a lock until the block ends or the process is killed."""
    command = [sys.executable, "-c", HOLDER, str(path), *statements]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
