"""Fills a target in one transaction: drop the keys and old rows, COPY the rows, build the keys again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.errors import MigrationError, SchemaError
from flux_memory.schema.postgres.tables import IS_MEMORY
from flux_memory.transfer.progress import Advance, Watcher
from flux_memory.transfer.rows.pgcopy import (
    COPY_HEADER,
    COPY_TRAILER,
    DETAIL_COLUMNS,
    MESSAGE_COLUMNS,
    SESSION_COLUMNS,
)
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.target.merge import BATCH_BYTES, BATCH_ROWS, copy_rows
from flux_memory.transfer.target.moves import LOCK_MIGRATIONS, MoveRecord
from flux_memory.transfer.target.server import write_transaction

LOCK_TABLES: Final = "LOCK TABLE sessions, session_details, messages, feedback IN ACCESS EXCLUSIVE MODE"
HAS_ROWS: Final = "SELECT EXISTS (SELECT 1 FROM sessions) OR EXISTS (SELECT 1 FROM messages)"
# A property of an index that a rebuild would lose, a table that TRUNCATE would also empty, or a trigger that TRUNCATE
# would fire or skip. The parameter is a mask for `tgtype`: 32, a trigger on TRUNCATE, and 8, one on DELETE, if there
# are rows to delete. `_Keys.rehearse` finds what the server refuses.
SELECT_OBSTACLE: Final = """
SELECT pg_catalog.format('the index %s is marked for replication or for CLUSTER', indexrelid::regclass)
FROM pg_index
WHERE indrelid = ANY ('{sessions,session_details,messages}'::regclass[]::oid[]) AND (indisreplident OR indisclustered)
UNION ALL
SELECT pg_catalog.format('the table %s inherits from the table %s', inhrelid::regclass, inhparent::regclass)
FROM pg_inherits
WHERE inhrelid = ANY ('{sessions,session_details,messages}'::regclass[]::oid[])
    OR inhparent = ANY ('{sessions,session_details,messages}'::regclass[]::oid[])
UNION ALL
SELECT pg_catalog.format('the trigger %I of the table %s acts on %s', tgname, tgrelid::regclass,
    CASE WHEN tgtype::int4 & 32 <> 0 THEN 'TRUNCATE' ELSE 'DELETE' END)
FROM pg_trigger
WHERE tgrelid = ANY ('{sessions,session_details,messages}'::regclass[]::oid[]) AND NOT tgisinternal
    AND tgtype::int4 & $1::int4 <> 0
"""
# Foreign keys depend on the others: dropped first, created last.
SELECT_CONSTRAINTS: Final = """
SELECT
    pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
    pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint
WHERE conrelid = ANY ('{sessions,session_details,messages}'::regclass[]::oid[]) AND contype IN ('p', 'u', 'x', 'f')
ORDER BY contype <> 'f', conrelid, conname
"""
SELECT_INDEXES: Final = """
SELECT pg_catalog.format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index
WHERE indrelid = ANY ('{sessions,session_details,messages}'::regclass[]::oid[])
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
ORDER BY indexrelid::regclass::text
"""
# COPY can freeze rows only in a table truncated in the same transaction.
EMPTY: Final = "TRUNCATE sessions, session_details, messages"
# Details and messages go with their sessions.
DELETE_ROWS: Final = "DELETE FROM sessions"
COUNT_ROWS: Final = "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM messages)"
# `refuse_to_replace` may meet tables of an earlier version, without details.
IS_OWNER: Final = f"""
SELECT bool_and(pg_has_role(relowner, 'USAGE'))
FROM pg_class
WHERE {IS_MEMORY}
"""  # noqa: S608 - constants of ours
# Deleting a session would delete the rows of such a table, or fail.
SELECT_REFERRING: Final = f"""
WITH memory AS (
    SELECT oid
    FROM pg_class
    WHERE {IS_MEMORY}
)
SELECT string_agg(DISTINCT conrelid::regclass::text, ', ')
FROM pg_constraint
WHERE contype = 'f' AND confrelid IN (SELECT oid FROM memory) AND conrelid NOT IN (SELECT oid FROM memory)
"""  # noqa: S608 - constants of ours
SELECT_ADDED_COLUMNS: Final = """
SELECT relname::text || '.' || attname::text
FROM pg_attribute
JOIN pg_class ON pg_class.oid = attrelid
WHERE attrelid = ANY ('{sessions,session_details,messages}'::regclass[]::oid[]) AND attnum > 0::int2
    AND NOT attisdropped AND relname::text || '.' || attname::text <> ALL ($1::text::text[])
ORDER BY relname DESC, attnum
"""
RAISE_MEMORY: Final = """
SELECT set_config('maintenance_work_mem', $1 || 'kB', TRUE)
WHERE pg_size_bytes(current_setting('maintenance_work_mem')) < $1::bigint * 1024
"""

_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '30s'"
_KEY_BYTES: Final = 1000
"""Bytes per key of sort memory, so that parallel workers sort in memory; measured use is a seventh of it."""
_MAX_MEMORY_KB: Final = 1024 * 1024
"""Upper bound for maintenance_work_mem, in kB."""


@dataclass(frozen=True)
class Rows:
    """The rows of a source on their way to a target."""

    parts: Sequence[Spool]
    """The spools, in order."""
    found: PreflightResult
    """The numbers of rows."""
    watcher: Watcher
    """Receives the rows sent, the phase that builds keys, and why they are not dropped."""
    record: MoveRecord | None
    """Receives the sessions."""
    drops_keys: bool
    """Whether the keys are dropped and built again, if nothing is in the way."""


async def load(connection: Any, rows: Rows) -> bool:
    """Fill an empty target; return `False`, with nothing changed, if it has rows or the role does not own the tables.

    Args:
        connection: Connected to a target with the current schema.
        rows: The rows.
    """
    async with write_transaction(connection):
        await connection.execute(LOCK_MIGRATIONS)
        if await connection.fetchval(HAS_ROWS):
            return False
        if not await connection.fetchval(IS_OWNER):
            rows.watcher.say("The role does not own the tables, so the rows are loaded in batches beside the keys")
            return False
        await _lock_tables(connection)
        if await connection.fetchval(HAS_ROWS):
            return False
        await _fill(connection, rows)
    return True


async def replace(connection: Any, rows: Rows) -> tuple[int, int]:
    """Replace all rows of a target, in the caller's transaction; return the numbers of sessions and messages before."""
    await connection.execute(LOCK_MIGRATIONS)
    await _lock_tables(connection)
    sessions, messages = await connection.fetchrow(COUNT_ROWS)
    await _fill(connection, rows, deletes=bool(sessions or messages))
    return sessions, messages


async def refuse_to_replace(connection: Any) -> None:
    """Refuse a target whose rows cannot be replaced.

    Raises:
        SchemaError: The role does not own the tables, or other tables refer to them; the message says what to do.
    """
    if not await connection.fetchval(IS_OWNER):
        raise SchemaError(
            "the role does not own the target's tables, whose rows only their owner may replace; let the owner run "
            "the migration, or leave out --replace"
        )
    if tables := await connection.fetchval(SELECT_REFERRING):
        raise SchemaError(
            f"other tables refer to the target's sessions or messages ({tables}), and replacing these would delete "
            "rows there; drop their foreign keys for the time of the move, or leave out --replace"
        )


async def added_columns(connection: Any) -> list[str]:
    """Return the columns, as `table.column`, that are not the library's, whose values a replacement loses."""
    columns = {
        "sessions": (*SESSION_COLUMNS, "creation_id", "revision"),
        "session_details": DETAIL_COLUMNS,
        "messages": MESSAGE_COLUMNS,
    }
    known = write_texts(f"{table}.{column}" for table in columns for column in columns[table])
    return [name for (name,) in await connection.fetch(SELECT_ADDED_COLUMNS, known)]


async def _fill(connection: Any, rows: Rows, *, deletes: bool = False) -> None:
    """Put rows into the locked tables in place of theirs; `deletes` is whether they have any."""
    if rows.drops_keys:
        await _fill_without_keys(connection, rows, deletes=deletes)
    else:
        if deletes:
            await connection.execute(EMPTY)
        await copy_in_batches(connection, rows.parts, rows.watcher.advance)
    if rows.record is not None:
        await rows.record.add_every_session(connection)
        await rows.record.add_move(connection, rows.found.sessions, rows.found.messages)


async def _fill_without_keys(connection: Any, rows: Rows, *, deletes: bool) -> None:
    """Drop the keys for the time of the load, if nothing is in the way."""
    parts, found, watcher = rows.parts, rows.found, rows.watcher
    keys = _Keys([*await connection.fetch(SELECT_CONSTRAINTS), *await connection.fetch(SELECT_INDEXES)])
    obstacle = await connection.fetchval(SELECT_OBSTACLE, 40 if deletes else 32) or await keys.rehearse(connection)
    if obstacle is None:
        await keys.drop(connection)
        await _copy_all(connection, parts, found, watcher.advance)
        watcher.phase("Keys", None)
        # Tables with deferred checks cannot be altered.
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        memory = max(found.messages * _KEY_BYTES // 1024, 1024)
        await connection.execute(RAISE_MEMORY, str(min(memory, _MAX_MEMORY_KB)))
        await keys.create(connection)
    else:
        watcher.say(f"The keys cannot be dropped ({obstacle}), so the rows are loaded in batches beside them")
        await connection.execute(DELETE_ROWS)
        await copy_in_batches(connection, parts, watcher.advance)


class _Keys:
    """The keys and indexes of the tables, as statements that drop and create them."""

    def __init__(self, statements: Sequence[tuple[str, str]]) -> None:
        self._statements = statements

    async def drop(self, connection: Any) -> None:
        """Drop the keys and all rows."""
        for drop, _ in self._statements:
            await connection.execute(drop)
        await connection.execute(EMPTY)

    async def create(self, connection: Any) -> None:
        """Create the keys again."""
        for _, create in reversed(self._statements):
            await connection.execute(create)

    async def rehearse(self, connection: Any) -> str | None:
        """Rebuild the keys without rows, and undo it; return why the server refuses it: for a view, or by a trigger."""
        savepoint = connection.transaction()
        await savepoint.start()
        try:
            await self.drop(connection)
            await self.create(connection)
        except asyncpg.PostgresError as error:
            if connection.is_closed():
                raise
            # The details of this error name the objects.
            named = isinstance(error, asyncpg.DependentObjectsStillExistError)
            detail = getattr(error, "detail", None) if named else None
            obstacle = (detail or str(error.args[0])).partition("\n")[0]
        else:
            obstacle = None
        await savepoint.rollback()
        return obstacle


async def _copy_all(connection: Any, parts: Sequence[Spool], found: PreflightResult, advance: Advance) -> None:
    for table, columns, count in (
        ("sessions", SESSION_COLUMNS, found.sessions),
        ("session_details", DETAIL_COLUMNS, 0),
        ("messages", MESSAGE_COLUMNS, found.messages),
    ):
        data = aiter(_CopyStream(parts, table, count, advance))
        await connection.copy_to_table(table, source=data, columns=columns, format="binary", freeze=True)


async def copy_in_batches(connection: Any, parts: Sequence[Spool], advance: Advance) -> None:
    """Send all rows to tables that have none of them, in the caller's transaction."""
    # One COPY of all rows would queue a check of the foreign key for each of them in the server's memory.
    for part in parts:
        continues = False
        for batch in part.batches(BATCH_ROWS, BATCH_BYTES):
            sessions = batch.sessions[continues:]
            await copy_rows(connection, "sessions", SESSION_COLUMNS, sessions)
            await copy_rows(connection, "session_details", DETAIL_COLUMNS, batch.details[continues:])
            await copy_rows(connection, "messages", MESSAGE_COLUMNS, batch.messages)
            advance(len(sessions) + batch.message_count)
            continues = batch.continues


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
