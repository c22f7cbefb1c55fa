"""Finds out whether the tables are distributed, and chooses the statements of the store."""

from __future__ import annotations

from typing import Any, Final

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.backends.postgres.distributed.cluster import make_path
from flux_memory.backends.postgres.distributed.functions import functions
from flux_memory.backends.postgres.one_server import ONE_SERVER
from flux_memory.backends.postgres.write_path import WritePath
from flux_memory.errors import SchemaError

HAS_CITUS: Final = "SELECT to_regclass('pg_catalog.pg_dist_partition'::text) IS NOT NULL"
SELECT_DISTRIBUTION: Final = """
SELECT
    quote_ident(nspname::text),
    (
        SELECT string_agg(other.relname::text, ', '::text ORDER BY other.relname)
        FROM pg_class AS other
        LEFT JOIN pg_dist_partition AS placed ON placed.logicalrelid::oid = other.oid
        WHERE other.relname = ANY ('{session_details,messages}'::name[])
            AND pg_table_is_visible(other.oid)
            AND (placed.colocationid = spread.colocationid) IS NOT TRUE
    ),
    EXISTS (
        SELECT 1
        FROM pg_class AS feedback
        JOIN pg_dist_partition ON logicalrelid::oid = feedback.oid
        WHERE feedback.relname = 'feedback' AND pg_table_is_visible(feedback.oid)
    )
FROM pg_class AS sessions
JOIN pg_namespace ON pg_namespace.oid = sessions.relnamespace
JOIN pg_dist_partition AS spread ON spread.logicalrelid::oid = sessions.oid
WHERE sessions.relname = 'sessions' AND pg_table_is_visible(sessions.oid) AND spread.partmethod = 'h'
"""
# The functions run with the rights of their caller. They belong to the owner of the tables, whom the role trusts.
SELECT_MISSING: Final = """
SELECT wanted.signature, pg_proc.proowner IS NOT DISTINCT FROM sessions.relowner
FROM unnest($1::text::text[]) AS wanted (signature)
JOIN pg_class AS sessions ON sessions.relname = 'sessions' AND pg_table_is_visible(sessions.oid)
LEFT JOIN pg_proc ON pg_proc.oid = to_regprocedure(wanted.signature)::oid
WHERE pg_proc.proowner IS DISTINCT FROM sessions.relowner
    OR NOT has_function_privilege(pg_proc.oid, 'EXECUTE'::text)
ORDER BY 1
"""


async def find_distribution(connection: Any) -> str | None:
    """Return the schema of the tables, quoted, if they are distributed; call it if the database has Citus.

    Raises:
        SchemaError: The tables are distributed, and not beside each other.
    """
    for schema, apart, has_feedback in await connection.fetch(SELECT_DISTRIBUTION):
        if apart:
            raise SchemaError(
                f"the table 'sessions' is distributed, and its rows in {apart} are not beside it; run "
                "flux-memory distribute as the owner of the tables"
            )
        if not has_feedback:
            raise SchemaError(
                "the table 'sessions' is distributed, and 'feedback' is not; run flux-memory distribute as the owner "
                "of the tables"
            )
        return str(schema)
    return None


async def find_path(connection: Any) -> WritePath:
    """Return the statements of a store by the state of its tables.

    Raises:
        SchemaError: The tables are distributed, and not as `flux-memory distribute` does it.
    """
    if not await connection.fetchval(HAS_CITUS):
        return ONE_SERVER
    if (schema := await find_distribution(connection)) is not None:
        wanted = [function.signature(schema) for function in functions().values()]
        for signature, exists in await connection.fetch(SELECT_MISSING, write_texts(wanted)):
            if exists:
                raise SchemaError(
                    f"the role may not execute {signature}, which writes to the distributed tables; run GRANT EXECUTE "
                    f"ON FUNCTION {signature} TO that role, or flux-memory distribute as the owner of the tables"
                )
            raise SchemaError(
                f"the table 'sessions' is distributed, and its owner does not have the function {signature}, which "
                "writes to it; run flux-memory distribute as the owner of the tables"
            )
        return await make_path(connection, schema)
    return ONE_SERVER
