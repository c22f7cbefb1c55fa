"""The target's record of moves: which sessions came from which source, so that a later run recognises deleted ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.schema.postgres.tables import WITH_RECORD
from flux_memory.schema.postgres.trust import refuse_strangers
from flux_memory.transfer.rows.spool import SessionDigest
from flux_memory.transfer.target.server import HAS_RECORD, MAY_READ_RECORD, write_transaction

# Serializes migrations; a second one then finds the first one's rows and merges.
LOCK_MIGRATIONS: Final = "SELECT pg_advisory_xact_lock(hashtextextended('flux_memory_transfer', 0::bigint))"
# Deleted sessions stay in the record, so it refers to no other table.
CREATE_RECORD: Final = """
CREATE TABLE flux_memory_moves (
    id       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source   UUID NOT NULL,
    file     TEXT NOT NULL,
    sessions BIGINT NOT NULL,
    messages BIGINT NOT NULL,
    moved_at TIMESTAMP NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')
);

CREATE TABLE flux_memory_moved_sessions (
    session_id TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    source     UUID NOT NULL,
    PRIMARY KEY (session_id, created_at)
)
"""
# The record is created in the schema of the tables that it describes, also if the search_path begins with another. It
# belongs to their owner, so that applications need not trust another role.
ENTER_SCHEMA: Final = """
SELECT set_config('search_path', quote_ident(nspname::text), TRUE)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE pg_class.oid = 'sessions'::regclass::oid
    AND pg_has_role(relowner, 'USAGE')
    AND has_schema_privilege(pg_namespace.oid, 'CREATE')
"""
# A superuser may migrate in place of the owner.
SELECT_GIVE_TO_OWNER: Final = """
SELECT pg_catalog.format(
    'ALTER TABLE flux_memory_moves OWNER TO %1$s; ALTER TABLE flux_memory_moved_sessions OWNER TO %1$s',
    relowner::regrole
)
FROM pg_class
WHERE oid = 'sessions'::regclass::oid AND current_setting('is_superuser')::boolean
"""
SELECT_SHARED: Final = """
SELECT source, count(*)
FROM flux_memory_moved_sessions
WHERE session_id = ANY($1::text::text[])
GROUP BY source
"""
COUNT_OF_SOURCE: Final = "SELECT count(*) FROM flux_memory_moved_sessions WHERE source = $1"
SELECT_SOURCES: Final = "SELECT DISTINCT source FROM flux_memory_moves"
RECORD_EVERY_SESSION: Final = """
INSERT INTO flux_memory_moved_sessions (session_id, created_at, source)
SELECT id, created_at, $1 FROM sessions
ON CONFLICT DO NOTHING
"""
INSERT_MOVE: Final = "INSERT INTO flux_memory_moves (source, file, sessions, messages) VALUES ($1, $2, $3, $4)"

NOT_RECORDED: Final = (
    "The target keeps no record of this move, since the role does not own the tables, or may not create tables in "
    "their schema. A later run would move deleted sessions again. Let their owner run the first migration"
)
_PAGE_SESSIONS: Final = 1_000
_MAX_PAGES: Final = 20
"""Pages of the source's sessions that are looked up; few are needed, since the record has most of the first page."""


@dataclass(frozen=True)
class MoveRecord:
    """A source in the target's record of moves, and the additions that a move makes there."""

    source: UUID
    """The id of the source in the record."""
    file: str
    """The name of its file, for people."""
    known: bool
    """Whether an earlier run moved sessions of the source."""

    async def add_every_session(self, connection: Any) -> None:
        """Record that each session of the target came from the source; call it in the transaction of the load."""
        await connection.execute(RECORD_EVERY_SESSION, self.source)

    async def add_move(self, connection: Any, sessions: int, messages: int) -> None:
        """Record a move, with the numbers of rows that the source had."""
        await connection.execute(INSERT_MOVE, self.source, self.file, sessions, messages)


async def open_record(
    connection: Any, file: Path, digests: Iterator[SessionDigest], sessions: int, *, complete: bool
) -> MoveRecord | None:
    """Return a source in the record, whose tables are created if missing; `None` if the role may not create them.

    Args:
        connection: Connected to a target with the current schema.
        file: The source.
        digests: The digests of its sessions.
        sessions: Their number.
        complete: Whether the source is a whole memory; the rows of a quarantine file are a source of their own.
    """
    async with write_transaction(connection):
        await connection.execute(LOCK_MIGRATIONS)
        # Again: reading the source took a while.
        await refuse_strangers(connection, WITH_RECORD)
        if not await ensure_tables(connection, HAS_RECORD, CREATE_RECORD, SELECT_GIVE_TO_OWNER):
            return None
        found = await _find_source_id(connection, digests, sessions)
    return MoveRecord(found if found and complete else uuid4(), _shown(file), known=found is not None)


async def ensure_tables(connection: Any, has: str, create: str, select_gift: str) -> bool:
    """Return whether a record has its tables; if they are missing, create them where the role may.

    Args:
        connection: Connected to a target with the current schema, in a transaction.
        has: Selects whether the tables exist.
        create: Creates them.
        select_gift: Selects the statement that gives them to the owner of the memory's tables, if a superuser runs it.
    """
    if await connection.fetchval(has):
        return True
    if await connection.fetchval(ENTER_SCHEMA) is None:
        return False
    try:
        async with connection.transaction():
            await connection.execute(create)
            if give := await connection.fetchval(select_gift):
                await connection.execute(give)
    except asyncpg.RaiseError:
        # An event trigger guards against DDL.
        return False
    return True


async def may_read_record(connection: Any) -> bool:
    """Return whether the target has a record that the role may read."""
    return bool(await connection.fetchval(HAS_RECORD) and await connection.fetchval(MAY_READ_RECORD))


async def find_source_ids(connection: Any, digests: Iterator[SessionDigest], sessions: int) -> list[UUID]:
    """Return the ids that a memory may have in the record; without sessions it may be any source.

    Args:
        connection: Connected to a target with a record.
        digests: The digests of the memory's sessions.
        sessions: Their number.
    """
    if not sessions:
        return [source for (source,) in await connection.fetch(SELECT_SOURCES)]
    found = await _find_source_id(connection, digests, sessions)
    return [] if found is None else [found]


async def _find_source_id(connection: Any, digests: Iterator[SessionDigest], sessions: int) -> UUID | None:
    """Identify a source by its sessions: unlike its name, they are the same in a copy, and after a VACUUM.

    It is the source in the record that has more than half of these sessions, or whose sessions are more than half here:
    a file grows, and loses sessions, between two moves. Another memory may share a session with it, such as "default".
    """
    ids = (digest.id.decode() for digest in digests)
    seen, shared = 0, Counter[UUID]()
    for _ in range(_MAX_PAGES):
        if not (page := list(islice(ids, _PAGE_SESSIONS))):
            break
        seen += len(page)
        for source, number in await connection.fetch(SELECT_SHARED, write_texts(page)):
            shared[source] += number
        for source, number in shared.most_common(1):
            recorded = await connection.fetchval(COUNT_OF_SOURCE, source)
            if number > min(seen, recorded * seen / sessions) / 2:
                return UUID(bytes=source.bytes)
    return None


def _shown(file: Path) -> str:
    """Return a file's absolute path, with escapes for bytes that are not UTF-8."""
    return os.fsencode(file.absolute()).decode(errors="backslashreplace")
