"""Streams digests of a PostgreSQL memory's sessions, computed by the server, ordered by id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from flux_memory.transfer.rows.pgcopy import GROUP_MESSAGES, MESSAGE_DIGEST, SESSION_DIGEST, CopyReader
from flux_memory.transfer.rows.spool import SessionDigest
from flux_memory.transfer.target.copy_out import copy_out

# Parallel workers compute and sort the digests of messages. The aggregates receive them in the subquery's order; in any
# other order the session would seem to differ, and be compared row by row. The full join finds messages without a
# session.
SELECT_DIGESTS: Final = f"""
WITH in_order AS (
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
        sha256(string_agg(digest, '')) AS digest
    FROM in_order
    GROUP BY session_id, part
), proven AS (
    SELECT
        session_id,
        sum(messages)::bigint AS messages,
        min(first) = 1 AND max(last) = sum(messages) AS numbered,
        sha256(string_agg(digest, '' ORDER BY part)) AS digest
    FROM parts
    GROUP BY session_id
)
SELECT
    convert_to(coalesce(sessions.id, proven.session_id)::text, 'UTF8') AS id,
    CASE WHEN sessions.id IS NOT NULL THEN {SESSION_DIGEST} END,
    coalesce(proven.messages, 0),
    coalesce(proven.digest, sha256('')),
    sessions.message_count IS NOT DISTINCT FROM coalesce(proven.messages, 0),
    coalesce(proven.numbered, proven.session_id IS NULL)
FROM sessions
FULL JOIN proven ON proven.session_id = sessions.id
ORDER BY coalesce(sessions.id, proven.session_id)::text COLLATE "C"
"""  # noqa: S608 - constants of ours

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


async def read_digests(connection: Any, take: Callable[[ServerSession], None]) -> None:
    """Call `take` for each session as it arrives.

    COPY is used because the server runs a cursor's query without parallel workers.
    """
    reader = CopyReader()

    async def receive(data: bytes) -> None:
        for row in reader.rows(data):
            take(_session(row))

    await copy_out(connection, SELECT_DIGESTS, receive)


def _session(row: list[bytes | None]) -> ServerSession:
    id_, digest, count, messages, counted, numbered = row
    assert count is not None and messages is not None  # noqa: PT018, S101 - never NULL
    return ServerSession(
        SessionDigest(id_ or b"", digest or b"", int.from_bytes(count), messages),
        exists=digest is not None,
        counted=counted == _TRUE,
        numbered=numbered == _TRUE,
    )
