"""Streams digests of a PostgreSQL memory's sessions, computed by the server, ordered by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.transfer.rows.pgcopy import GROUP_MESSAGES, MESSAGE_DIGEST, SESSION_DIGEST, CopyReader
from flux_memory.transfer.rows.spool import SessionDigest
from flux_memory.transfer.target.copy_out import copy_out

# Parallel workers compute and sort the digests of messages. The aggregates receive them in the subquery's order; in any
# other order the session would seem to differ, and be compared row by row. The full joins find messages without a
# session, and sessions that the record of moves has and the target has no longer.
SELECT_DIGESTS: Final = f"""
WITH moved AS (
    /* moved */
), in_order AS (
    SELECT session_id, seq / {GROUP_MESSAGES} AS part, seq, {MESSAGE_DIGEST} AS digest
    FROM messages
    ORDER BY session_id, part, seq
), parts AS (
    SELECT
        session_id,
        part,
        count(*) AS messages,
        min(seq) AS first,
        max(seq) AS last,
        sha256(string_agg(digest, ''::bytea)) AS digest
    FROM in_order
    GROUP BY session_id, part
), proven AS (
    SELECT
        session_id,
        sum(messages)::bigint AS messages,
        min(first) = 1 AND max(last) = sum(messages)::bigint AS numbered,
        sha256(string_agg(digest, ''::bytea ORDER BY part)) AS digest
    FROM parts
    GROUP BY session_id
)
SELECT
    convert_to(coalesce(sessions.id, proven.session_id, moved.session_id)::text, 'UTF8'::name) AS id,
    CASE WHEN sessions.id IS NOT NULL THEN {SESSION_DIGEST} END,
    coalesce(proven.messages, 0),
    coalesce(proven.digest, sha256(''::bytea)),
    sessions.message_count IS NOT DISTINCT FROM coalesce(proven.messages, 0),
    coalesce(proven.numbered, proven.session_id IS NULL),
    moved.by_source
FROM sessions
LEFT JOIN session_details ON session_details.session_id::text = sessions.id::text
FULL JOIN proven ON proven.session_id::text = sessions.id::text
FULL JOIN moved ON moved.session_id = coalesce(sessions.id, proven.session_id)::text
ORDER BY coalesce(sessions.id, proven.session_id, moved.session_id)::text COLLATE "C"
"""  # noqa: S608 - constants of ours
# A session that an application created anew under the same id has another time, and was not moved.
MOVED: Final = """
SELECT
    session_id,
    bool_or(source = ANY(current_setting('flux_memory.sources')::uuid[]) AND same.id IS NOT NULL) AS by_source
FROM flux_memory_moved_sessions AS recorded
LEFT JOIN sessions AS same ON same.id::text = session_id AND same.created_at = recorded.created_at
GROUP BY session_id
"""
# COPY takes no parameters.
SET_SOURCES: Final = "SELECT set_config('flux_memory.sources', $1, TRUE)"
NONE_MOVED: Final = "SELECT ''::text AS session_id, FALSE AS by_source WHERE FALSE"

_MOVED_HERE: Final = "/* moved */"
_SOURCES_HERE: Final = "/* sources */"
"""Stands for ids in a statement of a cluster, whose workers do not know the setting."""
_TRUE: Final = b"\x01"


class ServerSession(NamedTuple):
    """A session as the server sees it."""

    digest: SessionDigest
    exists: bool
    """Whether the session exists; messages may have lost theirs."""
    counted: bool
    """Whether `message_count` is the number of its messages."""
    numbered: bool
    """Whether its messages are numbered from 1 without a gap."""
    by_source: bool
    """Whether an earlier run moved the session from one of the sources asked about."""


async def read_digests(
    connection: Any,
    take: Callable[[ServerSession], None],
    source_ids: Sequence[UUID] | None,
    statement: Callable[[str], str] = str,
) -> None:
    """Call `take` for each session as it arrives, and for each that exists only in the record of moves.

    COPY is used because the server runs a cursor's query without parallel workers.

    Args:
        connection: Connected to the memory.
        take: Receives the sessions, ordered by id.
        source_ids: The ids, in the record of moves, of the sources asked about; `None` leaves the record unread.
        statement: See `TransferPath.statement`.
    """
    reader = CopyReader()

    async def receive(data: bytes) -> None:
        for row in reader.rows(data):
            take(_session(row))

    moved = NONE_MOVED
    if source_ids is not None:
        sources = write_texts(map(str, source_ids))
        await connection.execute(SET_SOURCES, sources)
        moved = statement(MOVED).replace(_SOURCES_HERE, sources)
    query = statement(SELECT_DIGESTS).replace(_MOVED_HERE, moved)
    await copy_out(connection, query, receive)


def _session(row: list[bytes | None]) -> ServerSession:
    id_, digest, count, messages, counted, numbered, by_source = row
    assert count is not None and messages is not None  # noqa: PT018, S101 - never NULL
    return ServerSession(
        SessionDigest(id_ or b"", digest or b"", int.from_bytes(count), messages),
        exists=digest is not None,
        counted=counted == _TRUE,
        numbered=numbered == _TRUE,
        by_source=by_source == _TRUE,
    )
