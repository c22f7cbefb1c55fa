"""Access to a SQLite memory beside its methods: the file, and the connection that the library uses."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from flux_memory import ConversationMemory
from flux_memory.backends.shared_timer import SharedTimer


def execute_in_file(path: Path, sql: str, *values: object) -> None:
    """Write to a file without the library."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(sql, values)


async def run_on_worker(memory: ConversationMemory, work: Callable[[sqlite3.Connection], Any]) -> Any:
    """Run work on the connection that the library uses, on its thread."""
    worker, timer = await memory._life.opened(), SharedTimer(asyncio.get_running_loop())
    return await worker.read(work, 5, timer)
