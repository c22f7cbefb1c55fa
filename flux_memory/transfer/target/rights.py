"""Refuses a role that lacks the rights which a migration needs on its target, and says which."""

from __future__ import annotations

from typing import Any, Final

from flux_memory.errors import SchemaError
from flux_memory.schema.postgres.tables import IS_MEMORY

# Tables of an earlier version have no details; only their owner upgrades them.
MAY_READ: Final = f"""
SELECT bool_and(has_table_privilege(oid, 'SELECT'))
FROM pg_class
WHERE {IS_MEMORY}
"""  # noqa: S608 - constants of ours
MAY_WRITE: Final = f"""
SELECT bool_and(has_table_privilege(oid, 'INSERT')) AND has_table_privilege('sessions', 'UPDATE')
FROM pg_class
WHERE {IS_MEMORY}
"""  # noqa: S608 - constants of ours
# NULL if there is no record.
MAY_USE_RECORD: Final = """
SELECT bool_and(has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT'))
FROM pg_class
WHERE relname IN ('flux_memory_moves', 'flux_memory_moved_sessions', 'flux_memory_moved_feedback')
    AND pg_table_is_visible(oid)
"""
# `merge` stages rows in temporary tables. `load` needs none: it fills empty tables that the role owns.
NEEDS_TEMPORARY: Final = """
SELECT quote_ident(current_database()::text)
WHERE NOT has_database_privilege(current_database()::text, 'TEMPORARY')
    AND (
        EXISTS (SELECT 1 FROM sessions)
        OR EXISTS (SELECT 1 FROM messages)
        OR EXISTS (
            SELECT 1 FROM pg_class
            WHERE relname IN ('sessions', 'session_details', 'messages')
                AND pg_table_is_visible(oid)
                AND NOT pg_has_role(relowner, 'USAGE')
        )
    )
"""


async def refuse_without_reading(connection: Any) -> None:
    """Raise `SchemaError` unless the role may read the tables."""
    if not await connection.fetchval(MAY_READ):
        raise SchemaError(
            "the role may not read the target's tables; GRANT SELECT ON sessions, session_details, messages, "
            "feedback to it"
        )


async def refuse_without_rights(connection: Any, *, replaces: bool) -> None:
    """Raise `SchemaError` unless the role may write to the tables; `replaces` is whether their rows are replaced."""
    if not await connection.fetchval(MAY_WRITE):
        raise SchemaError(
            "the role may not write to the target's tables; GRANT INSERT ON sessions, session_details, messages, "
            "feedback and UPDATE ON sessions to it, or let their owner run the migration"
        )
    if not replaces and (database := await connection.fetchval(NEEDS_TEMPORARY)) is not None:
        raise SchemaError(
            "the role may not create temporary tables, by which rows join those that are there; GRANT TEMPORARY ON "
            f"DATABASE {database} to it"
        )


async def refuse_without_record(connection: Any) -> None:
    """Raise `SchemaError` if there is a record of moves that the role may not use."""
    if await connection.fetchval(MAY_USE_RECORD) is False:
        raise SchemaError(
            "the role may not use the target's record of moves, which tells what was deleted since; GRANT SELECT, "
            "INSERT ON flux_memory_moves, flux_memory_moved_sessions, flux_memory_moved_feedback to it, or let their "
            "owner run the migration"
        )
