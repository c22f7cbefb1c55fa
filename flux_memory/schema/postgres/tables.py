"""Finds the tables that the memory's names refer to, and refuses relations that would not keep its rows."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from flux_memory.errors import SchemaError

MEMORY: Final = "{sessions,session_details,messages,feedback,flux_memory_schema}"
"""The tables of a memory, as an array of names."""
WITH_RECORD: Final = (
    "{sessions,session_details,messages,feedback,flux_memory_schema,flux_memory_moves,flux_memory_moved_sessions,"
    "flux_memory_moved_feedback}"
)
"""The same and the record of moves, which only migrations use: no other call depends on it."""

# Another application may have a table `feedback` in another schema, which is not the memory's.
IS_OURS: Final = """(relname <> 'feedback' OR relnamespace = (
    SELECT sessions.relnamespace
    FROM pg_class AS sessions
    WHERE sessions.relname = 'sessions' AND pg_table_is_visible(sessions.oid)
))"""
IS_MEMORY: Final = f"""relname IN ('sessions', 'session_details', 'messages', 'feedback')
    AND pg_table_is_visible(oid) AND {IS_OURS}"""
"""The condition by which a row of pg_class is a table with the memory's rows."""
# Not to_regclass(), whose cache may miss a table that another session has just created. Reading a catalogue refreshes
# the cache. The order is that in which unlogged tables can become logged.
SELECT_RELATIONS: Final = f"""
SELECT
    relname::text,
    relnamespace::regnamespace::text,
    relkind::text,
    relpersistence::text,
    to_regclass('pg_catalog.pg_dist_partition'::text) IS NOT NULL
FROM pg_class
WHERE pg_table_is_visible(oid) AND relname = ANY ($1::text::name[]) AND {IS_OURS}
ORDER BY relname DESC
"""  # noqa: S608 - constants of ours
# Creates the temporary schema if search_path begins with pg_temp.
CREATES_TEMPORARY_TABLES: Final = "SELECT starts_with(current_schema()::text, 'pg_temp_')"

_OTHER_KINDS: Final = {
    "c": "a composite type",
    "f": "a foreign table",
    "i": "an index",
    "m": "a materialized view",
    "p": "a partitioned table",
    "I": "an index",
    "S": "a sequence",
    "v": "a view",
}
_NO_PG_TEMP: Final = "remove pg_temp from the beginning of the search_path of the role, the database or the DSN"


class FoundTables(NamedTuple):
    """The tables that exist."""

    names: set[str]
    has_citus: bool
    """Whether the database has the extension that may distribute them; `False` if there are none."""


async def find_tables(connection: Any, tables: str = MEMORY) -> FoundTables:
    """Return which of the tables exist: `MEMORY` or `WITH_RECORD`.

    Raises:
        SchemaError: One of the names does not refer to a permanent, ordinary table.
    """
    relations = await connection.fetch(SELECT_RELATIONS, tables)
    for name, schema, kind, persistence, _ in relations:
        if persistence == "t":
            raise SchemaError(
                f"'{name}' is a temporary table, which vanishes with its connection; {_NO_PG_TEMP}, or drop the table"
            )
        if kind != "r":
            raise SchemaError(
                f"'{name}' in the schema {schema} is {_OTHER_KINDS.get(kind, 'not a table')}, and the memory needs a "
                "permanent, ordinary table; rename it, or use another database or schema"
            )
        if persistence == "u":
            raise SchemaError(
                f"'{name}' in the schema {schema} is an unlogged table, which the server empties after a crash; run "
                f"ALTER TABLE {schema}.{name} SET LOGGED, then retry"
            )
    schemas = sorted({schema for _, schema, *_ in relations})
    if len(schemas) > 1:
        raise SchemaError(
            f"the memory's tables are in several schemas: {', '.join(schemas)}; name only one of these in search_path"
        )
    return FoundTables({name for name, *_ in relations}, any(has_citus for *_, has_citus in relations))


async def refuse_temporary_schema(connection: Any) -> None:
    """Raise `SchemaError` if the tables that the memory lacks would be created as temporary ones."""
    if await connection.fetchval(CREATES_TEMPORARY_TABLES):
        raise SchemaError(f"tables would be created in pg_temp, and vanish with the connection; {_NO_PG_TEMP}")
