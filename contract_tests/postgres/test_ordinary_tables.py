"""A memory's tables are permanent and ordinary: other relations in their place are refused by each way to open it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from original_application import POSTGRES_TABLES, make_file_with_data
from raw_postgres import execute, fetch_rows, with_parameter

from flux_memory import PostgresConversationMemory
from flux_memory.errors import SchemaError
from flux_memory.health import check_postgres
from flux_memory.transfer import Mode, Plan, migrate, migrate_back

OURS = ["sessions", "session_details", "messages", "flux_memory_schema"]
COUNT_TABLES = "SELECT count(*) FROM pg_class WHERE relname = ANY ($1::text[])"
ASIDE = "ALTER TABLE {0} RENAME TO {0}_aside; "
FOREIGN = "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER there FOREIGN DATA WRAPPER nothing; "

IN_PLACE_OF_OURS = {
    "unlogged messages": ("ALTER TABLE messages SET UNLOGGED", "'messages' .* is an unlogged table"),
    "unlogged details": ("ALTER TABLE session_details SET UNLOGGED", "'session_details' .* is an unlogged table"),
    "all unlogged": (
        "ALTER TABLE messages SET UNLOGGED; ALTER TABLE session_details SET UNLOGGED;ALTER TABLE sessions SET UNLOGGED",
        "'sessions' .* is an unlogged table.* ALTER TABLE public.sessions SET LOGGED",
    ),
    "unlogged versions": ("ALTER TABLE flux_memory_schema SET UNLOGGED", "'flux_memory_schema' .* unlogged"),
    "a view": (
        ASIDE.format("sessions") + "CREATE VIEW sessions AS SELECT * FROM sessions_aside",
        "'sessions' in the schema public is a view",
    ),
    "a view of versions": (
        ASIDE.format("flux_memory_schema") + "CREATE VIEW flux_memory_schema AS SELECT * FROM flux_memory_schema_aside",
        "'flux_memory_schema' .* is a view",
    ),
    "a view of details": (
        ASIDE.format("session_details") + "CREATE VIEW session_details AS SELECT * FROM session_details_aside",
        "'session_details' in the schema public is a view",
    ),
    "a materialized view": (
        ASIDE.format("messages") + "CREATE MATERIALIZED VIEW messages AS SELECT * FROM messages_aside",
        "'messages' .* is a materialized view",
    ),
    "a foreign table": (
        ASIDE.format("messages") + FOREIGN + "CREATE FOREIGN TABLE messages (id TEXT) SERVER there",
        "'messages' .* is a foreign table",
    ),
    "a partitioned table": (
        ASIDE.format("sessions") + "CREATE TABLE sessions (LIKE sessions_aside) PARTITION BY HASH (id)",
        "'sessions' .* is a partitioned table",
    ),
    "a sequence": (ASIDE.format("messages") + "CREATE SEQUENCE messages", "'messages' .* is a sequence"),
    "a composite type": (ASIDE.format("messages") + "CREATE TYPE messages AS (a INT)", "is a composite type"),
    "an index": (
        ASIDE.format("messages") + "CREATE INDEX messages ON sessions (user_id)",
        "'messages' .* is an index",
    ),
}
"""What stands in place of a table, and what is said of it."""


def openings(dsn: str, path: Path) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Everything that opens the store."""

    async def use() -> None:
        async with PostgresConversationMemory(dsn, min_size=1) as memory:
            await memory.create_session()

    return {
        "the library": use,
        "check": lambda: check_postgres(dsn, 10),
        **{str(mode): lambda mode=mode: migrate(Plan(sqlite_path=path, postgres_dsn=dsn, mode=mode)) for mode in Mode},
        "the way back": lambda: migrate_back(dsn, path.with_name("back.db")),
    }


async def refuse(dsn: str, path: Path, says: str, *, but: tuple[str, ...] = ()) -> None:
    make_file_with_data(path)
    for name, opening in openings(dsn, path).items():
        if name not in but:
            with pytest.raises(SchemaError, match=says):
                await opening()


async def use(memory: PostgresConversationMemory) -> None:
    async with memory:
        await memory.create_session()


@pytest.mark.asyncio
@pytest.mark.parametrize("world", IN_PLACE_OF_OURS)
async def test_another_relation_in_place_of_a_table_is_refused(
    path: Path, flux_empty_database: str, world: str
) -> None:
    """A row that is stored there may be lost, or be another program's: nothing opens it, nothing is proven."""
    statements, says = IN_PLACE_OF_OURS[world]
    await use(PostgresConversationMemory(flux_empty_database, min_size=1))
    await execute(flux_empty_database, statements)
    await refuse(flux_empty_database, path, says)


@pytest.mark.asyncio
async def test_unlogged_tables_of_the_original_application_are_not_adopted(
    path: Path, flux_empty_database: str
) -> None:
    """The first crash would empty them."""
    await execute(flux_empty_database, POSTGRES_TABLES.replace("CREATE TABLE", "CREATE UNLOGGED TABLE"))
    await refuse(flux_empty_database, path, "'sessions' .* is an unlogged table")


@pytest.mark.asyncio
@pytest.mark.parametrize("search_path", ["pg_temp", "pg_temp,public", "nowhere,pg_temp,public"])
async def test_no_table_is_created_as_a_temporary_one(path: Path, flux_empty_database: str, search_path: str) -> None:
    """With pg_temp first the tables would vanish with the connection, after everything was proven."""
    dsn = with_parameter(flux_empty_database, f"search_path={search_path}")
    await refuse(dsn, path, "remove pg_temp", but=("verify", "the way back"))
    assert await fetch_rows(flux_empty_database, COUNT_TABLES, OURS) == [(0,)]


@pytest.mark.asyncio
async def test_the_database_may_name_pg_temp_first(path: Path, flux_empty_database: str) -> None:
    """The setting may come from the role or the database as well; pg_temp in the last place is accepted."""
    name = flux_empty_database.rpartition("/")[2].partition("?")[0]
    await execute(flux_empty_database, f'ALTER DATABASE "{name}" SET search_path = pg_temp, public')
    await refuse(flux_empty_database, path, "remove pg_temp", but=("verify", "the way back"))
    await execute(flux_empty_database, f'ALTER DATABASE "{name}" SET search_path = public, pg_temp')
    for opening in openings(flux_empty_database, path).values():
        await opening()


@pytest.mark.asyncio
async def test_a_temporary_table_that_shadows_ours_is_refused(flux_empty_database: str) -> None:
    """The application's own pool may have made one: its rows would never reach the real table."""
    await use(PostgresConversationMemory(flux_empty_database, min_size=1))

    async def shadow(connection: Any) -> None:
        await connection.execute("CREATE TEMP TABLE sessions (LIKE public.sessions)")

    async with asyncpg.create_pool(flux_empty_database, min_size=1, max_size=1, init=shadow) as pool:
        with pytest.raises(SchemaError, match="'sessions' is a temporary table"):
            await use(PostgresConversationMemory(pool=pool))
