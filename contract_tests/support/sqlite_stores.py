"""SQLite stores for the tests of damaged files: how to create, damage and read one without the library."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from flux_memory import ConversationMemory, Memory

PAGE_BYTES: Final = 4096
MESSAGES: Final = 40


async def add_long_sessions(memory: Memory) -> None:
    """Store three sessions whose messages fill pages of their own."""
    for session in ("first", "second", "third"):
        await memory.create_session(session_id=session)
        for number in range(MESSAGES):
            content = f"{session} {number} " + "x" * 900
            await memory.add_message(session, "user", content, message_id=f"{session}{number}")


def make_long_store(path: Path) -> Path:
    """Create a store with long sessions, and close it properly."""

    async def make() -> None:
        async with ConversationMemory(path) as memory:
            await add_long_sessions(memory)

    asyncio.run(make())
    return path


def log_of(path: Path) -> Path:
    """Return the path of a store's write-ahead log."""
    return path.with_name(path.name + "-wal")


def overwrite(path: Path, at: int, content: bytes) -> None:
    """Replace bytes of a file in place."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def read_intact(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Return rows of a file, which must be intact, without the library."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return db.execute(sql).fetchall()
