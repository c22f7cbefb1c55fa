"""Tests the upgrade that moves titles and metadata out of `sessions` and widens ids: complete, or refused before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import pytest
from narrowed_worlds import NARROWED_WORLDS, POLICIES
from older_schemas import make_version, make_version_through
from original_worlds import FUNCTION, World
from raw_postgres import connect, create_role, dump_database, execute, fetch_rows, with_parameter
from schema_refusals import find_refusal, follow_advice
from waiting import wait_until

from flux_memory.errors import SchemaError
from flux_memory.health import check_postgres
from flux_memory.schema import history
from flux_memory.schema.postgres import bring_up_to_date
from flux_memory.testkit.servers import Server

EMPTY: Final = """
DROP SCHEMA IF EXISTS other CASCADE;
DROP FOREIGN DATA WRAPPER IF EXISTS nothing CASCADE;
DROP SCHEMA public CASCADE;
CREATE SCHEMA public;
"""
WIDE: Final = "SELECT id, user_id, title, metadata, created_at, updated_at, message_count FROM sessions ORDER BY id"
NARROW: Final = """
SELECT id, user_id, title, metadata, created_at, updated_at, message_count
FROM sessions JOIN session_details ON session_id = id
ORDER BY id
"""
MESSAGES: Final = "SELECT * FROM messages ORDER BY session_id, seq"
HOOKS: Final = """
SELECT tgrelid::regclass::text, tgname::text, tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2
"""
PROTECTED: Final = "SELECT relname::text FROM pg_class WHERE relrowsecurity ORDER BY 1"
POLICIES_OF: Final = "SELECT * FROM pg_policies ORDER BY tablename, policyname"
OWNER: Final = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'session_details'"
WAITING: Final = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture(scope="module")
def database(flux_postgres_server: Server) -> Iterator[str]:
    """One database for all worlds: creating a schema again takes a fraction of the time."""
    dsn = flux_postgres_server.create_database()
    yield dsn
    flux_postgres_server.drop_database(dsn)


async def upgrade(dsn: str) -> None:
    """Upgrade the tables, and open them again."""
    for _ in range(2):
        async with connect(dsn) as connection:
            await bring_up_to_date(connection)


@pytest.mark.asyncio
@pytest.mark.parametrize("world", NARROWED_WORLDS.values(), ids=NARROWED_WORLDS)
async def test_each_world_is_narrowed_or_refused_with_what_helps(database: str, world: World) -> None:
    """No object of an application vanishes with a column, and each refusal leaves the tables as they were."""
    async with connect(database) as raw:
        await raw.execute(EMPTY)
        await make_version_through(raw, 5)
        await raw.execute(world.done)
        rows, messages = await raw.fetch(WIDE), await raw.fetch(MESSAGES)
    if world.says is None:
        assert await find_refusal(database) is None
    elif not await follow_advice(database, world.says):
        return
    async with connect(database) as raw:
        assert await raw.fetch(NARROW) == rows
        assert [tuple(row)[:7] for row in await raw.fetch(MESSAGES)] == [tuple(row)[:7] for row in messages]


@pytest.mark.asyncio
@pytest.mark.parametrize("version", range(1, 6))
async def test_every_version_becomes_the_same(flux_empty_database: str, version: int) -> None:
    """Titles, metadata and times are kept, each session gets a revision of its own, and ids of 255 characters fit."""
    await make_version(flux_empty_database, version)
    if version > 1:
        await execute(flux_empty_database, "UPDATE sessions SET user_id = 'ann' WHERE id = 'one'")
    await upgrade(flux_empty_database)
    owner = "ann" if version > 1 else ""
    rows = await fetch_rows(flux_empty_database, NARROW)
    assert [row[:4] for row in rows] == [
        ("one", owner, "title of one", '{"lang": "ko"}'),
        ("two", "", "title of two", '{"lang": "ko"}'),
    ]
    assert [row[6] for row in rows] == [4, 2]
    assert await fetch_rows(flux_empty_database, "SELECT count(DISTINCT revision) FROM sessions") == [(2,)]
    id_ = "x" * 255
    await execute(
        flux_empty_database,
        f"INSERT INTO sessions (id, created_at, updated_at) VALUES ('{id_}', now(), now())",
        f"INSERT INTO session_details VALUES ('{id_}')",
        "INSERT INTO messages (session_id, id, seq, role, content, created_at) "
        f"VALUES ('{id_}', '{id_}', 1, 'user', '', now())",
        f"DELETE FROM sessions WHERE id = '{id_}'",
    )
    for table in ("session_details", "messages"):
        assert await fetch_rows(flux_empty_database, f"SELECT FROM {table} WHERE session_id = '{id_}'") == []
    assert await fetch_rows(flux_empty_database, "SELECT max(version) FROM flux_memory_schema") == [
        (history("postgres")[-1].version,)
    ]


@pytest.mark.asyncio
@pytest.mark.parametrize("step", ["CREATE TABLE", "ALTER TABLE", "CREATE INDEX"])
async def test_an_upgrade_that_fails_half_way_leaves_the_tables_as_they_were(
    flux_empty_database: str, step: str
) -> None:
    """Each step is undone with all others, policies and triggers included."""
    await make_version(flux_empty_database, 5)
    await execute(
        flux_empty_database,
        POLICIES,
        "CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not on my watch'; END $$",
        f"CREATE EVENT TRIGGER guard ON ddl_command_end WHEN TAG IN ('{step}') EXECUTE FUNCTION guard()",
    )
    before = [await fetch_rows(flux_empty_database, query) for query in (POLICIES_OF, PROTECTED, HOOKS)]
    rows = await dump_database(flux_empty_database)
    with pytest.raises(Exception, match="not on my watch"):
        await upgrade(flux_empty_database)
    assert await dump_database(flux_empty_database) == rows
    assert [await fetch_rows(flux_empty_database, query) for query in (POLICIES_OF, PROTECTED, HOOKS)] == before
    await execute(flux_empty_database, "DROP EVENT TRIGGER guard")
    await upgrade(flux_empty_database)


@pytest.mark.asyncio
@pytest.mark.parametrize("version", [2, 5])
async def test_policies_and_triggers_outlive_the_upgrade(flux_empty_database: str, version: int) -> None:
    """A policy on ids is as it was, a trigger is in the state that it had, and neither took part in the upgrade."""
    await make_version(flux_empty_database, version)
    hook = "CREATE TRIGGER {} BEFORE UPDATE OR INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION hook();"
    await execute(
        flux_empty_database,
        POLICIES
        + FUNCTION.format("RAISE 'no changes';")
        + "".join(map(hook.format, ("always", "usual", "off")))
        + "ALTER TABLE sessions ENABLE ALWAYS TRIGGER always, DISABLE TRIGGER off",
    )
    before = [await fetch_rows(flux_empty_database, query) for query in (POLICIES_OF, HOOKS)]
    await upgrade(flux_empty_database)
    assert [await fetch_rows(flux_empty_database, query) for query in (POLICIES_OF, HOOKS)] == before
    assert {state for _, _, state in before[1]} == {b"A", b"O", b"D"}


@pytest.mark.asyncio
@pytest.mark.parametrize("protected", [True, False])
async def test_what_leaves_a_protected_table_stays_protected(flux_empty_database: str, protected: bool) -> None:
    """A role that is granted the new table, by default too, sees no title of a session that a policy hides from it."""
    await make_version(flux_empty_database, 5)
    async with create_role(flux_empty_database, grants=("GRANT SELECT ON sessions TO {role}",)) as dsn:
        role = urlsplit(dsn).username
        await execute(
            flux_empty_database,
            f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role}",
            *(["ALTER TABLE sessions ENABLE ROW LEVEL SECURITY"] if protected else []),
        )
        await upgrade(flux_empty_database)
        seen = 0 if protected else 2
        for table in ("sessions", "session_details"):
            assert await fetch_rows(dsn, f"SELECT count(*) FROM {table}") == [(seen,)]


@pytest.mark.asyncio
async def test_the_new_table_belongs_to_the_owner_of_the_others(flux_empty_database: str) -> None:
    """A superuser may run the upgrade; the owner keeps all tables."""
    await make_version(flux_empty_database, 5)
    owned = ("SCHEMA public", "TABLE sessions", "TABLE messages", "TABLE flux_memory_schema")
    async with create_role(
        flux_empty_database, grants=tuple(f"ALTER {each} OWNER TO {{role}}" for each in owned)
    ) as dsn:
        await upgrade(flux_empty_database)
        assert await fetch_rows(dsn, OWNER) == [(urlsplit(dsn).username,)]
        await upgrade(dsn)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["session_details", "session_details_pkey", "session_details_by_metadata"])
async def test_a_name_that_is_taken_in_an_empty_database_is_refused(flux_empty_database: str, name: str) -> None:
    """The table of another application is not taken for the memory's, nor are its tables half created."""
    await execute(flux_empty_database, f"CREATE TABLE {name} (title text UNIQUE)")
    assert await follow_advice(
        flux_empty_database, f"{name} has the name of a table or an index that the upgrade creat"
    )
    assert await fetch_rows(flux_empty_database, f"SELECT FROM {name}_before") == []


@pytest.mark.asyncio
async def test_tables_outside_the_first_schema_are_not_split_over_two(flux_empty_database: str) -> None:
    """The upgrade would create the new table in the first schema of search_path."""
    await make_version(flux_empty_database, 5)
    await execute(flux_empty_database, "CREATE SCHEMA other")
    dsn = with_parameter(flux_empty_database, "search_path=other,public")
    with pytest.raises(
        SchemaError, match=r"in the schema public, .* another in other; name public first in search_path"
    ):
        await check_postgres(dsn, 10)
    with pytest.raises(SchemaError, match="name public first"):
        await upgrade(dsn)
    await upgrade(with_parameter(flux_empty_database, "search_path=public,other"))
    await upgrade(dsn)


@pytest.mark.asyncio
async def test_the_upgrade_waits_for_writers_and_loses_none_of_their_rows(flux_empty_database: str) -> None:
    """A process of the older release may be in the middle of a write."""
    await make_version(flux_empty_database, 5)
    async with connect(flux_empty_database) as writer, connect(flux_empty_database) as watch:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute("UPDATE sessions SET title = 'new', message_count = 3 WHERE id = 'two'")
        await writer.execute(
            "INSERT INTO messages (session_id, id, seq, role, content, created_at) "
            "VALUES ('two', 'm', 3, 'u', '', now())"
        )
        upgrading = asyncio.create_task(upgrade(flux_empty_database))

        async def is_waiting() -> bool:
            return bool(await watch.fetchval(WAITING))

        await wait_until(is_waiting)
        await transaction.commit()
        await upgrading
    assert [row[2::4] for row in await fetch_rows(flux_empty_database, NARROW)] == [("title of one", 4), ("new", 3)]
    assert await fetch_rows(flux_empty_database, "SELECT count(*) FROM messages") == [(7,)]


@pytest.mark.asyncio
async def test_publications_of_moved_columns_are_refused(flux_empty_database: str) -> None:
    """A list of columns or a condition prevents the change; a publication of whole tables does not."""
    await make_version(flux_empty_database, 5)
    ((version,),) = await fetch_rows(flux_empty_database, "SELECT current_setting('server_version_num')::int")
    if version < 150_000:
        pytest.skip("publications have lists of columns and conditions since PostgreSQL 15")
    await execute(
        flux_empty_database,
        "CREATE PUBLICATION whole FOR TABLE sessions, messages",
        "CREATE PUBLICATION listed FOR TABLE sessions (id, title)",
        "CREATE PUBLICATION chosen FOR TABLE messages WHERE (id <> 'x')",
    )
    says = "ALTER PUBLICATION chosen DROP TABLE messages; ALTER PUBLICATION listed DROP TABLE sessions; then retry"
    assert await follow_advice(flux_empty_database, says)
    assert await fetch_rows(
        flux_empty_database, "SELECT tablename::text FROM pg_publication_tables WHERE pubname = 'whole' ORDER BY 1"
    ) == [("messages",), ("sessions",)]
