"""Merges rows into a target that has rows: in committed batches, through staging tables, overwriting nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg

from flux_memory.transfer.progress import Advance
from flux_memory.transfer.rows.pgcopy import (
    COPY_HEADER,
    COPY_TRAILER,
    MESSAGE_COLUMNS,
    WHOLE_SESSION_COLUMNS,
    copy_whole_session,
)
from flux_memory.transfer.rows.spool import Batch
from flux_memory.transfer.target.merge_result import MergeResult
from flux_memory.transfer.target.moves import MoveRecord
from flux_memory.transfer.target.server import WRITING

Outcome = TypeVar("Outcome")

# With pg_temp last in search_path, a table of that name in another schema would take the rows: names are qualified.
CREATE_STAGING: Final = """
CREATE TEMP TABLE pg_temp.flux_memory_staged_sessions ON COMMIT DELETE ROWS AS
SELECT
    sessions.id,
    sessions.created_at,
    sessions.updated_at,
    sessions.message_count,
    sessions.user_id,
    session_details.session_id,
    session_details.title,
    session_details.metadata
FROM sessions, session_details
WITH NO DATA;

CREATE TEMP TABLE pg_temp.flux_memory_staged_messages ON COMMIT DELETE ROWS AS
SELECT session_id, seq, created_at, id, role, content, metadata FROM messages WITH NO DATA;
"""
# If the target has no record of moves, and the role may not create one, this empty table takes its place.
CREATE_EMPTY_RECORD: Final = """
CREATE TEMP TABLE flux_memory_moved_sessions ON COMMIT DELETE ROWS AS
SELECT id::text AS session_id, created_at FROM sessions WITH NO DATA;
"""
SELECT_PROCESS: Final = "SELECT pg_backend_pid()"
# Staging tables have no statistics; otherwise the planner may scan the whole target for each batch. Disabled plans get
# a high cost, which would start the JIT compiler for each batch.
PLAN_BY_INDEX: Final = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_seqscan = off; SET LOCAL jit = off"
# A server crash may lose the last batches, but never part of one. `server.make_durable` waits for all of them.
COMMIT_WITHOUT_WAITING: Final = "SET LOCAL synchronous_commit = off"

# Ordered by id, so that two migrations wait for each other instead of deadlocking. A session that an earlier run moved
# is either there or was deleted since.
INSERT_SESSIONS: Final = """
WITH added AS (
    INSERT INTO sessions (id, user_id, created_at, updated_at)
    SELECT id, user_id, created_at, updated_at
    FROM pg_temp.flux_memory_staged_sessions AS staged
    WHERE $1 OR NOT EXISTS (
        SELECT 1 FROM flux_memory_moved_sessions AS moved
        WHERE moved.session_id = staged.id::text AND moved.created_at = staged.created_at
    )
    ORDER BY id COLLATE "C"
    ON CONFLICT (id) DO NOTHING
    RETURNING id
)
INSERT INTO session_details (session_id, title, metadata)
SELECT staged.id, staged.title, staged.metadata
FROM pg_temp.flux_memory_staged_sessions AS staged
JOIN added ON added.id::text = staged.id::text
"""
# The library takes the same lock to add a message, so no other client adds to these sessions from here on.
LOCK_SESSIONS: Final = """
SELECT count(*)
FROM (
    SELECT 1 FROM sessions
    WHERE id::text IN (SELECT id::text FROM pg_temp.flux_memory_staged_sessions)
    ORDER BY id COLLATE "C"
    FOR NO KEY UPDATE
) AS locked
"""
TAKE_OUT_DELETED_SESSIONS: Final = """
WITH deleted AS (
    DELETE FROM pg_temp.flux_memory_staged_sessions AS staged
    WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.id::text = staged.id::text)
    RETURNING id
), held_back AS (
    DELETE FROM pg_temp.flux_memory_staged_messages WHERE session_id::text IN (SELECT id::text FROM deleted)
)
SELECT id FROM deleted
"""
RECORD_SESSIONS: Final = """
INSERT INTO flux_memory_moved_sessions (session_id, created_at, source)
SELECT id, created_at, $1 FROM pg_temp.flux_memory_staged_sessions ORDER BY id COLLATE "C"
ON CONFLICT DO NOTHING
"""
# A session in conflict is a different session, so its messages are held back.
HOLD_BACK_CONFLICTING: Final = """, held_back AS (
    DELETE FROM pg_temp.flux_memory_staged_messages
    WHERE session_id::text IN (SELECT id::text FROM conflicting)
    RETURNING session_id
)
SELECT id, (SELECT count(*) FROM held_back WHERE session_id::text = id::text) FROM conflicting ORDER BY id COLLATE "C"
"""
"""The end of a statement that begins with the staged sessions that are `conflicting`."""
TAKE_OUT_SESSIONS_IN_CONFLICT: Final = f"""
WITH conflicting AS (
    DELETE FROM pg_temp.flux_memory_staged_sessions AS staged
    USING sessions LEFT JOIN session_details ON session_details.session_id::text = sessions.id::text
    WHERE sessions.id::text = staged.id::text
        AND (
            sessions.user_id,
            coalesce(session_details.title, ''::text),
            sessions.created_at,
            coalesce(session_details.metadata, '{{}}'::jsonb)
        ) IS DISTINCT FROM (staged.user_id, staged.title, staged.created_at, staged.metadata)
    RETURNING staged.id
){HOLD_BACK_CONFLICTING}"""  # noqa: S608 - constants of ours
COUNT_AND_TAKE_OUT_STORED: Final = """, taken_out AS (
    DELETE FROM pg_temp.flux_memory_staged_messages AS staged
    USING stored
    WHERE staged.session_id::text = stored.session_id::text AND staged.seq = stored.seq
)
SELECT
    count(*) FILTER (WHERE NOT differs),
    coalesce(pg_catalog.json_agg(id ORDER BY session_id, seq) FILTER (WHERE differs)::text, '[]')
FROM stored
"""
"""The end of a statement that begins with the staged messages that are `stored`, and whether each `differs`."""
TAKE_OUT_STORED_MESSAGES: Final = f"""
WITH stored AS (
    SELECT
        staged.session_id,
        staged.id,
        staged.seq,
        (same.role, same.content, same.metadata, same.created_at)
            IS DISTINCT FROM (staged.role, staged.content, staged.metadata, staged.created_at) AS differs
    FROM pg_temp.flux_memory_staged_messages AS staged,
        LATERAL (
            SELECT *
            FROM messages
            WHERE messages.session_id::text = staged.session_id::text AND messages.id::text = staged.id::text
            LIMIT 1
        ) AS same
){COUNT_AND_TAKE_OUT_STORED}"""  # noqa: S608 - constants of ours
APPEND_MESSAGES: Final = """
WITH numbered AS (
    SELECT *, row_number() OVER (PARTITION BY session_id ORDER BY seq) AS place
    FROM pg_temp.flux_memory_staged_messages
), counted AS (
    SELECT session_id, count(*) AS messages FROM pg_temp.flux_memory_staged_messages GROUP BY session_id
), bumped AS (
    UPDATE sessions
    SET message_count = message_count + coalesce(staged.messages, 0),
        updated_at = greatest(sessions.updated_at, staged.updated_at),
        revision = staged.revision
    FROM (
        SELECT id, updated_at, messages, gen_random_uuid() AS revision
        FROM pg_temp.flux_memory_staged_sessions
        LEFT JOIN counted ON counted.session_id::text = id::text
    ) AS staged
    WHERE sessions.id::text = staged.id::text AND (staged.messages > 0 OR staged.updated_at > sessions.updated_at)
    RETURNING sessions.id, message_count - coalesce(staged.messages, 0) AS before
)
INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
SELECT session_id, numbered.id, before + place, role, content, metadata, created_at
FROM numbered
JOIN bumped ON bumped.id::text = numbered.session_id::text
"""

_MAX_ATTEMPTS: Final = 5
BATCH_ROWS: Final = 10_000
"""Messages of a batch that is not committed by itself."""
BATCH_BYTES: Final = 2 * 1024 * 1024
"""Size at which a batch ends even with fewer messages, to bound memory use."""
_CHUNK_BYTES: Final = 128 * 1024
"""Size at which gathered rows are sent."""


async def merge(
    connection: Any,
    batches: Iterable[Batch],
    record: MoveRecord | None,
    *,
    restores_deleted: bool,
    advance: Advance,
) -> MergeResult:
    """Add the missing rows of a part, in committed batches.

    Args:
        connection: Connected to a target with the current schema.
        batches: The rows, in the order of the sessions' ids.
        record: Receives the sessions of each batch; sessions that it has and the target has no longer are left out.
        restores_deleted: Whether sessions that were deleted in the target are added again.
        advance: Called with the number of rows committed.
    """
    merged = MergeResult()
    staging = await create_staging(connection, CREATE_STAGING if record else CREATE_STAGING + CREATE_EMPTY_RECORD)
    settings = f"{WRITING}; {PLAN_BY_INDEX}; {COMMIT_WITHOUT_WAITING}; {staging}"
    continues = False
    taken_out: set[str] = set()
    for batch in batches:
        merge_one = partial(_merge_batch, connection, batch, record, restores_deleted=restores_deleted)
        outcome = await commit(connection, settings, merge_one)
        _count(merged, batch, outcome, taken_out, continues=continues)
        advance(batch.message_count + len(batch.sessions) - continues)
        continues, taken_out = batch.continues, outcome.taken_out
    return merged


class _BatchResult(NamedTuple):
    sessions: int
    messages: int
    skipped: int
    conflicts: list[tuple[str, int]]
    deleted: list[str]
    conflicting_messages: list[str]

    @property
    def taken_out(self) -> set[str]:
        """The ids of sessions that were left out."""
        return {*self.deleted, *(id_ for id_, _ in self.conflicts)}


async def create_staging(connection: Any, statements: str) -> str:
    """Create temporary tables, and return the statements that each transaction begins with.

    Behind a pooler each transaction may run in another server process, so it creates its own tables.
    """
    if await connection.fetchval(SELECT_PROCESS) != connection.get_server_pid():
        return statements.replace("DELETE ROWS", "DROP")
    await connection.execute(statements)
    return ""


async def commit(connection: Any, settings: str, work: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Run work in a transaction that begins with statements, and again if the server rolls it back for another one."""
    attempt = 1
    while True:
        try:
            async with connection.transaction(isolation="read_committed", readonly=False):
                await connection.execute(settings)
                return await work()
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            if attempt == _MAX_ATTEMPTS:
                raise
        attempt += 1


async def _merge_batch(
    connection: Any, batch: Batch, record: MoveRecord | None, *, restores_deleted: bool
) -> _BatchResult:
    whole = list(map(copy_whole_session, batch.sessions, batch.details))
    await copy_rows(connection, "flux_memory_staged_sessions", WHOLE_SESSION_COLUMNS, whole, schema="pg_temp")
    await copy_rows(connection, "flux_memory_staged_messages", MESSAGE_COLUMNS, batch.messages, schema="pg_temp")
    sessions = count_rows(await connection.execute(INSERT_SESSIONS, restores_deleted))
    await connection.fetch(LOCK_SESSIONS)
    deleted = [id_ for (id_,) in await connection.fetch(TAKE_OUT_DELETED_SESSIONS)]
    conflicts = [(id_, held) for id_, held in await connection.fetch(TAKE_OUT_SESSIONS_IN_CONFLICT)]
    skipped, differing = await connection.fetchrow(TAKE_OUT_STORED_MESSAGES)
    if record is not None:
        await connection.execute(RECORD_SESSIONS, record.source)
    messages = count_rows(await connection.execute(APPEND_MESSAGES))
    return _BatchResult(sessions, messages, skipped, conflicts, deleted, json.loads(differing))


def _count(merged: MergeResult, batch: Batch, outcome: _BatchResult, before: set[str], *, continues: bool) -> None:
    """Add up a batch; a session that continues from the previous batch was counted there.

    Args:
        merged: The sum.
        batch: The batch.
        outcome: Its result.
        before: The sessions left out of the previous batch.
        continues: Whether its first session continues.
    """
    merged.sessions += outcome.sessions
    merged.messages += outcome.messages
    merged.skipped_messages += outcome.skipped
    for id_, held in outcome.conflicts:
        merged.held_back += held
        if id_ not in before:
            merged.conflicting_sessions += 1
            merged.name("session", id_)
    out = outcome.taken_out
    merged.skipped_sessions += (
        len(batch.sessions) - outcome.sessions - len(out) - (continues and out.isdisjoint(before))
    )
    for id_ in outcome.conflicting_messages:
        merged.conflicting_messages += 1
        merged.name("message", id_)


async def copy_rows(
    connection: Any, table: str, columns: tuple[str, ...], rows: list[bytes], *, schema: str | None = None
) -> None:
    """Send rows to a table, by default to the first of search_path."""
    await connection.copy_to_table(table, source=_chunks(rows), columns=columns, format="binary", schema_name=schema)


async def _chunks(rows: list[bytes]) -> AsyncIterator[bytes]:
    """Join rows into chunks; joining a whole batch would keep it in memory twice, and a third time in the driver."""
    gathered, size = [COPY_HEADER], 0
    for row in rows:
        gathered.append(row)
        size += len(row)
        if size >= _CHUNK_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    yield b"".join((*gathered, COPY_TRAILER))


def count_rows(status: str) -> int:
    """Return the number of rows in the status of a statement."""
    return int(status.rpartition(" ")[2])
