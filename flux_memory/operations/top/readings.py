"""Holds one reading of a store's activity, and the pace between two readings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Protocol

NEWEST_SESSIONS: Final = 8
"""Sessions that a reading lists."""


@dataclass(frozen=True)
class ActiveSession:
    """A session of the list of the newest ones."""

    id: str
    user_id: str
    messages: int
    age_seconds: float
    """Seconds since its last change."""


@dataclass(frozen=True)
class Application:
    """The connections of one application, or one process that has the file open."""

    name: str
    role: str
    """The database role, or the process id."""
    connections: int
    active: int | None = None
    """Connections that run a statement; `None` if this role may not see it."""
    idle_in_transaction: int | None = None


@dataclass(frozen=True)
class LockWait:
    """A connection that waits for a lock."""

    pid: int
    blocked_by: list[int]
    seconds: float
    what: str
    """The table, or the kind of lock."""
    application: str


@dataclass(frozen=True)
class TableSize:
    """A table with its indexes."""

    name: str
    size_bytes: int
    rows: int
    """About; by the server's statistics."""
    dead_rows: int
    """About; row versions that a vacuum will remove."""


@dataclass(frozen=True)
class ReplicaLag:
    """A replica, as its primary sees it."""

    name: str
    state: str
    behind_bytes: int | None
    behind_seconds: float | None


@dataclass(frozen=True)
class Reading:
    """One reading. Numbers are `None` where the engine, or the rights of the role, give none."""

    at: datetime
    backend: str
    target: str
    """The file, or the DSN without its password."""
    server: str
    role: str = ""
    """`primary` or `standby`; empty for SQLite."""
    sessions: int | None = None
    """About."""
    messages: int | None = None
    """About."""
    inserted: int | None = None
    """A count of added messages that only grows, of which the pace is computed."""
    adds_per_minute: float | None = None
    size_bytes: int | None = None
    connections: int | None = None
    max_connections: int | None = None
    oldest_transaction_seconds: float | None = None
    waiting: int | None = None
    """Connections that wait for a lock."""
    newest: list[ActiveSession] = field(default_factory=list)
    applications: list[Application] = field(default_factory=list)
    waits: list[LockWait] = field(default_factory=list)
    tables: list[TableSize] = field(default_factory=list)
    replicas: list[ReplicaLag] = field(default_factory=list)
    behind_bytes: int | None = None
    """On a standby: bytes of the log that are received and not yet replayed."""
    free_bytes: int | None = None
    """SQLite: bytes of free pages."""
    log_bytes: int | None = None
    """SQLite: bytes of the write-ahead log."""
    missing: list[str] = field(default_factory=list)
    """Parts that could not be read, each with the reason and the next step."""


class Activity(Protocol):
    """A store that can be read again and again."""

    async def read(self) -> Reading:
        """Read the activity.

        Raises:
            FluxMemoryError: The store cannot be read; the next call tries again.
        """
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


def with_pace(reading: Reading, earlier: Reading | None) -> Reading:
    """Return a reading with the adds a minute since an earlier one."""
    if earlier is None or reading.inserted is None or earlier.inserted is None:
        return reading
    seconds = (reading.at - earlier.at).total_seconds()
    added = reading.inserted - earlier.inserted
    # A server that has reset its statistics, and a clock that was set back, give no pace.
    if added < 0 or seconds <= 0:
        return reading
    return replace(reading, adds_per_minute=added * 60 / seconds)
