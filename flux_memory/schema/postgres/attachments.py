"""Carries what applications attached to the tables through an upgrade: triggers, policies, their owner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

# An upgrade is not a change that an application makes: its triggers must not see it, nor prevent it.
SELECT_TRIGGERS: Final = """
SELECT
    pg_catalog.format('ALTER TABLE %s DISABLE TRIGGER %I', pg_class.oid::regclass, tgname),
    pg_catalog.format(
        'ALTER TABLE %s ENABLE %sTRIGGER %I',
        pg_class.oid::regclass, CASE tgenabled WHEN 'A' THEN 'ALWAYS ' ELSE '' END, tgname
    )
FROM pg_class
JOIN pg_trigger ON tgrelid = pg_class.oid AND NOT tgisinternal AND tgenabled IN ('O', 'A')
WHERE relname IN ('sessions', 'session_details', 'messages') AND pg_table_is_visible(pg_class.oid)
"""
# The type of a column does not change while a policy depends on it.
SELECT_POLICIES_ON_IDS: Final = """
SELECT
    pg_catalog.format('DROP POLICY %I ON %s', polname, polrelid::regclass),
    pg_catalog.format(
        'CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s',
        polname,
        polrelid::regclass,
        CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
        CASE polcmd
            WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL'
        END,
        (
            SELECT string_agg(
                CASE WHEN role = 0::oid THEN 'PUBLIC' ELSE pg_catalog.format('%I', pg_get_userbyid(role)) END, ', '
            )
            FROM pg_catalog.unnest(polroles) AS role
        ),
        ' USING (' || pg_get_expr(polqual, polrelid) || ')',
        ' WITH CHECK (' || pg_get_expr(polwithcheck, polrelid) || ')'
    )
FROM pg_class
JOIN pg_policy ON polrelid = pg_class.oid
WHERE relname IN ('sessions', 'messages') AND pg_table_is_visible(pg_class.oid) AND EXISTS (
    SELECT FROM pg_depend
    JOIN pg_attribute ON attrelid = refobjid AND attnum::int4 = refobjsubid
    JOIN pg_class AS referred ON referred.oid = attrelid
    WHERE classid = 'pg_policy'::regclass::oid AND objid = pg_policy.oid AND refclassid = 'pg_class'::regclass::oid
        AND referred.relname IN ('sessions', 'messages') AND pg_table_is_visible(referred.oid)
        AND attname IN ('id', 'session_id')
)
"""
SELECT_TABLES: Final = """
SELECT made.relname::text
FROM pg_class AS made
JOIN pg_class AS sessions ON sessions.relname = 'sessions' AND sessions.relnamespace = made.relnamespace
WHERE made.relname IN ('session_details', 'feedback') AND pg_table_is_visible(sessions.oid)
"""
# Without this, columns that leave a protected table would be open to every role that is granted the new one, and so
# would feedback on protected sessions. The role that upgrades may be a superuser, or a member of the owner.
SELECT_PROTECTION: Final = """
SELECT pg_catalog.format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', made.oid::regclass)
FROM pg_class AS made
JOIN pg_class AS sessions ON sessions.relname = 'sessions' AND sessions.relnamespace = made.relnamespace
WHERE made.relname IN ('session_details', 'feedback') AND made.relname <> ALL ($1::text::name[])
    AND pg_table_is_visible(made.oid) AND sessions.relrowsecurity

UNION ALL
SELECT pg_catalog.format('ALTER TABLE %s OWNER TO %I', made.oid::regclass, pg_get_userbyid(sessions.relowner))
FROM pg_class AS made
JOIN pg_class AS sessions ON sessions.relname = 'sessions' AND sessions.relnamespace = made.relnamespace
WHERE made.relname IN ('session_details', 'feedback') AND made.relname <> ALL ($1::text::name[])
    AND pg_table_is_visible(made.oid) AND sessions.relowner <> made.relowner
"""


@asynccontextmanager
async def without_triggers(connection: Any) -> AsyncIterator[None]:
    """Disable the triggers that applications made, in the transaction of an upgrade."""
    async with _set_aside(connection, SELECT_TRIGGERS):
        yield


@asynccontextmanager
async def protecting_new_tables(connection: Any) -> AsyncIterator[None]:
    """Give tables that are created in the block the owner and the row-level security of `sessions`.

    Policies that depend on ids, whose type changes in the block, are created again.
    """
    older = ",".join(name for (name,) in await connection.fetch(SELECT_TABLES))
    async with _set_aside(connection, SELECT_POLICIES_ON_IDS):
        yield
    for (statement,) in await connection.fetch(SELECT_PROTECTION, f"{{{older}}}"):
        await connection.execute(statement)


@asynccontextmanager
async def _set_aside(connection: Any, query: str) -> AsyncIterator[None]:
    pairs = await connection.fetch(query)
    for end, _ in pairs:
        await connection.execute(end)
    yield
    for _, restore in pairs:
        await connection.execute(restore)
