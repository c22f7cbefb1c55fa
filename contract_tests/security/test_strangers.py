"""A role that may create objects in a schema of `search_path` cannot run code with the rights of the library's role."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from original_application import POSTGRES_TABLES, make_file_with_data
from raw_postgres import execute, fetch_rows, with_parameter
from stranger_roles import Roles, open_memory, refuse

from flux_memory import ConversationMemory, SchemaError
from flux_memory.health import check_postgres
from flux_memory.transfer import Mode, Plan, Status, migrate

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
