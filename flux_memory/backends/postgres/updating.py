"""Changes one session as it stands: its title, its newest message, or several parts at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from flux_memory import records
from flux_memory.backends.long_calls import build_off_loop
from flux_memory.backends.postgres.appending import is_conditional_append, make_append
from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.locking import SessionChange, change_session
from flux_memory.backends.postgres.lookup import FIND_MESSAGE
from flux_memory.backends.postgres.outcomes import ChangeOutcome
from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.errors import FluxMemoryError, OutcomeUnknownError
from flux_memory.protocol import Message, Session
from flux_memory.records import SessionUpdate
from flux_memory.records.limits import MAX_METADATA_BYTES

UPDATE_TITLE: Final = """
WITH locked AS (
    SELECT id
    FROM sessions
    WHERE id::text = $1
    FOR NO KEY UPDATE SKIP LOCKED
), renamed AS (
    INSERT INTO session_details (session_id, title)
    SELECT id, $2
    FROM locked
    ON CONFLICT (session_id) DO UPDATE
    SET title = excluded.title
    RETURNING TRUE
), changed AS (
    UPDATE sessions
    SET updated_at = greatest(updated_at, statement_timestamp() AT TIME ZONE 'UTC'), revision = $3::text::uuid
    FROM locked
    WHERE sessions.id::text = locked.id::text
    RETURNING TRUE
)
SELECT CASE
    WHEN EXISTS (SELECT 1 FROM changed) THEN 'done'
    WHEN EXISTS (SELECT 1 FROM sessions WHERE id::text = $1) THEN 'locked'
    ELSE 'missing'
END
"""

# `locked` is the newest version of the session's row, `seen` that of the statement's snapshot, which may be older than
# the lock. Each change gives a new revision, so where both agree, the snapshot of the messages is the newest, too.
# Where they differ, the statement changes nothing.
POP_MESSAGE: Final = """
WITH locked AS (
    SELECT id, message_count, revision
    FROM sessions
    WHERE id::text = $1
    FOR NO KEY UPDATE SKIP LOCKED
), seen AS (
    SELECT message_count, revision
    FROM sessions
    WHERE id::text = $1
), newest AS (
    SELECT id, seq, role, content, metadata, created_at
    FROM messages
    WHERE session_id::text = $1
    ORDER BY seq DESC
    LIMIT 1
), verdict AS (
    SELECT locked.id, CASE
        WHEN locked.revision = $2::text::uuid THEN 'applied'
        WHEN $3 THEN 'unknown'
        WHEN locked.message_count <> seen.message_count OR locked.revision <> seen.revision THEN 'stale'
        WHEN NOT EXISTS (SELECT 1 FROM newest) THEN 'empty'
        WHEN (
            SELECT pg_catalog.jsonb_typeof(coalesce(metadata, '{}')) = 'object'
                AND created_at BETWEEN '0001-01-01'::timestamp AND '9999-12-31 23:59:59.999999'::timestamp
            FROM newest
        ) THEN 'done'
        ELSE 'damaged'
    END AS outcome
    FROM locked
    CROSS JOIN seen
), popped AS (
    DELETE FROM messages
    USING verdict
    WHERE outcome = 'done' AND messages.session_id::text = $1 AND messages.seq = (SELECT seq FROM newest)
    RETURNING TRUE
), changed AS (
    UPDATE sessions
    SET message_count = message_count - (SELECT count(*) FROM popped),
        updated_at = greatest(updated_at, statement_timestamp() AT TIME ZONE 'UTC'),
        revision = $2::text::uuid
    FROM verdict
    WHERE outcome = 'done' AND sessions.id::text = verdict.id::text
    RETURNING TRUE
)
SELECT
    coalesce(
        (SELECT outcome FROM verdict),
        CASE WHEN EXISTS (SELECT 1 FROM sessions WHERE id::text = $1) THEN 'locked' ELSE 'missing' END
    ),
    id,
    role,
    content,
    metadata::text,
    rtrim(to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD')
FROM (SELECT 1) AS answer
LEFT JOIN newest ON TRUE
"""

# The same guard. The messages that are removed are deleted before new ones with their ids or numbers are stored, since
# the new counter, from which these take their numbers, depends on the deletion.
UPDATE_SESSION: Final = f"""
WITH locked AS (
    SELECT id, message_count, revision
    FROM sessions
    WHERE id::text = $1
    FOR NO KEY UPDATE SKIP LOCKED
), seen AS (
    SELECT
        id,
        user_id,
        coalesce(title, '') AS title,
        coalesce(metadata, '{{}}') AS metadata,
        created_at,
        updated_at,
        message_count,
        revision
    FROM sessions
    LEFT JOIN session_details ON session_id::text = id::text
    WHERE id::text = $1
), item AS (
    SELECT *
    FROM unnest(
        (SELECT $10::text::text[]), (SELECT $11::text::text[]), (SELECT $12::text::text[]), (SELECT $13::text::text[])
    ) WITH ORDINALITY AS item (id, role, content, metadata, position)
), cut AS (
    SELECT CASE
        WHEN $9 THEN 0
        WHEN $8::text IS NOT NULL THEN (
            SELECT seq FROM {FIND_MESSAGE.format(session="$1", id="$8")} WHERE found.id::text = $8
        )
    END AS seq
), stored AS (
    SELECT
        item.id,
        item.position,
        found.role = item.role
            AND found.content = item.content
            AND coalesce(found.metadata, '{{}}') = item.metadata::jsonb AS same
    FROM item
    CROSS JOIN cut
    JOIN LATERAL {FIND_MESSAGE.format(session="$1", id="item.id")} ON found.id::text = item.id
    WHERE found.seq < coalesce(cut.seq, 9223372036854775807)
), fresh AS (
    SELECT *, row_number() OVER (ORDER BY position) AS number
    FROM item
    WHERE position NOT IN (SELECT position FROM stored)
), merged AS (
    SELECT CASE
        WHEN pg_catalog.jsonb_typeof(metadata) <> 'object' THEN NULL
        WHEN $6::text IS NOT NULL THEN (metadata - $7::text::text[]) || $6::text::jsonb
        WHEN $7 <> '{{}}' THEN metadata - $7::text::text[]
    END AS metadata
    FROM seen
), verdict AS (
    SELECT locked.id, CASE
        WHEN locked.message_count <> seen.message_count OR locked.revision <> seen.revision THEN 'stale'
        WHEN locked.revision = $2::text::uuid THEN 'applied'
        WHEN $3 AND $4::text IS NULL THEN 'unknown'
        WHEN locked.revision::text <> $4 THEN 'conflict'
        WHEN $8::text IS NOT NULL AND cut.seq IS NULL THEN 'no message'
        WHEN EXISTS (SELECT 1 FROM stored WHERE NOT same) THEN 'taken'
        WHEN seen.user_id IS NULL
            OR pg_catalog.jsonb_typeof(seen.metadata) <> 'object'
            OR seen.created_at NOT BETWEEN '0001-01-01'::timestamp AND '9999-12-31 23:59:59.999999'::timestamp
            OR seen.updated_at NOT BETWEEN '0001-01-01'::timestamp AND '9999-12-31 23:59:59.999999'::timestamp
            THEN 'damaged'
        WHEN $6::text IS NOT NULL AND pg_catalog.octet_length(merged.metadata::text) > $14 THEN 'too large'
        ELSE 'done'
    END AS outcome
    FROM locked
    CROSS JOIN seen
    CROSS JOIN cut
    CROSS JOIN merged
), removed AS (
    DELETE FROM messages
    USING verdict
    WHERE outcome = 'done' AND messages.session_id::text = $1 AND messages.seq >= (SELECT seq FROM cut)
    RETURNING TRUE
), described AS (
    INSERT INTO session_details (session_id, title, metadata)
    SELECT verdict.id, coalesce($5, ''), coalesce(merged.metadata, '{{}}')
    FROM verdict
    CROSS JOIN merged
    WHERE outcome = 'done' AND ($5::text IS NOT NULL OR merged.metadata IS NOT NULL)
    ON CONFLICT (session_id) DO UPDATE
    SET title = CASE WHEN $5::text IS NULL THEN session_details.title ELSE excluded.title END,
        metadata = CASE WHEN $6::text IS NULL AND $7 = '{{}}' THEN session_details.metadata ELSE excluded.metadata END
    RETURNING TRUE
), changed AS (
    UPDATE sessions
    SET message_count = message_count - (SELECT count(*) FROM removed) + (SELECT count(*) FROM fresh),
        updated_at = greatest(updated_at, statement_timestamp() AT TIME ZONE 'UTC'),
        revision = $2::text::uuid
    FROM verdict
    WHERE outcome = 'done' AND sessions.id::text = verdict.id::text
    RETURNING sessions.id, message_count, updated_at
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT
        changed.id,
        fresh.id,
        changed.message_count - (SELECT count(*) FROM fresh) + fresh.number,
        fresh.role,
        fresh.content,
        fresh.metadata::jsonb,
        changed.updated_at
    FROM fresh
    CROSS JOIN changed
    RETURNING TRUE
)
SELECT
    coalesce(
        verdict.outcome,
        CASE WHEN EXISTS (SELECT 1 FROM sessions WHERE id::text = $1) THEN 'locked' ELSE 'missing' END
    ),
    (SELECT id FROM stored WHERE NOT same ORDER BY position LIMIT 1),
    seen.id,
    seen.user_id,
    coalesce($5, seen.title),
    rtrim(to_char(seen.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD'),
    rtrim(to_char(coalesce(changed.updated_at, seen.updated_at), 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD'),
    CASE WHEN outcome IN ('done', 'applied', 'damaged') THEN coalesce(merged.metadata, seen.metadata)::text END,
    $2,
    coalesce(changed.message_count, seen.message_count)
FROM (SELECT 1) AS answer
LEFT JOIN verdict ON TRUE
LEFT JOIN seen ON TRUE
LEFT JOIN merged ON TRUE
LEFT JOIN changed ON TRUE
"""  # noqa: S608 - constants of ours


async def update_title(executor: RetryingExecutor, state: CallState, session_id: str, title: str) -> bool:
    """Change a session's title; return whether the session exists."""
    # An attempt whose answer was lost may have set its revision already, and another change may have replaced it.
    change = SessionChange(UPDATE_TITLE, lambda: (session_id, title, records.make_revision()))
    outcome, *_ = await change_session(executor, state, change)
    return bool(outcome == ChangeOutcome.DONE)


async def pop_message(executor: RetryingExecutor, state: CallState, session_id: str) -> Message | None:
    """Remove the newest message of a session and return it, or `None` if there is none.

    Raises:
        OutcomeUnknownError: The answer of an attempt was lost.
    """
    revision = records.make_revision()
    change = SessionChange(POP_MESSAGE, lambda: (session_id, revision, state.lost))
    outcome, *row = await change_session(executor, state, change)
    if outcome == ChangeOutcome.APPLIED:
        raise OutcomeUnknownError(
            f"the newest message of session {session_id!r:.80} was removed, and the answer that held it was lost with "
            "the connection; its content cannot be read any more"
        )
    if outcome == ChangeOutcome.UNKNOWN or (outcome == ChangeOutcome.MISSING and state.lost):
        raise _outcome_unknown(session_id)
    if outcome in {ChangeOutcome.MISSING, ChangeOutcome.EMPTY}:
        return None
    (message,) = await build_off_loop(partial(records.build_messages, session_id, [row]))
    return message


async def update_session(
    executor: RetryingExecutor, state: CallState, session_id: str, update: SessionUpdate
) -> Session:
    """Make a change and return the session as it is then.

    Raises:
        FluxMemoryError: The session cannot be read; nothing is changed.
        SessionNotFoundError: The session does not exist.
        ConflictError: The session is not as the change requires.
        InvalidInputError: The metadata would become too large.
        OutcomeUnknownError: The answer of an attempt was lost, and the session has changed since.
    """
    revision = records.make_revision()
    change = SessionChange(UPDATE_SESSION, lambda: (session_id, revision, state.lost, *_values(update)))
    shortcut = make_append(session_id, revision, update) if is_conditional_append(update) else None
    outcome, *answer = await change_session(executor, state, change, shortcut=shortcut)
    if outcome in {ChangeOutcome.DONE, ChangeOutcome.APPLIED, ChangeOutcome.DAMAGED}:
        return await build_off_loop(partial(records.build_session, answer[1:]))
    raise _refusal(session_id, update, ChangeOutcome(outcome), answer, lost=state.lost)


def _values(update: SessionUpdate) -> Sequence[object]:
    return (
        update.expected_revision,
        update.title,
        update.merge_metadata,
        write_texts(update.remove_metadata),
        update.truncate_from,
        update.truncate_all,
        *([write_texts(texts) for texts in zip(*update.messages, strict=True)] or ["{}"] * 4),
        MAX_METADATA_BYTES,
    )


def _refusal(
    session_id: str, update: SessionUpdate, outcome: ChangeOutcome, answer: list[Any], *, lost: bool
) -> FluxMemoryError:
    """Return the error of an update that changed nothing."""
    if outcome is ChangeOutcome.UNKNOWN or (lost and outcome in {ChangeOutcome.MISSING, ChangeOutcome.CONFLICT}):
        return _outcome_unknown(session_id)
    if outcome is ChangeOutcome.CONFLICT:
        return records.revision_conflict(session_id)
    if outcome is ChangeOutcome.NO_MESSAGE:
        return records.message_not_found(session_id, update.truncate_from or "")
    if outcome is ChangeOutcome.TAKEN:
        return records.message_id_taken(session_id, answer[0])
    if outcome is ChangeOutcome.TOO_LARGE:
        return records.metadata_too_large(session_id)
    return records.session_not_found(session_id)


def _outcome_unknown(session_id: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"the connection was lost before the answer to a change of session {session_id!r:.80}; whether it took effect "
        "is not known; read the session and decide anew"
    )
