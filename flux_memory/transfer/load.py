"""Fills an empty target: COPY without keys, the keys rebuilt afterwards, all of it in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, NamedTuple

import asyncpg

from flux_memory.errors import MigrationError
from flux_memory.transfer.checked import RowChecker
from flux_memory.transfer.conversations import accepted
from flux_memory.transfer.digests import DigestSpool
from flux_memory.transfer.preflight import Advance
from flux_memory.transfer.source import Source
from flux_memory.transfer.target import NO_DEADLINES
from flux_memory.transfer.wire import (
    COPY_HEADER,
    COPY_TRAILER,
    MESSAGE_COLUMNS,
    SESSION_COLUMNS,
    SessionRow,
    copy_message,
    copy_session,
    field,
)

# One migration at a time; a second one finds the first one's rows and goes on from there.
LOCK_MIGRATIONS: Final = "SELECT pg_advisory_xact_lock(hashtextextended('flux_memory_transfer', 0))"
LOCK_TABLES: Final = "LOCK TABLE sessions, messages IN ACCESS EXCLUSIVE MODE"
HAS_ROWS: Final = "SELECT EXISTS (SELECT FROM sessions) OR EXISTS (SELECT FROM messages)"
# Only plain tables of our own role, that nothing outside refers to, can have their keys taken off for a while.
IS_PLAIN: Final = """
SELECT count(*) = 2
    AND bool_and(relkind = 'r' AND relpersistence = 'p' AND pg_has_role(relowner, 'USAGE'))
    AND NOT EXISTS (
        SELECT FROM pg_constraint
        WHERE contype = 'f' AND confrelid IN ('sessions'::regclass, 'messages'::regclass)
            AND conrelid NOT IN ('sessions'::regclass, 'messages'::regclass)
    )
    AND NOT EXISTS (
        SELECT FROM pg_index
        WHERE indrelid IN ('sessions'::regclass, 'messages'::regclass) AND (indisreplident OR indisclustered)
    )
    AND NOT EXISTS (
        SELECT FROM pg_inherits
        WHERE inhrelid IN ('sessions'::regclass, 'messages'::regclass)
            OR inhparent IN ('sessions'::regclass, 'messages'::regclass)
    )
FROM pg_class
WHERE oid IN ('sessions'::regclass, 'messages'::regclass)
"""
# Foreign keys first, since they rest on the others; they come back last.
SELECT_CONSTRAINTS: Final = """
SELECT
    format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
    format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint
WHERE conrelid IN ('sessions'::regclass, 'messages'::regclass) AND contype IN ('p', 'u', 'x', 'f')
ORDER BY contype <> 'f', conrelid, conname
"""
SELECT_INDEXES: Final = """
SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index
WHERE indrelid IN ('sessions'::regclass, 'messages'::regclass)
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
ORDER BY indexrelid::regclass::text
"""
# Rows written into a table that was emptied in the same transaction can be frozen at once.
EMPTY: Final = "TRUNCATE sessions, messages"
RAISE_MEMORY: Final = """
SELECT set_config('maintenance_work_mem', $1 || 'kB', TRUE)
WHERE pg_size_bytes(current_setting('maintenance_work_mem')) < $1::bigint * 1024
"""

_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '30s'"
_CHUNK: Final = 256 * 1024
_BYTES_A_KEY: Final = 160
_MOST_MEMORY: Final = 1024 * 1024
"""Kilobytes of maintenance_work_mem."""


class Loaded(NamedTuple):
    """What was loaded."""

    sessions: int
    messages: int


async def load(
    connection: Any, source: Source, checker: RowChecker, spool: DigestSpool, *, trusted: bool, advance: Advance
) -> Loaded | None:
    """Fill an empty target, or return `None`, with nothing changed, where it is not empty or not ours to rebuild.

    Args:
        connection: To a target whose schema is current.
        source: What was preflighted.
        checker: The one that preflighted it.
        spool: What the preflight found, for the number of each session's messages.
        trusted: Whether the preflight refused nothing.
        advance: Told how many rows were sent.
    """
    async with connection.transaction(isolation="read_committed", readonly=False):
        await connection.execute(NO_DEADLINES)
        await connection.execute(LOCK_MIGRATIONS)
        if await connection.fetchval(HAS_ROWS) or not await connection.fetchval(IS_PLAIN):
            return None
        await _lock_tables(connection)
        if await connection.fetchval(HAS_ROWS):
            return None
        keys = [*await connection.fetch(SELECT_CONSTRAINTS), *await connection.fetch(SELECT_INDEXES)]
        for drop, _ in keys:
            await connection.execute(drop)
        await connection.execute(EMPTY)
        sessions = _Sending(_session_rows(source, checker, spool), advance)
        await _copy(connection, "sessions", SESSION_COLUMNS, sessions)
        messages = _Sending(_message_rows(source, checker, trusted), advance)
        await _copy(connection, "messages", MESSAGE_COLUMNS, messages)
        memory = max(messages.rows * _BYTES_A_KEY // 1024, 1024)
        await connection.execute(RAISE_MEMORY, str(min(memory, _MOST_MEMORY)))
        for _, create in reversed(keys):
            await connection.execute(create)
    await connection.execute("ANALYZE sessions, messages")
    return Loaded(sessions.rows, messages.rows)


async def _lock_tables(connection: Any) -> None:
    try:
        await connection.execute(_LOCK_TIMEOUT)
        await connection.execute(LOCK_TABLES)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
        raise MigrationError(
            "an application holds locks on the target's tables, perhaps by a transaction left open (see "
            "pg_stat_activity); nothing was changed. End it, and run again"
        ) from error


class _Sending:
    """Rows gathered into pieces of COPY data, made on another thread while the last piece is on its way."""

    def __init__(self, rows: Iterator[bytes], advance: Advance) -> None:
        self.rows = 0
        self._rows = rows
        self._advance = advance

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield COPY_HEADER
        while piece := await asyncio.to_thread(self._piece):
            yield piece
        yield COPY_TRAILER

    def _piece(self) -> bytes:
        gathered: list[bytes] = []
        size = 0
        for row in self._rows:
            gathered.append(row)
            size += len(row)
            if size >= _CHUNK:
                break
        self.rows += len(gathered)
        self._advance(len(gathered))
        return b"".join(gathered)


async def _copy(connection: Any, table: str, columns: tuple[str, ...], rows: _Sending) -> None:
    await connection.copy_to_table(table, source=aiter(rows), columns=columns, format="binary", freeze=True)


def _session_rows(source: Source, checker: RowChecker, spool: DigestSpool) -> Iterator[bytes]:
    counts = iter(spool)
    for raw in source.sessions():
        row = checker.session(raw)
        if isinstance(row, SessionRow):
            yield copy_session(row, next(counts).count)


def _message_rows(source: Source, checker: RowChecker, trusted: bool) -> Iterator[bytes]:
    for session, messages in accepted(source, checker, trusted=trusted):
        session_field = field(session.id)
        for seq, message in enumerate(messages, 1):
            yield copy_message(session_field, seq, message)
