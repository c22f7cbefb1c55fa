"""Row-level security: no proof, count or migration takes a part of the rows for the whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from raw_postgres import create_role, execute, with_parameter
from transfer_memories import Trigger, make_random_file, move, read_target

from flux_memory import PostgresConversationMemory
from flux_memory.cli import main
from flux_memory.errors import SchemaError
from flux_memory.health import check_postgres
from flux_memory.transfer import Mode, Plan, Status, migrate, migrate_back

GRANTS = (
    "GRANT SELECT ON flux_memory_schema TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON sessions, session_details, messages, feedback TO {role}",
    "GRANT SELECT, INSERT ON flux_memory_moves, flux_memory_moved_sessions, flux_memory_moved_feedback TO {role}",
)
TABLES = ("sessions", "session_details", "messages", "feedback")
ON = "".join(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;" for table in TABLES)
FORCED = "".join(
    f"ALTER TABLE {table} OWNER TO {{role}}; ALTER TABLE {table} FORCE ROW LEVEL SECURITY;" for table in TABLES
)
EVERY_SESSION = "CREATE POLICY every_session ON sessions USING (TRUE);"
EVERY_DETAIL = "CREATE POLICY every_detail ON session_details USING (TRUE);"
EVERY_ENTRY = "CREATE POLICY every_entry ON feedback USING (TRUE);"
EVERY_MESSAGE = EVERY_DETAIL + EVERY_ENTRY + "CREATE POLICY every_message ON messages USING (TRUE);"
SOME = "CREATE POLICY few ON sessions TO {role} USING (id < 's-8');" + EVERY_MESSAGE

HIDING = {
    "a policy": ON + SOME,
    "no policy": ON,
    "a policy of another role": ON + "CREATE ROLE {role}_other; " + SOME.replace("{role}", "{role}_other"),
    "a restrictive policy beside a wide one": ON
    + EVERY_SESSION
    + "CREATE POLICY not_one ON sessions AS RESTRICTIVE USING (FALSE);",
    "only messages": "ALTER TABLE messages ENABLE ROW LEVEL SECURITY;",
    "only sessions": "ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;",
    "only feedback": "ALTER TABLE feedback ENABLE ROW LEVEL SECURITY;",
    "only details": "ALTER TABLE session_details ENABLE ROW LEVEL SECURITY;",
    "a policy that shows everything": ON + EVERY_SESSION + EVERY_MESSAGE,
    "the owner, by force": ON + FORCED,
    "a role that turns it on": ON + SOME + "ALTER ROLE {role} SET row_security = on",
}
"""What hides rows from `{role}`, or may hide them."""


@asynccontextmanager
async def restricted(dsn: str, statements: str) -> AsyncIterator[str]:
    """The DSN of a role to which policies apply; what it owns goes back before it is dropped."""
    async with create_role(dsn, grants=GRANTS) as own:
        name = own.partition("://")[2].partition(":")[0]
        try:
            await execute(dsn, *filter(str.strip, statements.format(role=name).split(";")))
            yield own
        finally:
            await execute(
                dsn,
                *(f"ALTER TABLE {table} OWNER TO CURRENT_USER" for table in TABLES),
                f"DROP OWNED BY {name}",
                *([f"DROP OWNED BY {name}_other", f"DROP ROLE {name}_other"] if "_other" in statements else []),
            )


@pytest.fixture
def target(path: Path, flux_empty_database: str) -> str:
    """A database with the content of the file at `path`."""
    make_random_file(path, sessions=5, messages=20)
    assert move(path, flux_empty_database).status is Status.IDENTICAL
    return flux_empty_database


@pytest.mark.parametrize("world", HIDING)
def test_rows_that_a_policy_may_hide_are_never_missed_in_silence(path: Path, target: str, world: str) -> None:
    """Every direction and mode raises and changes nothing, and never calls the target empty."""
    back = path.with_name("back.db")
    before = read_target(target)
    said = Trigger("none", lambda: None)

    async def work() -> None:
        async with restricted(target, HIDING[world]) as dsn:
            plans = (Plan(sqlite_path=path, postgres_dsn=dsn, mode=mode) for mode in Mode)
            for run in (migrate_back(dsn, back, said), *(migrate(plan, said) for plan in plans)):
                with pytest.raises(SchemaError, match="BYPASSRLS") as caught:
                    await run
                assert "row-level security policy for table" in str(caught.value)
                assert "grant the role" not in str(caught.value)

    asyncio.run(work())
    assert not any("empty" in line or "0 sessions" in line for line in said.said)
    assert not back.exists()
    assert read_target(target) == before


@pytest.mark.parametrize("parameter", ["row_security=on", "options=-c%20row_security%3Don"])
def test_no_parameter_of_the_dsn_turns_it_on_again(path: Path, target: str, parameter: str) -> None:
    """The setting holds for each transaction, over that of the connection."""

    async def work() -> None:
        async with restricted(target, HIDING["a policy"]) as dsn:
            with pytest.raises(SchemaError, match="BYPASSRLS"):
                await migrate_back(with_parameter(dsn, parameter), path.with_name("back.db"))

    asyncio.run(work())


def test_a_role_that_policies_do_not_concern_moves_everything(path: Path, target: str) -> None:
    """With BYPASSRLS all rows are read and written, in batches since the role does not own the tables."""
    make_random_file(path.with_name("more.db"), sessions=3, messages=9, seed=2)

    async def work() -> None:
        async with restricted(target, HIDING["a policy"] + "ALTER ROLE {role} BYPASSRLS") as dsn:
            report = await migrate_back(dsn, path.with_name("back.db"))
            assert report.verification is not None
            assert (report.status, report.verification.sessions) == (Status.IDENTICAL, 5)
            moved = await migrate(Plan(sqlite_path=path.with_name("more.db"), postgres_dsn=dsn))
            assert moved.status is Status.CONTAINED
            found = await check_postgres(dsn, 10)
            assert (found.sessions, found.messages, found.row_security) == (8, 29, [])

    asyncio.run(work())


@pytest.mark.parametrize(
    ("world", "says"),
    [
        (
            "no policy",
            "row-level security is on for sessions, session_details, messages, feedback, and no policy lets the",
        ),
        ("a policy of another role", "row-level security is on for sessions, and no policy lets the role read"),
        ("only details", "row-level security is on for session_details, and no policy lets the role read"),
        ("only messages", "row-level security is on for messages, and no policy lets the role read"),
    ],
)
def test_a_check_does_not_take_hidden_rows_for_an_empty_store(target: str, world: str, says: str) -> None:
    """A role without a policy gets an error, not the counts of an empty store."""

    async def work() -> None:
        async with restricted(target, HIDING[world]) as dsn:
            with pytest.raises(SchemaError, match=says):
                await check_postgres(dsn, 10)

    asyncio.run(work())


def test_a_check_says_that_policies_may_hide_rows(target: str) -> None:
    """An application's role may see a part only: the counts are shown as such."""

    async def work() -> None:
        async with restricted(target, HIDING["a policy"]) as dsn:
            result = await asyncio.to_thread(CliRunner().invoke, main, ["check", "--postgres-dsn", dsn])
            assert result.exit_code == 0
            assert "sessions, 20 messages that the role may see\n" in result.output
            assert (
                "row-level security on sessions, session_details, messages, feedback may hide others\n" in result.output
            )

    asyncio.run(work())


def test_hidden_versions_are_not_taken_for_none(path: Path, target: str) -> None:
    """Some platforms enable row-level security for every table, also for the one of versions."""

    async def work() -> None:
        async with restricted(target, "ALTER TABLE flux_memory_schema ENABLE ROW LEVEL SECURITY") as dsn:
            with pytest.raises(SchemaError, match="flux_memory_schema shows the role no row"):
                await check_postgres(dsn, 10)
            async with PostgresConversationMemory(dsn) as memory:
                with pytest.raises(SchemaError, match="flux_memory_schema shows the role no row"):
                    await memory.count_sessions()
            with pytest.raises(SchemaError, match='policy for table "flux_memory_schema"'):
                await migrate_back(dsn, path.with_name("back.db"))
            await execute(target, "CREATE POLICY readable ON flux_memory_schema FOR SELECT USING (TRUE)")
            assert (await check_postgres(dsn, 10)).sessions == 5

    asyncio.run(work())


def test_a_setting_that_a_policy_lacks_is_named(target: str) -> None:
    """A policy may read the user from the connection; a DSN without it is the cause, not a table that was changed."""
    policy = "CREATE POLICY own ON sessions USING (user_id = current_setting('chat.user_id'));"

    async def work() -> None:
        async with restricted(target, ON + policy + EVERY_MESSAGE) as dsn:
            async with PostgresConversationMemory(dsn) as memory:
                with pytest.raises(SchemaError, match=r'"chat\.user_id"; a policy or a trigger reads this setting'):
                    await memory.get_sessions()
            async with PostgresConversationMemory(with_parameter(dsn, "chat.user_id=ann")) as memory:
                assert await memory.get_sessions() == []

    asyncio.run(work())
