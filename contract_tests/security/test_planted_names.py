"""Operators and functions that a stranger creates under the names of PostgreSQL's own are never called."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Final

import pytest
from narrowed_worlds import ON_MOVED_COLUMNS, POLICIES
from older_schemas import make_version
from original_application import make_file_with_data
from raw_postgres import connect, execute, fetch_rows, with_parameter
from stranger_roles import Roles, open_memory, refuse

from flux_memory import ConversationMemory, PostgresConversationMemory, SchemaError
from flux_memory.health import check_methods, check_postgres
from flux_memory.schema.postgres import bring_up_to_date
from flux_memory.transfer import Mode, Plan, Status, migrate, migrate_back

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
async def test_functions_of_others_before_pg_catalog_are_refused(roles: Roles, path: Path) -> None:
    """With pg_catalog last, every function of the schemas before it would replace PostgreSQL's own."""
    await plant(roles.stranger)
    late = roles._replace(library=with_parameter(roles.library, "search_path=public,pg_catalog"))
    await refuse(late, path, "search_path names the schema public, in which PUBLIC may create functions, before pg_cat")
    await execute(roles.admin, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    await execute(roles.admin, f"ALTER SCHEMA public OWNER TO {roles.name('library')}")
    await open_memory(late.library)
