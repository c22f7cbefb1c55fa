"""Tests the documented roles: they work with the printed grants, and each grant is needed."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
import pytest_asyncio
from raw_postgres import connect, fetch_rows, with_address, with_parameter, with_user
from secret_watch import watch_password

from flux_memory import (
    ConflictError,
    ConversationMemory,
    FluxMemoryError,
    Memory,
    PostgresConversationMemory,
    SchemaError,
    SessionNotFoundError,
)
from flux_memory.health import check_methods, check_postgres
from flux_memory.testkit.servers import Server, start_server
from flux_memory.transfer import Plan, Status, migrate, migrate_back

PAGE = Path(__file__).parents[2] / "docs" / "production.md"
DATABASE = "chat"


def printed(heading: str) -> list[list[str]]:
    """The statements of each SQL block of a section of the page."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sql\n(.*?)```", section, flags=re.DOTALL)
    return [[one.strip() for one in block.split(";") if one.strip()] for block in blocks]


CLUSTER, SCHEMA, GRANTS = printed("Roles")
(POLICIES,) = printed("Row-level security")
PASSWORDS = dict(re.findall(r"CREATE ROLE (\w+) LOGIN PASSWORD '([^']+)'", "\n".join(CLUSTER)))
APPLICATION_GRANTS = [
    (right, table)
    for rights, tables, roles in re.findall(
        r"GRANT ([A-Z, ]+) ON ((?:SCHEMA )?[a-z_, ]+) TO ([a-z_, ]+)", "\n".join(GRANTS)
    )
    for right in rights.split(", ")
    for table in tables.removeprefix("SCHEMA ").split(", ")
    if "chat_app" in roles
]


@dataclass(frozen=True)
class Roles:
    """DSNs of the roles that the page creates."""

    admin: str
    owner: str
    application: str
    reader: str


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A separate server for this module, because roles belong to a whole server."""
    with start_server("local") as server:
        watch_password(server.dsn)
        yield server


@pytest_asyncio.fixture(loop_scope="function")
async def roles(server: Server) -> AsyncIterator[Roles]:
    """The page's statements, executed to the end."""
    admin = with_address(server.dsn, database=DATABASE)
    names = ("chat_owner", "chat_app", "chat_reader")
    found = Roles(admin, *(with_user(admin, name, PASSWORDS[name]) for name in names))
    await execute_each(server.dsn, CLUSTER)
    try:
        await execute_each(admin, SCHEMA)
        async with PostgresConversationMemory(found.owner) as memory:
            await check_methods(memory, await check_postgres(found.owner, 10))
        await execute_each(found.owner, GRANTS)
        yield found
    finally:
        await execute_each(
            server.dsn, [f"DROP DATABASE {DATABASE} WITH (FORCE)", *(f"DROP ROLE {name}" for name in names)]
        )


async def execute_each(dsn: str, statements: list[str]) -> None:
    """Execute each statement separately."""
    async with connect(dsn) as connection:
        for statement in statements:
            await connection.execute(statement)


async def call_every_method(memory: Memory) -> None:
    """Call every method, including a batch and a retry."""
    user = secrets.token_hex(4)
    session = await memory.create_session("title", {"a": 1}, user_id=user)
    await memory.add_message(session, "user", "one", message_id="m")
    await memory.add_message(session, "user", "one", message_id="m")
    await memory.add_messages(session, [{"role": "user", "content": "two"}, {"role": "user", "content": "three"}])
    assert [message["content"] for message in await memory.get_history(session)] == ["one", "two", "three"]
    assert session in {row["id"] for row in await memory.get_sessions(user_id=user, metadata={"a": 1})}
    assert await memory.get_session(session)
    await memory.update_session_title(session, "new")
    copy = await memory.fork_session(session)
    assert (await memory.pop_message(copy) or {})["content"] == "three"
    assert await memory.get_message(copy, "m")
    changed = await memory.update_session(
        copy, title="cut", merge_metadata={"b": 2}, truncate_all=True, messages=[{"role": "user", "content": "four"}]
    )
    assert (changed["title"], changed["metadata"], changed["message_count"]) == ("cut", {"a": 1, "b": 2}, 1)
    await memory.add_message(f"new {user}", "user", "first", create=True, user_id=user)
    assert await memory.count_sessions(user_id=user) == 3
    rating = await memory.feedback.add(session, 1, message_id="m")
    assert [entry["feedback_id"] for entry in await memory.feedback.get(session_id=session)] == [rating]
    assert (await memory.feedback.stats())["total"] >= 1
    await memory.feedback.delete(rating)
    await memory.feedback.add(session, -1)
    await memory.delete_session(session)
    await memory.delete_session(copy, expected_revision=changed["revision"])
    assert await memory.delete_sessions(user_id=user) == 1
    await memory.create_session()
    await memory.clear_all()
    assert await memory.count_sessions() == 0


@pytest.mark.asyncio
async def test_a_role_that_owns_only_its_schema_does_everything(roles: Roles) -> None:
    """The owner creates the tables with rights on its own schema only, none in `public`, and every method works."""
    async with PostgresConversationMemory(roles.owner) as memory:
        await call_every_method(memory)
    assert await fetch_rows(
        roles.admin, "SELECT DISTINCT schemaname FROM pg_tables WHERE tableowner = 'chat_owner'"
    ) == [("chat",)]


@pytest.mark.asyncio
async def test_the_owner_moves_a_file_there_and_another_beside_it(roles: Roles, tmp_path: Path) -> None:
    """A migration into a filled target needs one right more than one into an empty target."""
    for number in range(2):
        path = tmp_path / f"{number}.db"
        async with ConversationMemory(path) as memory:
            await memory.add_message(await memory.create_session(), "user", "one")
        assert (await migrate(Plan(sqlite_path=path, postgres_dsn=roles.owner))).exit_code == 0
    async with PostgresConversationMemory(roles.reader) as memory:
        assert await memory.count_sessions() == 2


@pytest.mark.asyncio
async def test_a_role_without_ddl_rights_uses_a_current_schema(roles: Roles) -> None:
    """Every method works for the application's role, which may not create anything."""
    async with PostgresConversationMemory(roles.application) as memory:
        await call_every_method(memory)
    for kind in ("schema", "database"):
        assert await fetch_rows(roles.admin, f"SELECT has_{kind}_privilege('chat_app', 'chat', 'CREATE')") == [(False,)]


@pytest.mark.asyncio
async def test_the_reader_reads_and_gets_an_error_for_writes(roles: Roles) -> None:
    """Reads work with SELECT alone; a write says which right the role lacks, and stores nothing."""
    async with PostgresConversationMemory(roles.owner) as memory:
        session = await memory.create_session()
        await memory.add_message(session, "user", "one")
    async with PostgresConversationMemory(roles.reader) as memory:
        assert len(await memory.get_history(session)) == 1
        assert len(await memory.get_sessions()) == 1
        for write in (memory.create_session(), memory.add_message(session, "user", "two"), memory.clear_all()):
            with pytest.raises(SchemaError, match="grant the role what it lacks"):
                await write
        assert len(await memory.get_history(session)) == 1


@pytest.mark.asyncio
async def test_no_right_granted_to_the_application_is_idle(roles: Roles) -> None:
    """Without any one of the printed rights some call fails with an error of the library: the list is minimal."""
    assert len(APPLICATION_GRANTS) >= 8
    for right, table in APPLICATION_GRANTS:
        kind = "SCHEMA " if right == "USAGE" else ""
        name = "chat" if right == "USAGE" else table
        await execute_each(roles.owner, [f"REVOKE {right} ON {kind}{name} FROM chat_app"])
        async with PostgresConversationMemory(roles.application) as memory:
            with pytest.raises(FluxMemoryError) as caught:
                await call_every_method(memory)
        assert isinstance(caught.value, SchemaError), f"{right} on {table}: {caught.value!r}"
        await execute_each(roles.owner, [f"GRANT {right} ON {kind}{name} TO chat_app"])
    async with PostgresConversationMemory(roles.application) as memory:
        await call_every_method(memory)


def of_user(dsn: str, user: str) -> PostgresConversationMemory:
    """A handle of one user, as the page opens it."""
    return PostgresConversationMemory(with_parameter(dsn, f"chat.user_id={quote(user, safe='')}"), min_size=1)


@pytest.mark.asyncio
async def test_the_printed_policies_keep_users_apart(roles: Roles) -> None:
    """Each call of the library honours the policies: the sessions of another user do not exist."""
    await execute_each(roles.owner, POLICIES)
    async with of_user(roles.application, "ann & co") as ann, of_user(roles.application, "bob") as bob:
        secret = await ann.create_session("of ann", {"a": 1}, user_id="ann & co")
        first = await ann.add_message(secret, "user", "one")
        own = await bob.create_session(user_id="bob")
        await bob.add_messages(own, [{"role": "user", "content": "two"}])
        assert [await each.count_sessions() for each in (ann, bob)] == [1, 1]
        assert await bob.get_session(secret) is None
        assert await bob.get_history(secret) == []
        assert [row["id"] for row in await bob.get_sessions()] == [own]
        assert await bob.get_message(secret, first) is None
        assert await bob.pop_message(secret) is None
        for write in (
            bob.add_message(secret, "user", "x"),
            bob.update_session_title(secret, "x"),
            bob.update_session(secret, merge_metadata={"a": 2}, truncate_all=True),
            bob.fork_session(secret, user_id="bob"),
        ):
            with pytest.raises(SessionNotFoundError):
                await write
        for taking in (
            bob.create_session(session_id=secret, user_id="bob"),
            bob.add_message(secret, "user", "x", create=True, user_id="bob"),
            bob.fork_session(own, new_session_id=secret),
        ):
            with pytest.raises(ConflictError):
                await taking
        with pytest.raises(SchemaError, match="a policy does not let the role store this row"):
            await bob.create_session(user_id="ann & co")
        rating = await ann.feedback.add(secret, -1)
        assert await bob.feedback.get() == []
        assert (await bob.feedback.stats())["total"] == 0
        with pytest.raises(ConflictError):
            await bob.feedback.add(own, 1, feedback_id=rating)
        for session in (secret, "nowhere"):
            with pytest.raises(SchemaError, match="a policy does not let the role store this row"):
                await bob.feedback.add(session, 1)
        await bob.feedback.delete(rating)
        await bob.delete_session(secret)
        assert await bob.delete_sessions(user_id="ann & co") == 0
        await bob.clear_all()
        assert await bob.count_sessions() == 0
        assert len(await ann.get_history(secret)) == 1
        assert [entry["feedback_id"] for entry in await ann.feedback.get()] == [rating]
        kept = await ann.get_session(secret) or {}
        assert (kept["title"], kept["metadata"]) == ("of ann", {"a": 1})
    async with PostgresConversationMemory(roles.reader) as reader:
        assert await reader.count_sessions() == 1


@pytest.mark.asyncio
async def test_under_the_printed_policies_a_user_changes_its_own_sessions(roles: Roles) -> None:
    """Rows that are stored together with their session pass the policies that ask for the session."""
    await execute_each(roles.owner, POLICIES)
    async with of_user(roles.application, "ann") as ann:
        await ann.add_message("made", "user", "one", create=True, user_id="ann")
        await ann.update_session(
            "made", title="t", merge_metadata={"a": 1}, messages=[{"role": "user", "content": "2"}]
        )
        copy = await ann.fork_session("made", title="copy")
        assert (await ann.pop_message(copy) or {})["content"] == "2"
        await ann.update_session_title("made", "u")
        assert {(row["title"], row["message_count"]) for row in await ann.get_sessions(metadata={"a": 1})} == {
            ("u", 2),
            ("copy", 1),
        }


@pytest.mark.asyncio
async def test_the_printed_policies_hold_for_sql_of_the_applications_own(roles: Roles) -> None:
    """The details and messages of a hidden session can be neither read, changed nor added to."""
    await execute_each(roles.owner, POLICIES)
    async with of_user(roles.application, "ann") as ann:
        await ann.add_message(await ann.create_session("t", session_id="hidden", user_id="ann"), "user", "one")
    async with connect(with_parameter(roles.application, "chat.user_id=bob")) as bob:
        for table in ("session_details", "messages"):
            assert await bob.fetchval(f"SELECT count(*) FROM {table}") == 0
        assert await bob.execute("UPDATE session_details SET title = 'x'") == "UPDATE 0"
        assert await bob.execute("DELETE FROM messages") == "DELETE 0"
        for insert in (
            "session_details (session_id) VALUES ('hidden')",
            "session_details (session_id) VALUES ('hidden') ON CONFLICT (session_id) DO UPDATE SET title = ''",
            "messages (session_id, id, seq, role, content, created_at) VALUES ('hidden', 'm', 9, 'user', 'x', now())",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await bob.execute(f"INSERT INTO {insert}")


@pytest.mark.asyncio
async def test_policies_by_role_keep_users_apart(roles: Roles) -> None:
    """The variant that the page names for clients with SQL of their own, and for PgBouncer."""
    await execute_each(
        roles.owner, [one.replace("current_setting('chat.user_id', TRUE)", "current_user") for one in POLICIES]
    )
    async with PostgresConversationMemory(roles.application) as memory:
        session = await memory.create_session(user_id="chat_app")
        with pytest.raises(SchemaError, match="a policy does not let the role store this row"):
            await memory.create_session(user_id="another")
        assert [row["id"] for row in await memory.get_sessions()] == [session]


@pytest.mark.asyncio
async def test_the_owner_moves_both_ways_past_the_printed_policies(roles: Roles, tmp_path: Path) -> None:
    """The policies do not apply to the owner, so a migration sees every row; the application's role is refused."""
    path = tmp_path / "chat.db"
    async with ConversationMemory(path) as memory:
        for user in ("ann", "bob"):
            await memory.add_message(await memory.create_session(user_id=user), "user", "one")
    await execute_each(roles.owner, POLICIES)
    assert (await migrate(Plan(sqlite_path=path, postgres_dsn=roles.owner))).status is Status.IDENTICAL
    report = await migrate_back(roles.owner, tmp_path / "back.db")
    assert report.verification is not None
    assert (report.status, report.verification.sessions) == (Status.IDENTICAL, 2)
    ann = with_parameter(roles.application, "chat.user_id=ann")
    with pytest.raises(SchemaError, match="a policy may hide rows from the role"):
        await migrate_back(ann, tmp_path / "again.db")
    found = await check_postgres(ann, 10)
    assert (found.sessions, found.messages, found.row_security) == (
        1,
        1,
        ["sessions", "session_details", "messages", "feedback"],
    )


@pytest.mark.asyncio
async def test_a_row_that_a_policy_refuses_takes_no_other_along(roles: Roles) -> None:
    """Adds that share a statement with a refused one are stored."""
    await execute_each(
        roles.owner, [*POLICIES, "CREATE POLICY polite ON messages AS RESTRICTIVE USING (content <> 'rude')"]
    )
    async with of_user(roles.application, "ann") as memory:
        session = await memory.create_session(user_id="ann")
        words = ["good", "rude", "kind", "rude", *map(str, range(20))]
        adds = (memory.add_message(session, "user", word) for word in words)
        outcomes = await asyncio.gather(*adds, return_exceptions=True)
        refused = [word for word, outcome in zip(words, outcomes, strict=True) if isinstance(outcome, SchemaError)]
        assert refused == ["rude", "rude"]
        history = await memory.get_history(session)
        assert sorted(row["content"] for row in history) == sorted(set(words) - {"rude"})
