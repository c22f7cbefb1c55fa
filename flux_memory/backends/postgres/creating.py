"""Creates sessions: empty ones, ones with their first messages, and copies of others."""

from __future__ import annotations

from typing import Any, Final
from uuid import uuid4

from flux_memory import records
from flux_memory.backends.postgres.adds import Add
from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.lookup import MESSAGE_OF_SESSION
from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.errors import FluxMemoryError
from flux_memory.records import Fork, SessionRow

INSERT_SESSION: Final = """
WITH created AS (
    INSERT INTO sessions (id, user_id, created_at, updated_at, creation_id, revision)
    SELECT $1, $2, now.utc, now.utc, $5::text::uuid, $6::text::uuid
    FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC' AS utc) AS now
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), described AS (
    INSERT INTO session_details (session_id, title, metadata)
    SELECT id, $3, $4::text::jsonb
    FROM created
    RETURNING TRUE
)
SELECT TRUE FROM created
"""
SELECT_OWN_SESSION: Final = "SELECT TRUE FROM sessions WHERE id::text = $1 AND creation_id = $2::text::uuid"
SELECT_ROW_SECURITY: Final = "SELECT pg_catalog.row_security_active('sessions')"
INSERT_SESSION_WITH_MESSAGES: Final = """
WITH item AS (
    SELECT *
    FROM unnest(
        (SELECT $4::text::text[]), (SELECT $5::text::text[]), (SELECT $6::text::text[]), (SELECT $7::text::text[])
    ) WITH ORDINALITY AS item (id, role, content, metadata, position)
), created AS (
    INSERT INTO sessions (id, user_id, created_at, updated_at, message_count, revision)
    SELECT $1, $2, now.utc, now.utc, (SELECT count(*) FROM item), $3::text::uuid
    FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC' AS utc) AS now
    ON CONFLICT (id) DO NOTHING
    RETURNING id, created_at
), described AS (
    INSERT INTO session_details (session_id)
    SELECT id
    FROM created
    RETURNING TRUE
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT created.id, item.id, item.position, item.role, item.content, item.metadata::jsonb, created.created_at
    FROM created
    CROSS JOIN item
    RETURNING TRUE
)
SELECT TRUE FROM created
"""
# All reads are of one snapshot, so a copy is never half of a change, and locks nothing. Messages keep their numbers, of
# which another program may have deleted some, so the counter is the last number.
FORK_SESSION: Final = f"""
WITH original AS (
    SELECT id, user_id, updated_at, title, metadata
    FROM sessions
    LEFT JOIN session_details ON session_id::text = id::text
    WHERE id::text = $1
), last AS (
    SELECT seq FROM {MESSAGE_OF_SESSION} WHERE found.id::text = $2
), copied AS (
    SELECT id, seq, role, content, metadata, created_at
    FROM messages
    WHERE session_id::text = $1
        AND seq <= CASE WHEN $2::text IS NULL THEN 9223372036854775807 ELSE (SELECT seq FROM last) END
), created AS (
    INSERT INTO sessions (id, user_id, created_at, updated_at, message_count, creation_id, revision)
    SELECT
        $3,
        coalesce($4, user_id),
        greatest(updated_at, now.utc),
        greatest(updated_at, now.utc),
        (SELECT coalesce(max(seq), 0) FROM copied),
        $6::text::uuid,
        $7::text::uuid
    FROM original
    CROSS JOIN (SELECT clock_timestamp() AT TIME ZONE 'UTC' AS utc) AS now
    WHERE $2::text IS NULL OR EXISTS (SELECT 1 FROM last)
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), described AS (
    INSERT INTO session_details (session_id, title, metadata)
    SELECT created.id, coalesce($5, title, ''), coalesce(metadata, '{{}}')
    FROM created
    CROSS JOIN original
    RETURNING TRUE
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT created.id, copied.id, seq, role, content, metadata, created_at
    FROM created
    CROSS JOIN copied
    RETURNING TRUE
)
SELECT
    EXISTS (SELECT 1 FROM created),
    EXISTS (SELECT 1 FROM original),
    $2::text IS NULL OR EXISTS (SELECT 1 FROM last),
    EXISTS (SELECT 1 FROM sessions WHERE id::text = $3 AND creation_id = $6::text::uuid)
"""  # noqa: S608 - constants of ours


async def create_session(executor: RetryingExecutor, state: CallState, row: SessionRow, *, waits: bool) -> None:
    """Store a new session.

    Args:
        executor: Runs the statement.
        state: The state of the call.
        row: The session.
        waits: Whether a concurrent call may create a session with the same id, and hold its lock until it commits.

    Raises:
        ConflictError: Another session has the id.
    """
    creation_id = str(uuid4())

    async def insert(connection: Any) -> bool:
        values = (*row, creation_id, records.make_revision())
        if await connection.fetch(executor.path.statement(INSERT_SESSION), *values):
            return True
        # An earlier attempt may have stored it whose reply was lost.
        return state.lost and bool(
            await connection.fetch(executor.path.statement(SELECT_OWN_SESSION), row.id, creation_id)
        )

    run = executor.run_on_any_lock if waits else executor.run
    if not await run(state, insert):
        raise records.session_id_taken(row.id)


async def create_with_messages(sql: str, connection: Any, added: Add) -> bool:
    """Store a new session and its first messages; return `False`, and store nothing, if the session exists."""
    session_id, rows, user_id = added
    texts = map(write_texts, zip(*rows, strict=True))
    values = (session_id, user_id, records.make_revision(), *texts)
    return bool(await connection.fetch(sql, *values))


async def hides_sessions(connection: Any) -> bool:
    """Return whether policies may hide sessions from this role."""
    return bool(await connection.fetchval(SELECT_ROW_SECURITY))


async def fork_session(
    executor: RetryingExecutor, state: CallState, session_id: str, fork: Fork, *, waits: bool
) -> None:
    """Store a copy of a session and of its messages.

    Args:
        executor: Runs the statement.
        state: The state of the call.
        session_id: The original.
        fork: The copy to make.
        waits: See `create_session`.

    Raises:
        SessionNotFoundError: The original does not exist.
        ConflictError: Another session has the id of the copy, or the original does not have its last message.
    """
    creation_id = str(uuid4())

    async def copy(connection: Any) -> FluxMemoryError | None:
        sql = executor.path.statement(FORK_SESSION)
        values = (session_id, fork.through, fork.new_id, fork.user_id, fork.title, creation_id, records.make_revision())
        ((is_stored, found, found_last, is_own),) = await connection.fetch(sql, *values)
        if is_stored or is_own:
            return None
        # An earlier attempt may have stored it while this one waited for it.
        if state.lost and await connection.fetch(executor.path.statement(SELECT_OWN_SESSION), fork.new_id, creation_id):
            return None
        if not found:
            return records.session_not_found(session_id)
        if not found_last:
            return records.message_not_found(session_id, fork.through or "")
        return records.session_id_taken(fork.new_id)

    run = executor.run_on_any_lock if waits else executor.run
    error = await run(state, copy)
    if error is not None:
        raise error
