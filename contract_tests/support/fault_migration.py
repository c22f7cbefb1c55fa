"""Migrations that a fault interrupts: how to run one, and how to prepare its target."""

from __future__ import annotations

from pathlib import Path

from raw_postgres import execute
from transfer_memories import move

from flux_memory import FluxMemoryError, PostgresConversationMemory

SESSIONS, MESSAGES = 30, 2000
CLEAN = (
    "DROP TABLE IF EXISTS messages, session_details, sessions, feedback, flux_memory_schema, flux_memory_moves, "
    "flux_memory_moved_sessions, flux_memory_moved_feedback CASCADE"
)


def migrate_succeeds(path: Path, dsn: str) -> bool:
    """Migrate and return whether it succeeded; any failure must be an error of the library."""
    try:
        return move(path, dsn, batch_size=50).exit_code == 0
    except FluxMemoryError:
        return False


async def prepare_target(dsn: str, statements: list[str]) -> None:
    """Let the library create its tables, then run statements that add objects of other clients."""
    async with PostgresConversationMemory(dsn, min_size=1) as memory:
        await memory.count_sessions()
    await execute(dsn, *statements)
