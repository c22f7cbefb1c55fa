"""Merges rows into distributed tables that have rows: each commit has the sessions of one shard, and is one server's.

Locking, comparing and adding are those of `merge`. Rows that are stored are copied to temporary tables beside the
staged ones, since Citus does not join both, or sends the staged rows to all servers. Each statement on the distributed
tables names the sessions as one parameter, from which Citus finds the shard: a cast of the parameter would hide it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

from flux_memory.transfer.progress import Advance
from flux_memory.transfer.rows.pgcopy import (
    MESSAGE_COLUMNS,
    MESSAGE_DIGEST,
    WHOLE_SESSION_COLUMNS,
    copy_whole_session,
)
from flux_memory.transfer.rows.spool import Batch
from flux_memory.transfer.target.cluster.by_shard import Piece, group_by_shard
from flux_memory.transfer.target.merge import (
    COMMIT_WITHOUT_WAITING,
    COUNT_AND_TAKE_OUT_STORED,
    CREATE_STAGING,
    HOLD_BACK_CONFLICTING,
    RECORD_SESSIONS,
    commit,
    copy_rows,
    count_rows,
    create_staging,
)
from flux_memory.transfer.target.merge_result import MergeResult
from flux_memory.transfer.target.moves import MoveRecord
from flux_memory.transfer.target.server import WRITING

CREATE_STORED: Final = """
CREATE TEMP TABLE pg_temp.flux_memory_stored_sessions ON COMMIT DELETE ROWS AS
SELECT
    sessions.id,
    sessions.user_id,
    sessions.created_at,
    sessions.message_count,
    session_details.title,
    session_details.metadata
FROM sessions, session_details
WITH NO DATA;

CREATE TEMP TABLE pg_temp.flux_memory_stored_messages ON COMMIT DELETE ROWS AS
SELECT session_id, id, ''::bytea AS digest FROM messages WITH NO DATA;

CREATE TEMP TABLE pg_temp.flux_memory_stored_moves ON COMMIT DELETE ROWS AS
SELECT id::text AS session_id, created_at FROM sessions WITH NO DATA;
"""
# A rehearsal merges several groups in one transaction.
EMPTY_TEMPORARY_TABLES: Final = """
DELETE FROM pg_temp.flux_memory_staged_sessions;
DELETE FROM pg_temp.flux_memory_staged_messages;
DELETE FROM pg_temp.flux_memory_stored_sessions;
DELETE FROM pg_temp.flux_memory_stored_messages;
DELETE FROM pg_temp.flux_memory_stored_moves
"""
COPY_STORED_MOVES: Final = """
INSERT INTO pg_temp.flux_memory_stored_moves (session_id, created_at)
SELECT session_id, created_at FROM flux_memory_moved_sessions WHERE session_id = ANY ($1::text[])
"""
INSERT_SESSIONS: Final = """
INSERT INTO sessions (id, user_id, created_at, updated_at)
SELECT id, user_id, created_at, updated_at
FROM pg_temp.flux_memory_staged_sessions AS staged
WHERE NOT EXISTS (
    SELECT 1 FROM pg_temp.flux_memory_stored_moves AS moved
    WHERE moved.session_id = staged.id::text AND moved.created_at = staged.created_at
)
ORDER BY id COLLATE "C"
ON CONFLICT (id) DO NOTHING
RETURNING id
"""
INSERT_DETAILS: Final = """
INSERT INTO session_details (session_id, title, metadata)
SELECT id, title, metadata
FROM pg_temp.flux_memory_staged_sessions
WHERE id::text = ANY ($1::text[])
"""
# Citus allows it, since all of these sessions are in one shard.
LOCK_SESSIONS_OF_SHARD: Final = """
SELECT id
FROM sessions
WHERE id OPERATOR(pg_catalog.=) ANY ($1::text[])
ORDER BY id COLLATE "C"
FOR NO KEY UPDATE
"""
COPY_STORED_SESSIONS: Final = """
INSERT INTO pg_temp.flux_memory_stored_sessions (id, user_id, created_at, message_count, title, metadata)
SELECT
    sessions.id,
    sessions.user_id,
    sessions.created_at,
    sessions.message_count,
    coalesce(session_details.title, ''::text),
    coalesce(session_details.metadata, '{}'::jsonb)
FROM sessions
LEFT JOIN session_details ON session_details.session_id OPERATOR(pg_catalog.=) sessions.id
WHERE sessions.id OPERATOR(pg_catalog.=) ANY ($1::text[])
"""
SELECT_STAGED_IDS: Final = """
SELECT
    coalesce(array_agg(session_id::text ORDER BY session_id, seq), '{}'),
    coalesce(array_agg(id::text ORDER BY session_id, seq), '{}')
FROM pg_temp.flux_memory_staged_messages
WHERE session_id::text = ANY ($1::text[])
"""
COPY_STORED_MESSAGES: Final = f"""
INSERT INTO pg_temp.flux_memory_stored_messages (session_id, id, digest)
SELECT messages.session_id, messages.id, {MESSAGE_DIGEST.replace("messages.seq", "0::bigint")}
FROM messages
JOIN unnest($2::text[], $3::text[]) AS wanted (session_id, id)
    ON wanted.session_id = messages.session_id::text AND wanted.id = messages.id::text
WHERE messages.session_id OPERATOR(pg_catalog.=) ANY ($1::text[])
"""  # noqa: S608 - constants of ours
TAKE_OUT_DELETED_SESSIONS: Final = """
WITH deleted AS (
    DELETE FROM pg_temp.flux_memory_staged_sessions AS staged
    WHERE staged.id::text = ANY ($1::text[])
        AND NOT EXISTS (
            SELECT 1 FROM pg_temp.flux_memory_stored_sessions AS stored WHERE stored.id::text = staged.id::text
        )
    RETURNING id
), held_back AS (
    DELETE FROM pg_temp.flux_memory_staged_messages WHERE session_id::text IN (SELECT id::text FROM deleted)
)
SELECT id FROM deleted
"""
TAKE_OUT_SESSIONS_IN_CONFLICT: Final = f"""
WITH conflicting AS (
    DELETE FROM pg_temp.flux_memory_staged_sessions AS staged
    USING pg_temp.flux_memory_stored_sessions AS stored
    WHERE stored.id::text = staged.id::text
        AND (stored.user_id, stored.title, stored.created_at, stored.metadata)
            IS DISTINCT FROM (staged.user_id, staged.title, staged.created_at, staged.metadata)
    RETURNING staged.id
){HOLD_BACK_CONFLICTING}"""  # noqa: S608 - constants of ours
STAGED_DIGEST: Final = MESSAGE_DIGEST.replace("messages.seq", "0::bigint").replace("messages.", "staged.")
TAKE_OUT_STORED_MESSAGES: Final = f"""
WITH stored AS (
    SELECT staged.session_id, staged.id, staged.seq, same.digest <> {STAGED_DIGEST} AS differs
    FROM pg_temp.flux_memory_staged_messages AS staged
    JOIN pg_temp.flux_memory_stored_messages AS same
        ON same.session_id::text = staged.session_id::text AND same.id::text = staged.id::text
){COUNT_AND_TAKE_OUT_STORED}"""  # noqa: S608 - constants of ours
COUNT_UP: Final = """
UPDATE sessions
SET message_count = message_count + staged.messages,
    updated_at = greatest(sessions.updated_at, staged.updated_at),
    revision = staged.revision
FROM (
    SELECT session.id, session.updated_at, count(message.id) AS messages, gen_random_uuid() AS revision
    FROM pg_temp.flux_memory_staged_sessions AS session
    LEFT JOIN pg_temp.flux_memory_staged_messages AS message ON message.session_id::text = session.id::text
    GROUP BY session.id, session.updated_at
) AS staged
WHERE sessions.id::text = staged.id::text
    AND sessions.id OPERATOR(pg_catalog.=) ANY ($1::text[])
    AND (staged.messages > 0 OR staged.updated_at > sessions.updated_at)
"""
# A session of this transaction is not among the stored ones.
APPEND_MESSAGES: Final = """
INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
SELECT
    staged.session_id,
    staged.id,
    coalesce(stored.message_count, 0::bigint) + row_number() OVER (PARTITION BY staged.session_id ORDER BY seq),
    role,
    content,
    staged.metadata,
    staged.created_at
FROM pg_temp.flux_memory_staged_messages AS staged
LEFT JOIN pg_temp.flux_memory_stored_sessions AS stored ON stored.id::text = staged.session_id::text
"""


async def merge_by_shard(
    connection: Any,
    batches: Iterable[Batch],
    record: MoveRecord | None,
    *,
    restores_deleted: bool,
    advance: Advance,
) -> MergeResult:
    """Add the missing rows of a part, in commits of about the size of a batch; arguments as those of `merge`."""
    merged = MergeResult()
    staging = await create_staging(connection, CREATE_STAGING + CREATE_STORED)
    settings = f"{WRITING}; {COMMIT_WITHOUT_WAITING}; {staging}{EMPTY_TEMPORARY_TABLES}"
    async for group in group_by_shard(connection, batches):
        merge_one = partial(_merge_group, connection, group, record, restores_deleted=restores_deleted)
        merged.include(await commit(connection, settings, merge_one))
        advance(sum(piece.message_count + piece.begins for piece in group))
    return merged


async def _merge_group(
    connection: Any, group: Sequence[Piece], record: MoveRecord | None, *, restores_deleted: bool
) -> MergeResult:
    whole = {piece.id: copy_whole_session(piece.session, piece.details) for piece in group}
    sessions, messages = [*whole.values()], [piece.messages for piece in group]
    await copy_rows(connection, "flux_memory_staged_sessions", WHOLE_SESSION_COLUMNS, sessions, schema="pg_temp")
    await copy_rows(connection, "flux_memory_staged_messages", MESSAGE_COLUMNS, messages, schema="pg_temp")
    if record is not None and not restores_deleted:
        await connection.execute(COPY_STORED_MOVES, [*whole])
    added = {id_ for (id_,) in await connection.fetch(INSERT_SESSIONS)}
    if added:
        await connection.execute(INSERT_DETAILS, [*added])
    there = [id_ for id_ in whole if id_ not in added]
    # A session of which a piece was in a group before was counted there.
    fresh = {piece.id for piece in group if piece.begins} - added
    merged = await _take_out(connection, there, fresh) if there else MergeResult()
    merged.sessions = len(added)
    if record is not None:
        await connection.execute(RECORD_SESSIONS, record.source)
    await connection.execute(COUNT_UP, [*whole])
    merged.messages = count_rows(await connection.execute(APPEND_MESSAGES))
    return merged


async def _take_out(connection: Any, ids: list[str], fresh: set[str]) -> MergeResult:
    """Lock sessions that were not added, take out of the staged rows what is not to be added, and count it.

    Args:
        connection: In a transaction.
        ids: The sessions, all of one shard.
        fresh: Those that are counted now.
    """
    await connection.fetch(LOCK_SESSIONS_OF_SHARD, ids)
    await connection.execute(COPY_STORED_SESSIONS, ids)
    deleted = {id_ for (id_,) in await connection.fetch(TAKE_OUT_DELETED_SESSIONS, ids)}
    conflicts = dict(await connection.fetch(TAKE_OUT_SESSIONS_IN_CONFLICT))
    skipped, differing = 0, "[]"
    sessions, messages = await connection.fetchrow(SELECT_STAGED_IDS, ids)
    if messages:
        await connection.execute(COPY_STORED_MESSAGES, ids, sessions, messages)
        skipped, differing = await connection.fetchrow(TAKE_OUT_STORED_MESSAGES)
    in_conflict = [id_ for id_ in conflicts if id_ in fresh]
    merged = MergeResult(
        skipped_sessions=len(fresh - deleted - conflicts.keys()),
        skipped_messages=skipped,
        conflicting_sessions=len(in_conflict),
        held_back=sum(conflicts.values()),
    )
    for id_ in in_conflict:
        merged.name("session", id_)
    for id_ in json.loads(differing):
        merged.conflicting_messages += 1
        merged.name("message", id_)
    return merged
