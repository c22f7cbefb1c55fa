"""The statements of a migration of distributed tables, and how it loads, reads and flushes them."""

from __future__ import annotations

from typing import Any, Final

from flux_memory.errors import MigrationError
from flux_memory.transfer.rows.pgcopy import GROUP_MESSAGES, MESSAGE_DIGEST, SESSION_DIGEST
from flux_memory.transfer.target import server, server_digests, verify
from flux_memory.transfer.target.cluster.cluster_merge import merge_by_shard
from flux_memory.transfer.target.cluster.common_moment import read_cluster
from flux_memory.transfer.target.transfer_path import TransferPath

# Each server computes the digests of its sessions by one statement, so that a session is read at one moment. The joins
# are on the keys themselves: with a cast, the rows of all servers would be gathered first.
SELECT_DIGESTS: Final = f"""
WITH proven AS MATERIALIZED (
    SELECT
        coalesce(sessions.id, counted.session_id)::text AS id,
        sessions.created_at,
        CASE WHEN sessions.id IS NOT NULL THEN {SESSION_DIGEST} END AS digest,
        coalesce(counted.messages, 0) AS messages,
        coalesce(counted.digest, sha256(''::bytea)) AS messages_digest,
        sessions.message_count IS NOT DISTINCT FROM coalesce(counted.messages, 0) AS is_counted,
        coalesce(counted.numbered, counted.session_id IS NULL) AS is_numbered
    FROM sessions
    LEFT JOIN session_details ON session_details.session_id OPERATOR(pg_catalog.=) sessions.id
    FULL JOIN (
        SELECT
            session_id,
            sum(messages)::bigint AS messages,
            min(first) = 1 AND max(last) = sum(messages)::bigint AS numbered,
            sha256(string_agg(digest, ''::bytea ORDER BY part)) AS digest
        FROM (
            SELECT
                session_id,
                part,
                count(*) AS messages,
                min(seq) AS first,
                max(seq) AS last,
                sha256(string_agg(digest, ''::bytea ORDER BY seq)) AS digest
            FROM (
                SELECT session_id, seq / {GROUP_MESSAGES} AS part, seq, {MESSAGE_DIGEST} AS digest FROM messages
            ) AS digested
            GROUP BY session_id, part
        ) AS parts
        GROUP BY session_id
    ) AS counted ON counted.session_id OPERATOR(pg_catalog.=) sessions.id
), moved AS (
    /* moved */
)
SELECT
    convert_to(coalesce(proven.id, moved.session_id), 'UTF8'::name),
    proven.digest,
    coalesce(proven.messages, 0),
    coalesce(proven.messages_digest, sha256(''::bytea)),
    coalesce(proven.is_counted, TRUE),
    coalesce(proven.is_numbered, TRUE),
    moved.by_source
FROM proven
FULL JOIN moved ON moved.session_id = proven.id
ORDER BY coalesce(proven.id, moved.session_id) COLLATE "C"
"""  # noqa: S608 - constants of ours
# A worker may run it, and knows no setting of this connection.
MOVED: Final = """
SELECT
    recorded.session_id,
    bool_or(source = ANY('/* sources */'::uuid[]) AND same.id IS NOT NULL) AS by_source
FROM flux_memory_moved_sessions AS recorded
LEFT JOIN proven AS same ON same.id = recorded.session_id AND same.created_at = recorded.created_at
GROUP BY recorded.session_id
"""
# The setting is local to the transaction of the statement.
FLUSH_WORKERS: Final = """
SELECT nodename || ':' || nodeport::text, result
FROM run_command_on_workers($$
    SELECT pg_logical_emit_message(TRUE, 'flux_memory', set_config('synchronous_commit', 'on', TRUE))
$$)
WHERE NOT success
"""


def _by_key(sql: str) -> str:
    """Return a statement whose condition on the session's id shows Citus the server."""
    return sql.replace("session_id::text = $1", "session_id OPERATOR(pg_catalog.=) $1").replace(
        "session_details.session_id::text = sessions.id::text",
        "session_details.session_id OPERATOR(pg_catalog.=) sessions.id",
    )


REPLACED: Final = {
    server_digests.SELECT_DIGESTS: SELECT_DIGESTS,
    server_digests.MOVED: MOVED,
    **{sql: _by_key(sql) for sql in (server.SELECT_SESSIONS, verify.COUNT_MESSAGES, verify.SELECT_MESSAGES)},
}
"""The statements that differ from those of one server."""


async def flush_cluster(connection: Any) -> None:
    """Wait until everything committed so far is on the disks of all servers; see `server.make_durable`.

    Raises:
        MigrationError: A server does not confirm it.
    """
    await server.make_durable(connection)
    for name, result in await connection.fetch(FLUSH_WORKERS):
        raise MigrationError(
            f"the worker {name} does not confirm that the rows are on its disk: {result}; check it, and run again"
        )


CLUSTER_TRANSFER: Final = TransferPath(
    statement=lambda sql: REPLACED.get(sql, sql),
    merge=merge_by_shard,
    drops_keys=False,
    read=read_cluster,
    flush=flush_cluster,
)
