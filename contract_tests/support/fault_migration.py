"""A migration that faults interrupt: its size, its target, and whether it ended well."""

from __future__ import annotations

from pathlib import Path

from raw_postgres import execute
from transfer_memories import move

from flux_memory import FluxMemoryError, PostgresConversationMemory
from flux_memory.transfer import Status

SESSIONS, MESSAGES = 30, 2000
CLEAN = "DROP TABLE IF EXISTS messages, sessions, flux_memory_schema CASCADE"


def ended_well(path: Path, dsn: str) -> bool:
    """Migrate, and tell whether it succeeded; whatever breaks is an error of ours."""
    try:
        return move(path, dsn, batch_size=50).status is Status.IDENTICAL
    except FluxMemoryError:
        return False


async def prepared(dsn: str, statements: list[str]) -> None:
    """Let the library make its tables, and put in what others have."""
    async with PostgresConversationMemory(dsn, min_size=1) as memory:
        await memory.count_sessions()
    await execute(dsn, *statements)
