"""`create_memory()`: the backend that the settings choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flux_memory.protocol import Memory
    from flux_memory.settings import Settings


def create_memory(settings: Settings | None = None) -> Memory:
    """Make a memory; nothing is opened before its first use.

    Args:
        settings: By default those of the environment and `.env`.

    Raises:
        InvalidInputError: The settings are wrong; the message names the one to mend.
    """
    if settings is None:
        from flux_memory.settings import load_settings  # noqa: PLC0415 - costs more than the rest of the package

        settings = load_settings()
    if settings.database_backend == "postgres":
        from flux_memory.backends.postgres import PostgresConversationMemory  # noqa: PLC0415 - only this driver

        return PostgresConversationMemory(settings.require_postgres_dsn())
    from flux_memory.backends.sqlite import ConversationMemory  # noqa: PLC0415 - only this driver

    return ConversationMemory(settings.sqlite_path)
