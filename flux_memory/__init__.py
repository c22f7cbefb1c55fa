"""Conversation memory for LLM applications, with the same behaviour on SQLite and PostgreSQL.

The public names of the library. Each is imported on first use, so that importing the package is cheap and loads only
the driver in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flux_memory.lazy import import_on_use

if TYPE_CHECKING:
    from flux_memory.backends.deadlines import deadline, seconds_for
    from flux_memory.backends.pool_stats import PoolStats
    from flux_memory.backends.postgres.memory import PostgresConversationMemory
    from flux_memory.backends.sqlite.memory import ConversationMemory
    from flux_memory.errors import (
        BackendUnavailableError,
        BackupError,
        ConflictError,
        FluxMemoryError,
        InvalidInputError,
        InvalidTypeError,
        MemoryClosedError,
        MigrationError,
        OutcomeUnknownError,
        SchemaError,
        SessionNotFoundError,
    )
    from flux_memory.factory import create_memory
    from flux_memory.feedback import Feedback, FeedbackDay, FeedbackEntry, FeedbackStats
    from flux_memory.protocol import Memory, Message, Metadata, NewMessage, Session
    from flux_memory.records.limits import (
        MAX_BATCH_BYTES,
        MAX_CONTENT_BYTES,
        MAX_FILTER_ELEMENTS,
        MAX_FILTER_VALUES,
        MAX_ID_LENGTH,
        MAX_METADATA_BYTES,
        MAX_METADATA_DEPTH,
        MAX_USER_ID_LENGTH,
    )
    from flux_memory.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_CONTENT_BYTES",
    "MAX_FILTER_ELEMENTS",
    "MAX_FILTER_VALUES",
    "MAX_ID_LENGTH",
    "MAX_METADATA_BYTES",
    "MAX_METADATA_DEPTH",
    "MAX_USER_ID_LENGTH",
    "BackendUnavailableError",
    "BackupError",
    "ConflictError",
    "ConversationMemory",
    "Feedback",
    "FeedbackDay",
    "FeedbackEntry",
    "FeedbackStats",
    "FluxMemoryError",
    "InvalidInputError",
    "InvalidTypeError",
    "Memory",
    "MemoryClosedError",
    "Message",
    "Metadata",
    "MigrationError",
    "NewMessage",
    "OutcomeUnknownError",
    "PoolStats",
    "PostgresConversationMemory",
    "SchemaError",
    "Session",
    "SessionNotFoundError",
    "Settings",
    "create_memory",
    "deadline",
    "seconds_for",
]

__getattr__, __dir__ = import_on_use(
    __name__,
    {
        "backends.deadlines": ("deadline", "seconds_for"),
        "backends.pool_stats": ("PoolStats",),
        "backends.postgres.memory": ("PostgresConversationMemory",),
        "backends.sqlite.memory": ("ConversationMemory",),
        "errors": (
            "BackendUnavailableError",
            "BackupError",
            "ConflictError",
            "FluxMemoryError",
            "InvalidInputError",
            "InvalidTypeError",
            "MemoryClosedError",
            "MigrationError",
            "OutcomeUnknownError",
            "SchemaError",
            "SessionNotFoundError",
        ),
        "factory": ("create_memory",),
        "feedback": ("Feedback", "FeedbackDay", "FeedbackEntry", "FeedbackStats"),
        "protocol": (
            "Memory",
            "Message",
            "Metadata",
            "NewMessage",
            "Session",
        ),
        "records.limits": (
            "MAX_BATCH_BYTES",
            "MAX_CONTENT_BYTES",
            "MAX_FILTER_ELEMENTS",
            "MAX_FILTER_VALUES",
            "MAX_ID_LENGTH",
            "MAX_METADATA_BYTES",
            "MAX_METADATA_DEPTH",
            "MAX_USER_ID_LENGTH",
        ),
        "settings": ("Settings",),
    },
)
