"""Fills an empty target in one transaction: drop the keys, COPY the rows, build the keys again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import asyncpg

from flux_memory.errors import MigrationError
from flux_memory.transfer.progress import Advance, Watcher
from flux_memory.transfer.rows.pgcopy import COPY_HEADER, COPY_TRAILER, MESSAGE_COLUMNS, SESSION_COLUMNS
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.target.server import write_transaction

# Serializes migrations; a second one then finds the first one's rows and merges.
LOCK_MIGRATIONS: Final = "SELECT pg_advisory_xact_lock(hashtextextended('flux_memory_transfer', 0::bigint))"
LOCK_TABLES: Final = "LOCK TABLE sessions, messages IN ACCESS EXCLUSIVE MODE"
HAS_ROWS: Final = "SELECT EXISTS (SELECT FROM sessions) OR EXISTS (SELECT FROM messages)"
# Keys may be dropped only on plain tables of our role to which no other table or index refers.
IS_PLAIN: Final = """
SELECT count(*) = 2
    AND bool_and(relkind = 'r' AND relpersistence = 'p' AND pg_has_role(relowner, 'USAGE'))
    AND NOT EXISTS (
        SELECT FROM pg_constraint
        WHERE contype = 'f' AND confrelid IN ('sessions'::regclass::oid, 'messages'::regclass::oid)
            AND conrelid NOT IN ('sessions'::regclass::oid, 'messages'::regclass::oid)
    )
    AND NOT EXISTS (
        SELECT FROM pg_index
        WHERE indrelid IN ('sessions'::regclass::oid, 'messages'::regclass::oid) AND (indisreplident OR indisclustered)
    )
    AND NOT EXISTS (
        SELECT FROM pg_inherits
        WHERE inhrelid IN ('sessions'::regclass::oid, 'messages'::regclass::oid)
            OR inhparent IN ('sessions'::regclass::oid, 'messages'::regclass::oid)
    )
FROM pg_class
WHERE oid IN ('sessions'::regclass::oid, 'messages'::regclass::oid)
"""
# Foreign keys depend on the others: dropped first, created last.
SELECT_CONSTRAINTS: Final = """
SELECT
    pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
    pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint
WHERE conrelid IN ('sessions'::regclass::oid, 'messages'::regclass::oid) AND contype IN ('p', 'u', 'x', 'f')
ORDER BY contype <> 'f', conrelid, conname
"""
SELECT_INDEXES: Final = """
SELECT pg_catalog.format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index
WHERE indrelid IN ('sessions'::regclass::oid, 'messages'::regclass::oid)
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
ORDER BY indexrelid::regclass::text
"""
# COPY can freeze rows only in a table truncated in the same transaction.
EMPTY: Final = "TRUNCATE sessions, messages"
RAISE_MEMORY: Final = """
SELECT set_config('maintenance_work_mem', $1 || 'kB', TRUE)
WHERE pg_size_bytes(current_setting('maintenance_work_mem')) < $1::bigint * 1024
"""

_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '30s'"
_KEY_BYTES: Final = 1000
"""Bytes per key of sort memory, so that parallel workers sort in memory; measured use is a seventh of it."""
_MAX_MEMORY_KB: Final = 1024 * 1024
"""Upper bound for maintenance_work_mem, in kB."""


async def load(connection: Any, parts: Sequence[Spool], found: PreflightResult, watcher: Watcher) -> bool:
    """Fill an empty target; return `False`, with nothing changed, if it has rows or its keys may not be dropped.

    Args:
        connection: Connected to a target with the current schema.
        parts: The spools, in order.
        found: The numbers of rows.
        watcher: Receives the rows sent, and the phase that builds keys.
    """
    async with write_transaction(connection):
        await connection.execute(LOCK_MIGRATIONS)
        if await connection.fetchval(HAS_ROWS) or not await connection.fetchval(IS_PLAIN):
            return False
        await _lock_tables(connection)
        if await connection.fetchval(HAS_ROWS):
            return False
        keys = [*await connection.fetch(SELECT_CONSTRAINTS), *await connection.fetch(SELECT_INDEXES)]
        for drop, _ in keys:
            await connection.execute(drop)
        await connection.execute(EMPTY)
        for table, columns, count in (
            ("sessions", SESSION_COLUMNS, found.sessions),
            ("messages", MESSAGE_COLUMNS, found.messages),
        ):
            data = aiter(_CopyStream(parts, table, count, watcher.advance))
            await connection.copy_to_table(table, source=data, columns=columns, format="binary", freeze=True)
        watcher.phase("Keys", None)
        memory = max(found.messages * _KEY_BYTES // 1024, 1024)
        await connection.execute(RAISE_MEMORY, str(min(memory, _MAX_MEMORY_KB)))
        for _, create in reversed(keys):
            await connection.execute(create)
    return True


async def _lock_tables(connection: Any) -> None:
    try:
        await connection.execute(_LOCK_TIMEOUT)
        await connection.execute(LOCK_TABLES)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
        raise MigrationError(
            "an application holds locks on the target's tables, perhaps in a transaction left open (see "
            "pg_stat_activity); nothing was changed. End it, and run again"
        ) from error


class _CopyStream:
    """Streams spooled rows to COPY; progress follows the bytes sent."""

    def __init__(self, parts: Sequence[Spool], table: str, rows: int, advance: Advance) -> None:
        self._parts = parts
        self._table = table
        self._rows = rows
        self._advance = advance

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = sum(part.size(self._table) for part in self._parts)
        sent = reported = 0
        yield COPY_HEADER
        for part in self._parts:
            for chunk in part.chunks(self._table):
                yield chunk
                sent += len(chunk)
                self._advance(self._rows * sent // size - reported)
                reported = self._rows * sent // size
        yield COPY_TRAILER
