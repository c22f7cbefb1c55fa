"""Adds messages to sessions by one SQL statement, for one call or for many, and reads the outcome of each."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Final, NamedTuple

import orjson

from flux_memory import records
from flux_memory.backends.postgres.arrays import write_numbers, write_texts
from flux_memory.backends.postgres.lookup import FIND_MESSAGE, MESSAGE_OF_SESSION
from flux_memory.errors import FluxMemoryError
from flux_memory.records import MessageRow, make_revision

# The session's row lock serializes concurrent adds, and the counter in that row numbers them. A message that is already
# stored stops the update, so that a retry changes nothing. Of two concurrent retries the second violates the unique
# key, fails as a whole, and finds the message when it runs again.
ADD_MESSAGE: Final = f"""
WITH stored AS (
    SELECT role = $3 AND content = $4 AND coalesce(metadata, '{{}}') = $5::text::jsonb AS same
    FROM {MESSAGE_OF_SESSION}
    WHERE found.id::text = $2
), bumped AS (
    UPDATE sessions
    SET message_count = message_count + 1,
        updated_at = greatest(updated_at, statement_timestamp() AT TIME ZONE 'UTC'),
        revision = $6::text::uuid
    WHERE id::text = $1 AND NOT EXISTS (SELECT 1 FROM stored)
    RETURNING id, message_count, updated_at
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT id, $2, message_count, $3, $4, $5::text::jsonb, updated_at
    FROM bumped
    RETURNING TRUE
)
SELECT coalesce((SELECT same FROM stored), (SELECT TRUE FROM bumped))
"""  # noqa: S608 - constants of ours

# The same, for a session that must have an owner. With one statement for both, the planner would make a plan for each
# call: that takes longer than the statement itself.
ADD_MESSAGE_OF_USER: Final = ADD_MESSAGE.replace(
    "WHERE id::text = $1 AND", "WHERE id::text = $1 AND user_id = $7 AND"
).replace(
    "(SELECT TRUE FROM bumped))",
    "(SELECT TRUE FROM bumped)), (SELECT coalesce(user_id, '') <> $7 FROM sessions WHERE id::text = $1)",
)

# ADD_MESSAGE for several calls, each with its own outcome. Locked sessions are skipped and returned: they must not
# delay the others, and statements that do not wait cannot deadlock.
#
# `(SELECT $n)` hides the arrays' lengths from the planner, which would otherwise make a custom plan for each length.
# Planning takes several times as long as the statement itself.
ADD_MESSAGES: Final = f"""
WITH item AS (
    SELECT *
    FROM unnest(
        (SELECT $2::text::int[]), (SELECT $3::text::text[]), (SELECT $4::text::text[]),
        (SELECT $5::text::text[]), (SELECT $6::text::text[]), (SELECT $7::text::text[])
    ) WITH ORDINALITY AS item (call, session_id, id, role, content, metadata, position)
), stored AS (
    SELECT
        item.call,
        item.position,
        item.id,
        found.role = item.role
            AND found.content = item.content
            AND coalesce(found.metadata, '{{}}') = item.metadata::jsonb AS same
    FROM item
    JOIN LATERAL {FIND_MESSAGE.format(session="item.session_id", id="item.id")} ON found.id::text = item.id
), fresh AS (
    SELECT *, row_number() OVER (PARTITION BY session_id ORDER BY position) AS number
    FROM item
    WHERE position NOT IN (SELECT position FROM stored)
        AND call NOT IN (SELECT call FROM stored WHERE NOT same)
), locked AS (
    SELECT id::text AS id
    FROM sessions
    WHERE id::text = ANY ((SELECT $1::text::text[])::text[])
    FOR UPDATE SKIP LOCKED
), bumped AS (
    UPDATE sessions
    SET message_count = message_count + growth.messages,
        updated_at = greatest(updated_at, statement_timestamp() AT TIME ZONE 'UTC'),
        revision = revised.revision::uuid
    FROM (SELECT session_id, count(*) AS messages FROM fresh GROUP BY session_id) AS growth
    JOIN locked ON locked.id = growth.session_id
    JOIN unnest((SELECT $1::text::text[]), (SELECT $8::text::text[])) AS revised (session_id, revision)
        ON revised.session_id = growth.session_id
    WHERE sessions.id::text = growth.session_id
    RETURNING sessions.id::text AS id, message_count - growth.messages AS before, updated_at
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT
        fresh.session_id,
        fresh.id,
        bumped.before + fresh.number,
        fresh.role,
        fresh.content,
        fresh.metadata::jsonb,
        bumped.updated_at
    FROM fresh
    JOIN bumped ON bumped.id = fresh.session_id
)
SELECT pg_catalog.json_build_array(
    ARRAY (SELECT id FROM locked),
    ARRAY (
        SELECT id
        FROM sessions
        WHERE id::text = ANY ((SELECT $1::text::text[])::text[])
            AND (SELECT count(*) FROM locked) < (SELECT pg_catalog.cardinality($1::text::text[]))
            AND id::text NOT IN (SELECT id FROM locked)
    ),
    ARRAY (SELECT call FROM stored WHERE NOT same ORDER BY position),
    ARRAY (SELECT id FROM stored WHERE NOT same ORDER BY position)
)::text
"""  # noqa: S608 - constants of ours

# The same, where some calls name the owner that their session must have.
ADD_MESSAGES_OF_USERS: Final = (
    ADD_MESSAGES.replace(
        "), fresh AS (",
        """), foreign_call AS (
    SELECT claim.call
    FROM unnest(
        (SELECT $9::text::int[]), (SELECT $10::text::text[]), (SELECT $11::text::text[])
    ) AS claim (call, session_id, user_id)
    JOIN sessions ON sessions.id::text = claim.session_id AND coalesce(sessions.user_id, '') <> claim.user_id
), fresh AS (""",
    )
    .replace("WHERE NOT same)\n", "WHERE NOT same)\n        AND call NOT IN (SELECT call FROM foreign_call)\n")
    .replace("\n)::text", ",\n    ARRAY (SELECT call FROM foreign_call)\n)::text")
)

SKIPPING: Final = " SKIP LOCKED"


class AddOutcome(Enum):
    """The outcome of an add that no error refuses."""

    STORED = auto()
    LOCKED = auto()
    """The session was locked, so the call was skipped."""
    MISSING = auto()
    """The session does not exist."""
    REFUSED = auto()
    """The server refused the statement as a whole; each of its calls must be sent alone."""


class Add(NamedTuple):
    """One call's messages for a session."""

    session_id: str
    rows: Sequence[MessageRow]
    user_id: str
    """The owner that the session must have; empty for any."""


async def add(connection: Any, calls: Sequence[Add], *, wait: bool) -> list[AddOutcome | FluxMemoryError]:
    """Store calls by one statement, each as a whole or not at all.

    Args:
        connection: An asyncpg connection.
        calls: The calls; the rows of one session have different ids.
        wait: Whether to wait for locked sessions, or to skip them.

    Returns:
        The outcome of each call, or the error that refuses it.
    """
    if wait and len(calls) == len(calls[0].rows) == 1:
        return [await _add_one(connection, calls[0])]
    items = [(number, call.session_id, *row) for number, call in enumerate(calls) for row in call.rows]
    numbers, *texts = zip(*items, strict=True) if items else [()] * 6
    sessions = dict.fromkeys(call.session_id for call in calls)
    revisions = (make_revision() for _ in sessions)
    arrays = [write_texts(sessions), write_numbers(numbers), *map(write_texts, texts), write_texts(revisions)]
    sql = ADD_MESSAGES
    if claims := [(number, call.session_id, call.user_id) for number, call in enumerate(calls) if call.user_id]:
        sql = ADD_MESSAGES_OF_USERS
        claiming, *claimed = zip(*claims, strict=True)
        arrays += [write_numbers(claiming), *map(write_texts, claimed)]
    ((outcomes,),) = await connection.fetch(sql.replace(SKIPPING, "") if wait else sql, *arrays)
    found, locked, refused, taken_ids, *foreign_calls = orjson.loads(outcomes)
    first_taken = dict(zip(reversed(refused), reversed(taken_ids), strict=True))
    # After a wait for locks, `locked` may name a session that was deleted meanwhile: the snapshot is older.
    known, skipped = set(found), set() if wait else set(locked)
    foreign: set[int] = set(*foreign_calls)
    return [
        AddOutcome.LOCKED
        if session_id in skipped
        else tell_outcome(
            session_id, found=session_id in known, is_foreign=number in foreign, taken=first_taken.get(number)
        )
        for number, (session_id, *_) in enumerate(calls)
    ]


async def _add_one(connection: Any, call: Add) -> AddOutcome | FluxMemoryError:
    session_id, (row,), user_id = call
    values = (session_id, *row, make_revision())
    if user_id:
        ((same, is_foreign),) = await connection.fetch(ADD_MESSAGE_OF_USER, *values, user_id)
    else:
        ((same,),), is_foreign = await connection.fetch(ADD_MESSAGE, *values), False
    taken = row.id if same is False else None
    return tell_outcome(session_id, found=same is not None, is_foreign=bool(is_foreign), taken=taken)


def tell_outcome(session_id: str, *, found: bool, is_foreign: bool, taken: str | None) -> AddOutcome | FluxMemoryError:
    """Return the outcome of a call, or the error that refuses it."""
    # A session that another user owns is found by its snapshot only.
    if is_foreign:
        return records.owner_conflict(session_id)
    if not found:
        return AddOutcome.MISSING
    if taken is not None:
        return records.message_id_taken(session_id, taken)
    return AddOutcome.STORED
