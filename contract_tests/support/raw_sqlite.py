"""A SQLite memory reached past its methods: its file, and the very connection that it uses."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from flux_memory import ConversationMemory


def change(path: Path, sql: str, *values: object) -> None:
    """Write past the library."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(sql, values)


async def on_the_thread(memory: ConversationMemory, work: Callable[[sqlite3.Connection], Any]) -> Any:
    """Run work on the very connection that the library uses."""
    return await (await memory._life.opened()).read(work, 5)
