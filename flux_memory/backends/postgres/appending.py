"""Appends messages to a session that has an expected revision: the usual change, and cheaper than the general one."""

from __future__ import annotations

from typing import Final

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.backends.postgres.locking import SessionChange
from flux_memory.backends.postgres.lookup import FIND_MESSAGE
from flux_memory.records import SessionUpdate

IS_EXPECTED: Final = """\
    WHERE id::text = $1
        AND revision::text = $3
        AND user_id IS NOT NULL
        AND pg_catalog.date_part('year', created_at) BETWEEN 1 AND 9999
        AND pg_catalog.date_part('year', updated_at) BETWEEN 1 AND 9999
        AND NOT EXISTS (SELECT 1 FROM details WHERE pg_catalog.jsonb_typeof(metadata) <> 'object')
"""
"""The condition that the session has the expected revision, and that its row can be read."""
ANSWER: Final = """\
SELECT
    CASE
        WHEN id IS NOT NULL THEN 'done'
        WHEN (SELECT revision::text FROM sessions WHERE id::text = $1) NOT IN ($2, $3) THEN 'conflict'
        ELSE 'stale'
    END,
    NULL,
    id,
    user_id,
    coalesce(title, ''),
    rtrim(to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD'),
    rtrim(to_char(updated_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD'),
    coalesce(metadata, '{}')::text,
    $2,
    message_count
FROM (SELECT 1) AS answer
LEFT JOIN changed ON TRUE
LEFT JOIN details ON TRUE
"""
# The UPDATE compares the newest version of the session's row, after a wait for its lock. Each change gives a new
# revision, so an equal one also says that the snapshot of the messages is the newest. 'stale' leaves the rare cases to
# the general statement: damaged rows, messages that are stored already, changes during the wait.
APPEND_MESSAGES: Final = f"""
WITH item AS (
    SELECT *
    FROM unnest(
        (SELECT $4::text::text[]), (SELECT $5::text::text[]), (SELECT $6::text::text[]), (SELECT $7::text::text[])
    ) WITH ORDINALITY AS item (id, role, content, metadata, position)
), details AS (
    SELECT title, metadata FROM session_details WHERE session_id::text = $1
), changed AS (
    UPDATE sessions
    SET message_count = message_count + (SELECT count(*) FROM item),
        updated_at = greatest(updated_at, statement_timestamp() AT TIME ZONE 'UTC'),
        revision = $2::text::uuid
{IS_EXPECTED}        AND NOT EXISTS (
            SELECT 1
            FROM item
            JOIN LATERAL {FIND_MESSAGE.format(session="$1", id="item.id")} ON found.id::text = item.id
        )
    RETURNING id, user_id, created_at, updated_at, message_count
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT
        changed.id,
        item.id,
        changed.message_count - (SELECT count(*) FROM item) + item.position,
        item.role,
        item.content,
        item.metadata::jsonb,
        changed.updated_at
    FROM item
    CROSS JOIN changed
    RETURNING TRUE
)
{ANSWER}"""  # noqa: S608 - constants of ours

# The same for one message: without arrays it costs a third less.
APPEND_MESSAGE: Final = f"""
WITH details AS (
    SELECT title, metadata FROM session_details WHERE session_id::text = $1
), changed AS (
    UPDATE sessions
    SET message_count = message_count + 1,
        updated_at = greatest(updated_at, statement_timestamp() AT TIME ZONE 'UTC'),
        revision = $2::text::uuid
{IS_EXPECTED}        AND NOT EXISTS (
            SELECT 1
            FROM {FIND_MESSAGE.format(session="$1", id="$4")}
            WHERE found.id::text = $4
        )
    RETURNING id, user_id, created_at, updated_at, message_count
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT id, $4, message_count, $5, $6, $7::text::jsonb, updated_at
    FROM changed
    RETURNING TRUE
)
{ANSWER}"""  # noqa: S608 - constants of ours


def is_conditional_append(update: SessionUpdate) -> bool:
    """Return whether a change has no other part than an expected revision and messages."""
    bare = SessionUpdate(update.expected_revision, None, None, (), None, truncate_all=False, messages=update.messages)
    return update == bare and update.expected_revision is not None and bool(update.messages)


def make_append(session_id: str, revision: str, update: SessionUpdate) -> SessionChange:
    """Return the statement of a conditional append, which gives the session its new revision."""
    if len(update.messages) == 1:
        return SessionChange(
            APPEND_MESSAGE, lambda: (session_id, revision, update.expected_revision, *update.messages[0])
        )
    texts = [write_texts(texts) for texts in zip(*update.messages, strict=True)]
    return SessionChange(APPEND_MESSAGES, lambda: (session_id, revision, update.expected_revision, *texts))
