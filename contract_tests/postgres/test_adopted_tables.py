"""Tests the original application's tables in every state: upgraded and usable, or refused with the right statement.

`check` and a migration announce what the first use does.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from later_worlds import CURRENT
from original_worlds import WORLDS, World
from raw_postgres import connect, create_role, execute, make_original, make_original_through
from schema_refusals import find_refusal, follow_advice

from flux_memory import PostgresConversationMemory, SchemaError
from flux_memory.health import check_postgres
from flux_memory.testkit.servers import Server


@pytest.fixture(scope="module")
def database(flux_postgres_server: Server) -> Iterator[str]:
    """One database for all worlds: creating a schema again takes a fraction of the time."""
    dsn = flux_postgres_server.create_database()
    yield dsn
    flux_postgres_server.drop_database(dsn)


async def make_world(dsn: str, done: str, generation: int = 1) -> None:
    """Create the original application's tables anew, and run the world's statements on them."""
    async with connect(dsn) as raw:
        await raw.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await make_original_through(raw, generation=generation)
        await raw.execute(done)


async def use(dsn: str) -> None:
    """Ordinary use: what was there is read, added to, and deleted with its messages; an id is used again."""
    async with connect(dsn) as raw, PostgresConversationMemory(dsn, min_size=0) as memory:
        old = await raw.fetchval("SELECT session_id FROM messages GROUP BY session_id ORDER BY count(*) DESC LIMIT 1")
        kept = await raw.fetch("SELECT id FROM messages WHERE session_id = $1 ORDER BY created_at, ctid", old)
        assert [message["id"] for message in await memory.get_history(old)] == [id_ for (id_,) in kept]
        added = await memory.add_message(old, "tool", "x" * 300, {"a": 1})
        await memory.add_messages(old, [{"role": "user", "content": "1"}, {"role": "user", "content": "2"}])
        assert next(message["id"] for message in await memory.get_history(old, limit=3)) == added
        assert (await memory.get_session(old) or {})["message_count"] == len(kept) + 3
        session = await memory.create_session("t" * 100, {"lang": "ko"}, session_id=f"{old}x"[-36:], user_id="ann")
        assert [row["id"] for row in await memory.get_sessions(user_id="ann", metadata={"lang": "ko"})] == [session]
        await memory.add_message(session, "user", "x", message_id=added)
        assert await memory.get_session(session.upper()) is None
        for id_ in (old, session):
            await memory.delete_session(id_)
            assert await raw.fetchval("SELECT count(*) FROM messages WHERE session_id = $1", id_) == 0
        await memory.create_session(session_id=old)
        assert await memory.get_history(old) == []
        await memory.add_message(old, "user", "again")


@pytest.mark.asyncio
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
async def test_each_world_is_upgraded_or_refused_with_what_helps(database: str, world: World) -> None:
    """The check, a migration and the first use agree; the statements of a refusal, run as they stand, end it."""
    await make_world(database, world.done, world.generation)
    if world.says is None:
        assert await find_refusal(database) is None
    elif not await follow_advice(database, world.says):
        return
    await use(database)


@pytest.mark.asyncio
@pytest.mark.parametrize(("done", "says"), CURRENT.values(), ids=CURRENT)
async def test_a_later_change_is_refused_with_what_helps(database: str, done: str, says: str) -> None:
    """Without the key or the constraint, deletes would leave messages, or adds would fail for good."""
    await make_world(database, "SELECT")
    async with PostgresConversationMemory(database, min_size=0) as memory:
        await memory.count_sessions()
    await execute(database, done)
    assert await follow_advice(database, says)
    await use(database)


@pytest.mark.asyncio
async def test_orphaned_messages_are_kept_aside(database: str) -> None:
    """The upgrade loses none of them, and the next one does not take their table for its own."""
    await make_world(database, WORLDS["orphaned messages"].done)
    report = await check_postgres(database, 10)
    (moving,) = [statement for statement in report.repairs if statement.startswith("CREATE TABLE orphaned_messages")]
    assert moving.isprintable()
    await use(database)
    async with connect(database) as raw:
        assert await raw.fetch("SELECT id, session_id, content FROM orphaned_messages") == [("lost", "gone", "x")]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("grants", "says"),
    [
        ((), "sessions belongs to the role .*, and only its owner may upgrade it"),
        (
            tuple(f"ALTER TABLE {table} OWNER TO {{role}}" for table in ("sessions", "messages")),
            "may not create objects in the schema public, .* run GRANT CREATE ON SCHEMA public TO ",
        ),
    ],
    ids=["owner", "schema"],
)
async def test_a_role_that_may_not_upgrade_is_told_beforehand(
    flux_empty_database: str, grants: tuple[str, ...], says: str
) -> None:
    """The check does not bless for a role what the role cannot do."""
    await make_original(flux_empty_database)
    async with create_role(flux_empty_database, grants=("GRANT ALL ON sessions, messages TO {role}", *grants)) as dsn:
        with pytest.raises(SchemaError, match=says):
            await check_postgres(dsn, 10)
        async with PostgresConversationMemory(dsn, min_size=0) as memory:
            with pytest.raises(SchemaError, match=says):
                await memory.count_sessions()
        await execute(flux_empty_database, "DROP TABLE messages, sessions")
