"""Tests that PostgreSQL databases are created, adopted and upgraded in place, atomically and without loss."""

from __future__ import annotations

import asyncio
import signal
import sys
from functools import partial

import asyncpg
import pytest
from adoption import check_adopted, race_to_add
from original_application import POSTGRES_TABLES
from raw_postgres import (
    connect,
    create_role,
    dump_database,
    execute,
    fetch_rows,
    make_original,
    wait_until_none,
    with_parameter,
)
from waiting import wait_until

from flux_memory import PostgresConversationMemory
from flux_memory.errors import FluxMemoryError, SchemaError
from flux_memory.schema import history
from flux_memory.schema import postgres as schema

VERSIONS = [(step.version,) for step in history("postgres")]
APPLIED = "SELECT version FROM flux_memory_schema ORDER BY version"


async def read_order(dsn: str, session_id: str) -> list[str]:
    async with PostgresConversationMemory(dsn) as memory:
        return [message["id"] for message in await memory.get_history(session_id)]


async def assert_refused(dsn: str, kind: type[FluxMemoryError], says: str) -> None:
    """Open a database, expect a refusal, and check that the database is unchanged."""
    before = await dump_database(dsn)
    async with PostgresConversationMemory(dsn) as memory:
        for _ in range(2):
            with pytest.raises(kind, match=says):
                await memory.count_sessions()
    assert await dump_database(dsn) == before


@pytest.mark.asyncio
async def test_a_fresh_database_replays_the_whole_history(flux_empty_database: str) -> None:
    """The schema has one description: a fresh database applies each version and records its checksum and time."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        assert await memory.count_sessions() == 0
    recorded = await fetch_rows(
        flux_empty_database, "SELECT version, name, checksum FROM flux_memory_schema ORDER BY version"
    )
    assert recorded == [(step.version, step.name, step.checksum) for step in history("postgres")]
    late = await fetch_rows(
        flux_empty_database,
        "SELECT extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - applied_at) BETWEEN 0 AND 60 "
        "FROM flux_memory_schema",
    )
    assert set(late) == {(True,)}


@pytest.mark.asyncio
@pytest.mark.parametrize("generation", [1, 2])
async def test_an_adopted_database_is_in_order_and_complete(flux_empty_database: str, generation: int) -> None:
    """Messages are ordered by time, ties by writing order; every value is still there."""
    await make_original(flux_empty_database, generation=generation)
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await check_adopted(memory)
    stored = await fetch_rows(flux_empty_database, "SELECT seq FROM messages WHERE session_id = 'one' ORDER BY seq")
    assert stored == [(1,), (2,), (3,), (4,), (5,)]
    assert await fetch_rows(flux_empty_database, APPLIED) == VERSIONS


@pytest.mark.asyncio
async def test_the_order_is_proven_by_a_key_and_keys_begin_with_the_session(flux_empty_database: str) -> None:
    """No number or id occurs twice within a session, and no unique index would prevent sharding by session."""
    await make_original(flux_empty_database)
    await read_order(flux_empty_database, "one")
    for id_, seq in (("new", 1), ("m3", 99)):
        with pytest.raises(asyncpg.UniqueViolationError):
            await execute(
                flux_empty_database,
                "INSERT INTO messages (session_id, id, seq, role, content, created_at) "
                f"VALUES ('one', '{id_}', {seq}, '', '', now())",
            )
    keys = await fetch_rows(
        flux_empty_database,
        "SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0] "
        "WHERE indrelid = 'messages'::regclass AND indisunique",
    )
    assert keys == [("session_id",), ("session_id",)]


@pytest.mark.asyncio
async def test_users_and_nulls_of_the_second_generation(flux_empty_database: str) -> None:
    """A session still belongs to its user; a NULL user, title or metadata becomes empty."""
    await make_original(flux_empty_database, generation=2)
    await execute(
        flux_empty_database,
        "UPDATE sessions SET user_id = 'ann' WHERE id = 'one'",
        "UPDATE sessions SET user_id = NULL, title = NULL, metadata = NULL WHERE id = 'two'",
        "UPDATE messages SET metadata = NULL WHERE id = 'm2'",
    )
    async with PostgresConversationMemory(flux_empty_database) as memory:
        assert [session["id"] for session in await memory.get_sessions(user_id="ann")] == ["one"]
        (session,) = await memory.get_sessions(user_id="", metadata={})
        assert (session["id"], session["title"], session["metadata"]) == ("two", "", {})
        assert {message["id"]: message["metadata"] for message in await memory.get_history("two")}["m2"] == {}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("ALTER TABLE messages ADD COLUMN embedding TEXT", "columns that the original .* did not make: embedding"),
        ("ALTER TABLE sessions DROP COLUMN title", r"not conversation memory .*it lacks title\)"),
        ("DROP TABLE messages", "not conversation memory"),
        ("DROP TABLE sessions CASCADE; CREATE TABLE sessions (token text)", "not conversation memory"),
    ],
)
async def test_a_database_that_cannot_be_adopted_is_refused_and_left_alone(
    flux_empty_database: str, spoil: str, says: str
) -> None:
    """Nothing is guessed, dropped or half done: the message says what to fix, and the database is unchanged."""
    await make_original(flux_empty_database)
    await execute(flux_empty_database, spoil)
    await assert_refused(flux_empty_database, SchemaError, says)


@pytest.mark.asyncio
@pytest.mark.parametrize("hide", ["ALTER TABLE flux_memory_schema SET SCHEMA hidden", "DROP TABLE flux_memory_schema"])
async def test_tables_without_a_version_are_not_the_originals(flux_empty_database: str, hide: str) -> None:
    """Advice to use another database would leave the memory's rows behind."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.create_session()
    await execute(flux_empty_database, "CREATE SCHEMA hidden", hide)
    await assert_refused(flux_empty_database, SchemaError, "flux_memory_schema, .* is missing or not visible")


GUARD = """
CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not on my watch'; END $$
"""


@pytest.mark.asyncio
@pytest.mark.parametrize("step", ["CREATE TABLE", "ALTER TABLE", "DROP INDEX", "CREATE INDEX", "ALTER INDEX"])
async def test_an_adoption_that_fails_half_way_leaves_the_database_as_it_was(
    flux_empty_database: str, step: str
) -> None:
    """Each step is undone with all others, and the message names what refused it; then the adoption succeeds."""
    await make_original(flux_empty_database)
    guard = f"CREATE EVENT TRIGGER guard ON ddl_command_start WHEN TAG IN ('{step}') EXECUTE FUNCTION guard()"
    await execute(flux_empty_database, GUARD, guard)
    says = r"^PostgreSQL at postgresql://\w+:\*\*\*@.*: not on my watch; a trigger of the database refused it"
    await assert_refused(flux_empty_database, SchemaError, says)
    await execute(flux_empty_database, "DROP EVENT TRIGGER guard")
    assert await read_order(flux_empty_database, "one") == ["m3", "m4", "m1", "m6"]


SESSIONS = """
SELECT count(*)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
ADOPTER = """
import asyncio, sys
from flux_memory import PostgresConversationMemory

async def main():
    async with PostgresConversationMemory(sys.argv[1]) as memory:
        await memory.count_sessions()

asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_an_adoption_whose_process_is_killed_leaves_the_database_as_it_was(flux_empty_database: str) -> None:
    """After `kill -9` in the middle of the files, the server rolls back the whole adoption."""
    await make_original(flux_empty_database)
    before = await dump_database(flux_empty_database)
    async with connect(flux_empty_database) as other, connect(flux_empty_database) as watch:
        # The name of the last index of the third file, after the first two have been recorded.
        transaction = other.transaction()
        await transaction.start()
        await other.execute("CREATE TABLE sessions_by_metadata (x int)")
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", ADOPTER, flux_empty_database)
        await wait_until(partial(watch.fetchval, SESSIONS + " AND wait_event_type = 'Lock'"))
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        await transaction.rollback()
        await wait_until_none(flux_empty_database, SESSIONS + " AND xact_start IS NOT NULL AND state <> 'active'")
    assert await dump_database(flux_empty_database) == before
    assert await read_order(flux_empty_database, "one") == ["m3", "m4", "m1", "m6"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            "INSERT INTO flux_memory_schema (version, name, checksum) VALUES (99, 'later', 'x')",
            "has schema version 99 .* upgrade flux-memory",
        ),
        ("UPDATE flux_memory_schema SET checksum = 'x' WHERE version = 2", "from a file that differs"),
    ],
)
async def test_a_newer_or_a_changed_schema_is_refused(flux_empty_database: str, spoil: str, says: str) -> None:
    """An old release does not write to a schema it does not know."""
    await read_order(flux_empty_database, "one")
    await execute(flux_empty_database, spoil)
    await assert_refused(flux_empty_database, SchemaError, says)


@pytest.mark.asyncio
async def test_a_database_of_an_older_release_is_upgraded(flux_empty_database: str) -> None:
    """Recorded versions are not applied again; the missing ones are."""
    await make_original(flux_empty_database)
    first = history("postgres")[0]
    async with connect(flux_empty_database) as connection:
        await connection.execute(schema.CREATE_VERSION_TABLE)
        await connection.execute(schema.record(first))
    assert await read_order(flux_empty_database, "one") == ["m3", "m4", "m1", "m6"]
    assert await fetch_rows(flux_empty_database, APPLIED) == VERSIONS


@pytest.mark.asyncio
async def test_where_the_schema_is_current_no_ddl_runs(flux_empty_database: str) -> None:
    """An open transaction on the tables does not block opening, reading, or writing to other sessions."""
    await make_original(flux_empty_database)
    await read_order(flux_empty_database, "one")
    async with connect(flux_empty_database) as other, other.transaction():
        await other.execute("LOCK TABLE sessions, messages, flux_memory_schema IN ROW EXCLUSIVE MODE")
        await other.execute("SELECT FROM sessions WHERE id = 'two' FOR UPDATE")
        async with PostgresConversationMemory(flux_empty_database, timeout=10) as memory:
            await memory.add_message("one", "user", "not held up")


@pytest.mark.asyncio
async def test_where_the_schema_is_current_no_right_to_make_tables_is_needed(flux_empty_database: str) -> None:
    """The application's role needs no right beyond reading and writing rows; another role creates the schema."""
    rights = ("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",)
    async with create_role(flux_empty_database) as dsn, PostgresConversationMemory(dsn) as memory:
        with pytest.raises(SchemaError, match="permission denied for schema public; grant the role what it lacks"):
            await memory.create_session()
    await read_order(flux_empty_database, "one")
    async with create_role(flux_empty_database, grants=rights) as dsn, PostgresConversationMemory(dsn) as memory:
        session = await memory.create_session(metadata={"a": 1})
        await memory.add_message(session, "user", "x")
        await memory.delete_session(session)
        await memory.clear_all()


@pytest.mark.asyncio
async def test_a_schema_without_usage_is_not_reported_as_missing(flux_empty_database: str) -> None:
    """Without USAGE the server reports no schema; the message must not make its reader create a second one."""
    await execute(flux_empty_database, "CREATE SCHEMA chat")
    async with (
        create_role(flux_empty_database) as dsn,
        PostgresConversationMemory(with_parameter(dsn, "search_path=chat")) as memory,
    ):
        with pytest.raises(SchemaError, match="create one, or grant the role USAGE on it"):
            await memory.count_sessions()


@pytest.mark.asyncio
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
@pytest.mark.parametrize("original", [True, False], ids=["adopting", "making"])
async def test_handles_that_race_do_it_once(flux_empty_database: str, original: bool, isolation: str) -> None:
    """One handle adopts, the others wait and find it done, under any default isolation."""
    if original:
        await make_original(flux_empty_database)
    (name,) = (await fetch_rows(flux_empty_database, "SELECT current_database()"))[0]
    await execute(flux_empty_database, f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{isolation}'")
    memories = [PostgresConversationMemory(flux_empty_database, min_size=1, max_size=2) for _ in range(6)]
    histories = await asyncio.gather(*(memory.get_history("one") for memory in memories))
    expected = ["m3", "m4", "m1", "m6"] if original else []
    assert [[message["id"] for message in each] for each in histories] == [expected] * 6
    await asyncio.gather(*(memory.close() for memory in memories))
    assert await fetch_rows(flux_empty_database, APPLIED) == VERSIONS


def test_processes_that_race_to_adopt_do_it_once(flux_empty_database: str) -> None:
    """The same across processes: none fails, and none loses its message."""
    asyncio.run(make_original(flux_empty_database))
    said = race_to_add("PostgresConversationMemory", flux_empty_database)
    stored = asyncio.run(
        fetch_rows(flux_empty_database, "SELECT seq, content FROM messages WHERE session_id = 'one' ORDER BY seq")
    )
    assert [seq for seq, _ in stored] == list(range(1, 9))
    assert {content for _, content in stored[4:]} == said


@pytest.mark.asyncio
async def test_tables_in_another_schema_of_the_search_path(flux_empty_database: str) -> None:
    """The DSN may name a schema; another application's tables in `public` are left alone."""
    await execute(
        flux_empty_database,
        "CREATE SCHEMA chat",
        "CREATE TABLE public.sessions (token text)",
        "CREATE TABLE public.messages (x int)",
    )
    dsn = with_parameter(flux_empty_database, "search_path=chat")
    async with PostgresConversationMemory(dsn) as memory:
        await memory.add_message(await memory.create_session(), "user", "x")
    assert await fetch_rows(flux_empty_database, "SELECT count(*) FROM chat.messages") == [(1,)]
    assert await fetch_rows(flux_empty_database, "SELECT count(*) FROM public.messages") == [(0,)]


@pytest.mark.asyncio
async def test_the_originals_own_ddl_still_runs_afterwards(flux_empty_database: str) -> None:
    """The original application may start once more on an adopted database: its DDL breaks nothing."""
    await make_original(flux_empty_database)
    await read_order(flux_empty_database, "one")
    await execute(flux_empty_database, POSTGRES_TABLES)
    assert await read_order(flux_empty_database, "one") == ["m3", "m4", "m1", "m6"]
