"""A role that may create objects in a schema of `search_path` cannot run code with the rights of the library's role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from narrowed_worlds import ON_MOVED_COLUMNS, POLICIES
from older_schemas import make_version
from original_application import POSTGRES_TABLES, make_file_with_data
from raw_postgres import connect, create_role, execute, fetch_rows, with_parameter

from flux_memory import ConversationMemory, PostgresConversationMemory, SchemaError
from flux_memory.health import check_methods, check_postgres
from flux_memory.schema.postgres import bring_up_to_date
from flux_memory.transfer import Mode, Plan, Status, migrate, migrate_back

LOOT: Final = """
CREATE TABLE loot (name text);
GRANT INSERT ON loot TO PUBLIC;
CREATE FUNCTION steal() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO public.loot VALUES (current_user); RETURN NEW; END $$;
CREATE FUNCTION pick(text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql
AS $$ BEGIN RAISE 'run as %', current_user; END $$;
"""
TRAP: Final = "CREATE TRIGGER steal BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION steal();"
OPEN_TO_ALL: Final = "GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;"
PLANTED: Final = {
    "the library's tables, with a trigger on messages": (True, TRAP.format("messages")),
    "the library's tables, with a trigger on sessions": (True, TRAP.format("sessions")),
    "the library's tables, with a trigger on details": (True, TRAP.format("session_details")),
    "the library's tables": (True, ""),
    "the original's tables, with a trigger": (False, POSTGRES_TABLES + TRAP.format("messages")),
    "the original's tables, with a default": (
        False,
        POSTGRES_TABLES + "ALTER TABLE sessions ADD x boolean, ALTER x SET DEFAULT pick('x');",
    ),
    "the table of versions": (True, "DROP TABLE messages, session_details, sessions;"),
    "the table of messages": (True, "DROP TABLE flux_memory_schema, session_details, sessions CASCADE;"),
    "the table of details": (True, "DROP TABLE flux_memory_schema, messages, sessions CASCADE;"),
}
"""Whether the role opens a memory, and what it does then."""
LENT: Final = {
    "a constraint": "ALTER TABLE messages ADD CHECK (pick(content))",
    "a default": "ALTER TABLE sessions ADD x boolean, ALTER x SET DEFAULT pick('x')",
    "a generated column": "ALTER TABLE messages ADD COLUMN x boolean GENERATED ALWAYS AS (pick(content)) STORED",
    "an index": "CREATE INDEX ON messages (pick(content))",
    "a policy": "CREATE POLICY pick ON messages USING (pick(content)); ALTER TABLE messages ENABLE ROW LEVEL SECURITY",
    "the condition of a trigger": (
        "CREATE TRIGGER own BEFORE INSERT ON messages FOR EACH ROW WHEN (pick(NEW.content)) "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    ),
    "an operator": (
        "CREATE OPERATOR public.!! (RIGHTARG = text, FUNCTION = pick);ALTER TABLE messages ADD CHECK (!! content)"
    ),
    "a default of details": "ALTER TABLE session_details ADD x boolean, ALTER x SET DEFAULT pick('x')",
    "a domain": "CREATE DOMAIN mild AS text CHECK (pick(VALUE)); ALTER TABLE sessions ADD COLUMN x mild",
}
"""What the administrator lets run on the tables of the library's role."""
DEPENDENT: Final = (
    *("view of titles", "index on titles", "check of titles", "column generated from titles", "statistics of titles"),
    *("policy on metadata", "function that reads titles", "rule of another table"),
)
"""What depends on columns that an upgrade moves."""
TYPES: Final = ("varchar", "text", "name", "oid", "regclass", "int4", "int8", "numeric", "bytea", "text[]", "varchar[]")
OPERATORS: Final = ("=", "<>", "<", ">", "||", "/")
FUNCTIONS: Final = (
    *("cardinality", "convert_to", "current_setting", "format", "has_database_privilege", "has_schema_privilege"),
    *("has_table_privilege", "hashtextextended", "pg_has_role", "pg_size_bytes", "quote_ident", "rtrim", "set_config"),
    *("sha256", "starts_with", "to_char", "to_json", "to_regclass", "unnest"),
)
AGGREGATES: Final = ("array_agg", "json_agg", "count", "max", "string_agg", "sum")


class Roles(NamedTuple):
    """DSNs of one database."""

    admin: str
    library: str
    stranger: str

    def name(self, which: str) -> str:
        """The name of a role."""
        return str(urlsplit(getattr(self, which)).username)


@pytest_asyncio.fixture(loop_scope="function")
async def roles(flux_empty_database: str) -> AsyncIterator[Roles]:
    """A database in which every role may create objects in `public`, as before PostgreSQL 15."""
    await execute(flux_empty_database, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    async with create_role(flux_empty_database) as library, create_role(flux_empty_database) as stranger:
        yield Roles(flux_empty_database, library, stranger)
        await execute(flux_empty_database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


async def open_memory(dsn: str) -> None:
    async with PostgresConversationMemory(dsn, min_size=0) as memory:
        await memory.add_message(await memory.create_session(), "user", "x")


async def refuse(roles: Roles, path: Path, says: str) -> None:
    """Expect the same refusal from everything that opens the memory."""
    make_file_with_data(path)
    openings: list[Callable[[], Awaitable[object]]] = [
        lambda: open_memory(roles.library),
        lambda: check_postgres(roles.library, 10),
        *(
            lambda mode=mode: migrate(Plan(sqlite_path=path, postgres_dsn=roles.library, mode=mode))  # type: ignore[misc]
            for mode in Mode
        ),
        lambda: migrate_back(roles.library, path.with_name("back.db")),
    ]
    for opening in openings:
        with pytest.raises(SchemaError, match=says):
            await opening()


@pytest.mark.asyncio
@pytest.mark.parametrize("planted", PLANTED)
async def test_tables_that_a_stranger_made_are_refused(roles: Roles, path: Path, planted: str) -> None:
    """Their triggers and defaults would run with the rights of the role that stores conversations in them."""
    opens, statements = PLANTED[planted]
    if opens:
        await open_memory(roles.stranger)
    await execute(roles.stranger, LOOT + statements + OPEN_TO_ALL)
    says = f"the table \\w+ belongs to the role {roles.name('stranger')}, and would run code .* OWNER TO "
    await refuse(roles, path, says + roles.name("library"))
    assert await fetch_rows(roles.admin, "SELECT * FROM loot") == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "kind", ["TABLE {} (x text)", "VIEW {} AS SELECT 1", "TABLE {} (x text) PARTITION BY LIST (x)"]
)
async def test_a_strangers_record_of_moves_stops_only_migrations(roles: Roles, path: Path, kind: str) -> None:
    """Applications do not use the record, so a role that may create one cannot end their service."""
    await open_memory(roles.library)
    await execute(roles.stranger, f"CREATE {kind.format('flux_memory_moves')}")
    await open_memory(roles.library)
    assert (await check_postgres(roles.library, 10)).sessions == 2
    make_file_with_data(path)
    for mode in Mode:
        with pytest.raises(SchemaError, match="flux_memory_moves"):
            await migrate(Plan(sqlite_path=path, postgres_dsn=roles.library, mode=mode))


@pytest.mark.asyncio
async def test_a_trigger_that_a_stranger_may_create_is_refused(roles: Roles, path: Path) -> None:
    """The right to create triggers is a right to run code as each role that writes."""
    await open_memory(roles.library)
    await execute(roles.library, f"GRANT TRIGGER ON messages TO {roles.name('stranger')}")
    await execute(roles.stranger, LOOT + TRAP.format("messages"))
    says = (
        rf"the function steal\(\), which trigger steal on table messages calls, belongs to .*{roles.name('stranger')}"
    )
    await refuse(roles, path, says)
    await execute(roles.admin, f"ALTER FUNCTION steal() OWNER TO {roles.name('library')}")
    await open_memory(roles.library)


@pytest.mark.asyncio
@pytest.mark.parametrize("lent", LENT)
async def test_a_strangers_function_that_runs_on_the_tables_is_refused(roles: Roles, path: Path, lent: str) -> None:
    """Its owner can replace it at any time."""
    await open_memory(roles.library)
    await execute(roles.stranger, LOOT)
    await execute(roles.library, "DELETE FROM sessions")
    await execute(roles.admin, f"SET check_function_bodies = off; {LENT[lent]}")
    await refuse(roles, path, rf"the function pick\(text\), which .* calls, belongs to .*{roles.name('stranger')}")


@pytest.mark.asyncio
async def test_a_strangers_type_is_refused(roles: Roles, path: Path) -> None:
    """So can the owner of a domain change its constraints."""
    await open_memory(roles.library)
    await execute(roles.stranger, "CREATE DOMAIN mild AS text")
    await execute(roles.admin, "ALTER TABLE sessions ADD COLUMN x mild")
    await refuse(roles, path, f"the type mild of a column of sessions belongs to .*{roles.name('stranger')}")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "makes_trusted",
    [
        "ALTER SCHEMA public OWNER TO {stranger}",
        'ALTER DATABASE "{database}" OWNER TO {stranger}',
        "ALTER ROLE {stranger} SUPERUSER",
        "GRANT {library} TO {stranger}",
        "REASSIGN OWNED BY {stranger} TO {library}",
    ],
)
async def test_tables_of_a_trusted_role_are_used(roles: Roles, makes_trusted: str) -> None:
    """A role that decides what the names refer to, or that can act as ours, gains nothing by a trigger."""
    names = {"stranger": roles.name("stranger"), "library": roles.name("library")}
    await open_memory(roles.stranger)
    await execute(roles.stranger, OPEN_TO_ALL)
    with pytest.raises(SchemaError, match="belongs to the role"):
        await open_memory(roles.library)
    await execute(roles.admin, makes_trusted.format(**names, database=urlsplit(roles.admin).path[1:]))
    await open_memory(roles.library)
    owner = urlsplit(roles.admin).username
    await execute(roles.admin, f'ALTER DATABASE "{urlsplit(roles.admin).path[1:]}" OWNER TO "{owner}"')


@pytest.mark.asyncio
async def test_an_upgrade_does_not_call_a_strangers_operator(roles: Roles, path: Path) -> None:
    """The numbered files compare ids, and cannot be changed."""
    await execute(roles.library, POSTGRES_TABLES)
    await execute(
        roles.stranger,
        "CREATE FUNCTION same(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT TRUE'",
        "CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = same)",
    )
    make_file_with_data(path)
    for opening in (
        open_memory(roles.library),
        check_postgres(roles.library, 10),
        migrate(Plan(sqlite_path=path, postgres_dsn=roles.library, mode=Mode.PREFLIGHT)),
    ):
        with pytest.raises(SchemaError, match=r"the operator =.* belongs to .* drop it"):
            await opening
    await execute(roles.admin, "DROP OPERATOR = (varchar, varchar)")
    await open_memory(roles.library)


async def plant(dsn: str) -> None:
    """Create operators and functions that fit better than those of pg_catalog, wherever its do not fit exactly."""
    body = "LANGUAGE plpgsql AS $$ BEGIN RAISE 'planted: %', '{}'; END $$;"
    statements = []
    for left, right in product(TYPES, TYPES):
        trap = f"CREATE FUNCTION trap({left}, {right}) RETURNS boolean "
        statements.append(trap + body.format(f"operator of {left} and {right}"))
        statements += [
            f"CREATE OPERATOR public.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = trap);"
            for operator in OPERATORS
        ]
    for name, types in product(FUNCTIONS, [*product(TYPES, repeat=1), *product(TYPES[:7], repeat=2)]):
        arguments = ", ".join(types)
        statements.append(f"CREATE FUNCTION public.{name}({arguments}) RETURNS text {body.format(name + arguments)}")
    for name, type_ in product(AGGREGATES, TYPES):
        trap = f"CREATE FUNCTION trap_{name}(text, {type_}) RETURNS text {body.format(name + type_)}"
        statements.append(f"{trap} CREATE AGGREGATE public.{name}({type_}) (SFUNC = trap_{name}, STYPE = text);")
    await execute(dsn, "".join(statements))


async def use_changes(memory: PostgresConversationMemory, session: str) -> None:
    """Use each statement that looks at a revision, at a cursor or at the newest messages."""
    popped = await memory.pop_message(session)
    assert popped is not None
    assert await memory.get_message(session, popped["id"]) is None
    ids = await memory.add_messages(session, [{"role": "user", "content": f"{n}"} for n in range(3)], user_id="u")
    assert len(await memory.get_history(session, after=ids[0])) == 2
    copy = await memory.fork_session(session, through=ids[1])
    updated = await memory.update_session(
        copy,
        title="t",
        merge_metadata={"b": 1},
        remove_metadata=["a"],
        truncate_from=ids[1],
        messages=[{"role": "user", "content": "x"}],
    )
    assert (updated["metadata"], [row["id"] for row in await memory.get_sessions(1)]) == ({"b": 1}, [copy])
    for options in ({}, {"user_id": "u"}, {"metadata": {"a": 1}}, {"user_id": "u", "metadata": {"a": 1}}):
        assert await memory.get_sessions(before=updated, with_metadata=False, **options)  # type: ignore[arg-type]
    await memory.update_session_title(copy, "title")
    await asyncio.gather(
        *(memory.add_message(f"new {n % 2}", "user", "x", create=True, user_id="new") for n in range(20))
    )
    await memory.add_message("new 0", "user", "x", create=True, user_id="new")
    changed = await memory.get_session(copy)
    assert changed is not None
    await memory.delete_session(copy, expected_revision=changed["revision"])
    assert await memory.delete_sessions(user_id="new", inactive_since=datetime.now(UTC) + timedelta(days=1)) == 2


@pytest.mark.asyncio
async def test_no_statement_calls_what_a_stranger_planted(roles: Roles, path: Path, tmp_path: Path) -> None:
    """Every statement of the library and of the driver finds PostgreSQL's own operators and functions."""
    await plant(roles.stranger)
    dsn = roles.library
    async with PostgresConversationMemory(dsn, max_size=3) as memory:
        await check_methods(memory, await check_postgres(dsn, 10))
        session = await memory.create_session("t", {"a": 1}, user_id="u")
        adds = (memory.add_message(session, "user", f'"{number}"\\') for number in range(50))
        ids = await asyncio.gather(*adds)
        await memory.add_messages(session, [{"role": "user", "content": "1"}, {"role": "user", "content": "2"}])
        assert {row["content"] for row in await memory.get_history(session)} >= {f'"{n}"\\' for n in range(50)}
        await memory.get_history(session, 3, before=ids[-1])
        for options in ({}, {"user_id": "u"}, {"metadata": {"a": 1}}, {"user_id": "u", "metadata": {"a": 1}}):
            assert await memory.get_sessions(**options)  # type: ignore[arg-type]
            assert await memory.count_sessions(**options)  # type: ignore[arg-type]
        await use_changes(memory, session)
        await check_postgres(dsn, 10)
        await memory.clear_all()
    make_file_with_data(path)
    async with ConversationMemory(tmp_path / "more.db") as memory:
        await memory.add_message(await memory.create_session(), "user", "x")
    for source, mode in (
        *((path, mode) for mode in (Mode.PREFLIGHT, Mode.MOVE, Mode.MOVE, Mode.VERIFY)),
        (tmp_path / "more.db", Mode.MOVE),
    ):
        report = await migrate(Plan(sqlite_path=source, postgres_dsn=dsn, mode=mode))
        assert report.status in {Status.READY, Status.IDENTICAL, Status.CONTAINED}
    await execute(dsn, "UPDATE messages SET content = 'x' WHERE seq = 1")
    report = await migrate(Plan(sqlite_path=path, postgres_dsn=dsn, mode=Mode.VERIFY))
    assert report.status is Status.DIFFERENT
    looking = Plan(sqlite_path=path, postgres_dsn=dsn, replace=True, mode=Mode.PREFLIGHT)
    assert (await migrate(looking)).status is Status.READY
    replacing = Plan(sqlite_path=path, postgres_dsn=dsn, replace=True)
    assert (await migrate(replacing)).status is Status.IDENTICAL
    assert (await migrate_back(dsn, tmp_path / "back.db")).status is Status.IDENTICAL


@pytest.mark.asyncio
async def test_no_upgrade_of_numbered_tables_calls_what_a_stranger_planted(roles: Roles) -> None:
    """Neither does the inspection that names each kind of dependent, nor the return of policies and triggers."""
    await make_version(roles.library, 5)
    skips = "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    trigger = f"CREATE TRIGGER own BEFORE UPDATE ON messages FOR EACH ROW {skips}"
    await execute(roles.library, POLICIES, trigger, *(ON_MOVED_COLUMNS[kind].done for kind in DEPENDENT))
    await plant(roles.stranger)
    async with connect(roles.library) as connection:
        with pytest.raises(SchemaError, match="Run as their owner: ") as caught:
            await bring_up_to_date(connection)
        advised = str(caught.value).partition("Run as their owner: ")[2].removesuffix("; then retry")
        assert advised.count(";") == len(DEPENDENT) - 1
        await connection.execute(advised)
        await bring_up_to_date(connection)
    assert await fetch_rows(roles.admin, "SELECT count(*) FROM pg_policies") == [(3,)]


@pytest.mark.asyncio
async def test_rows_on_their_way_reach_no_table_of_a_stranger(roles: Roles, path: Path, tmp_path: Path) -> None:
    """With pg_temp last, a table in `public` has the name of a temporary one."""
    await execute(
        roles.stranger,
        LOOT,
        "CREATE TABLE flux_memory_staged_sessions (id varchar(36), created_at timestamp, updated_at timestamp,"
        "message_count bigint, user_id text, title text, metadata jsonb)",
        TRAP.format("flux_memory_staged_sessions"),
        OPEN_TO_ALL,
    )
    dsn = with_parameter(roles.library, "search_path=public,pg_temp")
    make_file_with_data(path)
    async with ConversationMemory(tmp_path / "more.db") as memory:
        await memory.add_message(await memory.create_session(), "user", "x")
    await migrate(Plan(sqlite_path=path, postgres_dsn=dsn))
    report = await migrate(Plan(sqlite_path=tmp_path / "more.db", postgres_dsn=dsn))
    assert report.status is Status.CONTAINED
    assert await fetch_rows(roles.admin, "SELECT FROM loot") == []


@pytest.mark.asyncio
async def test_functions_of_others_before_pg_catalog_are_refused(roles: Roles, path: Path) -> None:
    """With pg_catalog last, every function of the schemas before it would replace PostgreSQL's own."""
    await plant(roles.stranger)
    late = roles._replace(library=with_parameter(roles.library, "search_path=public,pg_catalog"))
    await refuse(late, path, "search_path names the schema public, in which PUBLIC may create functions, before pg_cat")
    await execute(roles.admin, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    await execute(roles.admin, f"ALTER SCHEMA public OWNER TO {roles.name('library')}")
    await open_memory(late.library)


@pytest.mark.asyncio
async def test_the_check_warns_where_others_may_create(roles: Roles) -> None:
    """A role that may create objects there may take names that the library has not used yet."""
    stranger = roles.name("stranger")
    (warning,) = (await check_postgres(roles.library, 10)).warnings
    assert warning.startswith("PUBLIC may create objects in the schema public, which search_path names; run REVOKE")
    await execute(roles.admin, warning.rpartition("; run ")[2], f"GRANT CREATE ON SCHEMA public TO {stranger}")
    await execute(roles.admin, f"GRANT CREATE ON SCHEMA public TO {roles.name('library')}")
    (warning,) = (await check_postgres(roles.library, 10)).warnings
    assert warning.startswith(f"{stranger} may create objects in the schema public")
    await execute(roles.admin, warning.rpartition("; run ")[2])
    assert (await check_postgres(roles.library, 10)).warnings == []


@pytest.mark.asyncio
async def test_advised_statements_quote_the_schema(roles: Roles) -> None:
    """A name that needs quotes does not change what a pasted statement does."""
    await execute(roles.admin, 'CREATE SCHEMA "Chat; Data"', 'GRANT ALL ON SCHEMA "Chat; Data" TO PUBLIC')
    dsn = with_parameter(roles.library, "search_path=%22Chat%3B%20Data%22")
    (warning,) = (await check_postgres(dsn, 10)).warnings
    await execute(roles.admin, warning.rpartition("; run ")[2])
    with pytest.raises(SchemaError):
        await check_postgres(dsn, 10)
