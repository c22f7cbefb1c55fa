"""Tests the PostgreSQL backend beyond the contract: unusual server settings, plans, corrupt rows."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import asyncpg
import pytest
from bound_stores import run_async_clause
from raw_postgres import execute, fetch_rows

from flux_memory import PostgresConversationMemory
from flux_memory.errors import ConflictError, FluxMemoryError, InvalidInputError, SchemaError
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.servers import Server, start_server

FUTURE = "2999-01-01T00:00:00.000000+00:00"


@pytest.fixture
def unopened_memory(flux_memory_postgres_dsn: str) -> PostgresConversationMemory:
    return PostgresConversationMemory(flux_memory_postgres_dsn, timeout=10)


async def set_database_defaults(dsn: str, *settings: str) -> None:
    """Set defaults of the database as an administrator would; each is `name = value`."""
    ((name,),) = await fetch_rows(dsn, "SELECT current_database()")
    await execute(dsn, *(f'ALTER DATABASE "{name}" SET {setting}' for setting in settings))


async def run_format_clauses(dsn: str) -> None:
    """Run clauses that cover every format in which the server returns stored values."""
    for clause_id in (
        *("FM-TIM-001", "FM-TIM-002", "FM-TIM-005", "FM-TXT-001", "FM-MET-001", "FM-MET-003", "FM-ORD-006"),
        *("FM-BAT-002", "FM-SES-001", "FM-SES-007", "FM-SES-008", "FM-LST-001", "FM-LST-012", "FM-CON-010"),
    ):
        async with PostgresConversationMemory(dsn) as memory:
            await memory.clear_all()
        await run_async_clause(clause_id, StoreUnderTest(lambda: PostgresConversationMemory(dsn)))


@pytest.mark.asyncio
async def test_through_a_unix_socket() -> None:
    """A DSN with a socket directory works as well as one with a host."""
    # A separate server: the run's may be a container, whose socket is out of reach.
    with start_server("local") as server:
        dsn = server.through_socket(server.create_database())
        assert dsn is not None
        await run_format_clauses(dsn)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "settings",
    [
        (
            *("timezone = 'Asia/Seoul'", "datestyle = 'SQL, DMY'"),
            *("standard_conforming_strings = on", "extra_float_digits = -15"),
            *("bytea_output = 'escape'", "array_nulls = off"),
        ),
        (
            *("timezone = 'Asia/Kathmandu'", "datestyle = 'German, DMY'"),
            *("enable_seqscan = off", "jit_above_cost = 0", "plan_cache_mode = force_generic_plan"),
        ),
        (
            *("timezone = 'America/St_Johns'", "datestyle = 'Postgres, MDY'", "intervalstyle = 'sql_standard'"),
            "default_transaction_isolation = 'repeatable read'",
        ),
        ("default_transaction_isolation = 'serializable'", "default_transaction_deferrable = on"),
    ],
    ids=lambda settings: settings[0],
)
async def test_a_server_set_strangely_gives_the_same_answers(
    flux_empty_database: str, settings: tuple[str, ...]
) -> None:
    """The server's time zone, formats, plans and isolation do not show in a record."""
    await set_database_defaults(flux_empty_database, *settings)
    await run_format_clauses(flux_empty_database)


def test_a_pool_of_another_type_is_refused() -> None:
    """An object that cannot lend connections is refused when it is passed, not at the first call."""
    with pytest.raises(TypeError, match="pool must be an asyncpg pool or None, not int"):
        PostgresConversationMemory(pool=3)


@pytest.mark.asyncio
@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_concurrent_adds_under_a_strict_default_isolation(flux_empty_database: str, isolation: str) -> None:
    """Adds that the server rolls back in favour of others are retried: none fails, none is stored twice."""
    await set_database_defaults(flux_empty_database, f"default_transaction_isolation = '{isolation}'")
    async with (
        PostgresConversationMemory(flux_empty_database) as one,
        PostgresConversationMemory(flux_empty_database) as two,
    ):
        await one.create_session(session_id="s")
        adds = [memory.add_message("s", "user", f"{n}") for n in range(20) for memory in (one, two)]
        ids = await asyncio.gather(*adds)
        assert sorted(message["id"] for message in await one.get_history("s")) == sorted(ids)
    assert await fetch_rows(flux_empty_database, "SELECT seq FROM messages ORDER BY seq") == [
        (n,) for n in range(1, 41)
    ]


@pytest.mark.asyncio
async def test_a_database_that_cannot_hold_every_text_is_refused(flux_postgres_server: Server) -> None:
    """LATIN1 cannot store most of the world's text, so the first use fails and says why."""
    dsn = flux_postgres_server.create_database()
    ((name,),) = await fetch_rows(dsn, "SELECT current_database()")
    try:
        await execute(
            flux_postgres_server.dsn,
            f'DROP DATABASE "{name}"',
            f"CREATE DATABASE \"{name}\" ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
        )
        async with PostgresConversationMemory(dsn) as memory:
            with pytest.raises(SchemaError, match=r"encoding is LATIN1, .*; create it with ENCODING 'UTF8'"):
                await memory.count_sessions()
        assert await fetch_rows(dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    finally:
        flux_postgres_server.drop_database(dsn)


@pytest.mark.asyncio
async def test_ids_are_ordered_by_bytes_under_any_collation(flux_empty_database: str) -> None:
    """Ties in a listing are broken as on SQLite, even if the database sorts as a dictionary does."""
    ids = ["B", "a", "_b", "Z", "é", "a-1", "a1"]
    async with PostgresConversationMemory(flux_empty_database) as memory:
        ((collation,),) = await fetch_rows(
            flux_empty_database,
            "SELECT quote_ident(collname) FROM pg_collation WHERE 'a' < 'B' "
            "AND collname IN ('en-US-x-icu', 'und-x-icu', 'en_US.utf8', 'en_US') ORDER BY 1 LIMIT 1",
        ) or [('"C"',)]
        await memory.count_sessions()
        await execute(flux_empty_database, f"ALTER TABLE sessions ALTER COLUMN id TYPE varchar(36) COLLATE {collation}")
        for id_ in ids:
            await memory.create_session(session_id=id_)
        await execute(flux_empty_database, f"UPDATE sessions SET updated_at = '{FUTURE}'")
        expected = sorted(ids, key=str.encode, reverse=True)
        assert [session["id"] for session in await memory.get_sessions()] == expected
        pages = [await memory.get_sessions(3, offset) for offset in (0, 3, 6)]
        assert [session["id"] for page in pages for session in page] == expected


@pytest.mark.asyncio
async def test_a_call_is_one_statement_in_one_round_trip(flux_memory_postgres_dsn: str) -> None:
    """No BEGIN and no second statement: counted on the memory's own connections."""
    statements: list[str] = []

    async def count(connection: Any) -> None:
        connection.add_query_logger(lambda query: statements.append(query.query))

    async def keep(connection: Any) -> None:
        """Skip the reset, as the library's own pool does."""

    async with (
        asyncpg.create_pool(flux_memory_postgres_dsn, min_size=1, init=count, reset=keep) as pool,
        PostgresConversationMemory(pool=pool) as memory,
    ):
        for warm in (False, True):
            session = await memory.create_session(user_id="ann")
            for work in (
                partial(memory.add_message, session, "user", "x", {"a": 1}),
                partial(memory.add_messages, session, [{"role": "user", "content": str(n)} for n in range(50)]),
                partial(memory.get_history, session, 10),
                partial(memory.update_session_title, session, "x"),
                partial(memory.add_message, session, "user", "x", user_id="ann", create=True),
                partial(memory.update_session, session, title="y", messages=[{"role": "user", "content": "x"}]),
                partial(memory.fork_session, session),
                partial(memory.pop_message, session),
                partial(memory.get_message, session, "x"),
                partial(memory.count_sessions, user_id="ann"),
                partial(memory.get_sessions, metadata={"a": 1}),
                partial(memory.delete_session, session),
            ):
                statements.clear()
                await work()
                # The driver queries the type text[] once for each connection.
                assert len(statements) == 1 or not warm, statements


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE session_details SET metadata = '\"text\"' WHERE session_id = 'one'",
        "UPDATE sessions SET created_at = '-infinity' WHERE id = 'one'",
        "UPDATE sessions SET updated_at = '12026-01-01' WHERE id = 'one'",
    ],
)
async def test_a_corrupt_session_is_named_and_hides_nothing_else(
    memory: PostgresConversationMemory, flux_memory_postgres_dsn: str, damage: str
) -> None:
    """A listing with that session names it; its messages, other sessions and every other access work."""
    healthy = await memory.create_session(metadata={"a": 1}, user_id="ann")
    await memory.add_message("one", "user", "kept")
    await execute(flux_memory_postgres_dsn, damage)
    for look in (memory.get_session("one"), memory.get_sessions()):
        with pytest.raises(FluxMemoryError, match="session 'one' cannot be read"):
            await look
    assert [message["content"] for message in await memory.get_history("one")] == ["kept"]
    assert [session["id"] for session in await memory.get_sessions(metadata={"a": 1})] == [healthy]
    assert [session["id"] for session in await memory.get_sessions(user_id="ann")] == [healthy]
    await memory.delete_session("one")
    assert len(await memory.get_sessions()) == 2


@pytest.mark.asyncio
async def test_a_retry_of_a_message_whose_metadata_became_null(
    memory: PostgresConversationMemory, flux_memory_postgres_dsn: str
) -> None:
    """NULL counts as an empty object in comparisons, never as a session that does not exist."""
    for id_, metadata in (("empty", {}), ("full", {"a": 1})):
        await memory.add_message("one", "user", "x", metadata, message_id=id_)
    await execute(flux_memory_postgres_dsn, "UPDATE messages SET metadata = NULL")
    assert await memory.add_message("one", "user", "x", {}, message_id="empty") == "empty"
    batch = {"role": "user", "content": "x"}
    assert await memory.add_messages("one", [{**batch, "message_id": "empty"}]) == ["empty"]  # type: ignore[typeddict-item]
    with pytest.raises(ConflictError):
        await memory.add_message("one", "user", "x", {"a": 1}, message_id="full")
    with pytest.raises(ConflictError):
        await memory.add_messages("one", [{**batch, "message_id": "full", "metadata": {"a": 1}}])  # type: ignore[typeddict-item]
    assert len(await memory.get_history("one")) == 2


@pytest.mark.asyncio
async def test_a_table_that_is_gone_says_what_to_do(flux_empty_database: str) -> None:
    """If tables are dropped while a handle is open, the error says what to do, and a new handle does it."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.create_session()
        await execute(
            flux_empty_database, "DROP TABLE messages, session_details, sessions, feedback, flux_memory_schema"
        )
        with pytest.raises(SchemaError, match="the tables are gone; open a new memory to make them"):
            await memory.create_session()
    async with PostgresConversationMemory(flux_empty_database) as memory:
        assert await memory.count_sessions() == 0


@pytest.mark.asyncio
async def test_a_wrong_filter_is_refused_for_any_user(flux_memory_postgres_dsn: str) -> None:
    """An impossible user does not hide that the metadata filter is wrong."""
    async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
        with pytest.raises(InvalidInputError, match="metadata"):
            await memory.get_sessions(user_id="\x00", metadata=[])  # type: ignore[arg-type]
