"""The SQL that reads the sizes of distributed tables, whose rows are in tables on the servers of a cluster."""

from __future__ import annotations

from typing import Final

IS_DISTRIBUTED: Final = """
SELECT TRUE
FROM pg_class
JOIN pg_dist_partition ON logicalrelid = oid
WHERE relname = 'sessions' AND pg_table_is_visible(oid)
"""
HAS_CITUS: Final = "SELECT TRUE FROM pg_extension WHERE extname = 'citus'"
# Each server answers with its own parts of the tables, which have the names of the tables and the numbers of the parts.
# A server that does not answer, or has no part, is in the row without a name.
SELECT_TABLES_OF_SERVERS: Final = """
SELECT
    part.name,
    sum(part.bytes)::bigint,
    sum(part.live)::bigint,
    sum(part.dead)::bigint,
    sum(part.inserted)::bigint,
    count(*) FILTER (WHERE NOT answer.success)
FROM pg_class AS sessions
CROSS JOIN LATERAL run_command_on_all_nodes(format($command$
    SELECT coalesce(json_agg(part), '[]')
    FROM (
        SELECT
            whole.relname AS name,
            pg_total_relation_size(shard.oid) AS bytes,
            coalesce(nullif(pg_stat_get_live_tuples(shard.oid), 0), greatest(shard.reltuples, 0)::bigint) AS live,
            pg_stat_get_dead_tuples(shard.oid) AS dead,
            pg_stat_get_tuples_inserted(shard.oid) AS inserted
        FROM pg_dist_placement
        JOIN pg_dist_shard USING (shardid)
        JOIN pg_class AS whole ON whole.oid = logicalrelid
        JOIN pg_class AS shard
            ON shard.relname = whole.relname || '_' || shardid AND shard.relnamespace = whole.relnamespace
        WHERE groupid = (SELECT groupid FROM pg_dist_local_group)
            AND whole.relname IN ('sessions', 'session_details', 'messages', 'feedback')
            AND whole.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %L)
    ) AS part
$command$, sessions.relnamespace::regnamespace)) AS answer
LEFT JOIN LATERAL json_to_recordset(CASE WHEN answer.success THEN answer.result::json END)
    AS part (name text, bytes bigint, live bigint, dead bigint, inserted bigint) ON TRUE
WHERE sessions.relname = 'sessions' AND pg_table_is_visible(sessions.oid)
GROUP BY 1
ORDER BY 2 DESC
"""
