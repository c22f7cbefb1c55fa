"""Creates the memory of the backend that the settings choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flux_memory.errors import InvalidTypeError

if TYPE_CHECKING:
    from flux_memory.backends.postgres.memory import PostgresConversationMemory
    from flux_memory.backends.sqlite.memory import ConversationMemory
    from flux_memory.settings import Settings


def create_memory(settings: Settings | None = None) -> ConversationMemory | PostgresConversationMemory:
    """Create a memory; it connects at its first call.

    Args:
        settings: By default those of the environment and `.env`.

    Raises:
        InvalidInputError: A setting is invalid; the message names it.
        FluxMemoryError: The settings ask for telemetry, and `opentelemetry-api` is not installed.
    """
    from flux_memory.settings import Settings, load_settings  # noqa: PLC0415 - costs more than the rest of the package

    if settings is None:
        settings = load_settings()
    if not isinstance(settings, Settings):
        # The argument may be a DSN with a password, and some tools print the variables of a traceback's frames.
        given, settings = type(settings).__name__, None
        raise InvalidTypeError(
            f"settings must be of the type Settings or None, not {given}; a path is for ConversationMemory(), a DSN "
            "for PostgresConversationMemory()"
        )
    memory = _create(settings)
    if settings.telemetry:
        from flux_memory.operations.telemetry import instrument  # noqa: PLC0415 - an optional package

        instrument(memory)
    return memory


def _create(settings: Settings) -> ConversationMemory | PostgresConversationMemory:
    slow = settings.slow_call_seconds
    if settings.database_backend == "postgres":
        from flux_memory.backends.postgres.memory import PostgresConversationMemory  # noqa: PLC0415 - only this driver

        return PostgresConversationMemory(
            settings.require_postgres_dsn(), replica_dsn=settings.find_replica_dsn(), slow_call_seconds=slow
        )
    from flux_memory.backends.sqlite.memory import ConversationMemory  # noqa: PLC0415 - only this driver

    return ConversationMemory(settings.sqlite_path, slow_call_seconds=slow)
