"""Tables of the original application in every state: upgraded and then in ordinary use, or refused with the statement
that helps; and `check` and a migration say what the first use does.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterator
from typing import Final, NamedTuple

import pytest
from raw_postgres import connected, contents, execute, make_original

from flux_memory import PostgresConversationMemory, SchemaError
from flux_memory.health import check_postgres
from flux_memory.testkit.servers import Server
from flux_memory.transfer.target.server import inspect_target, open_connection

NO_REFERENCE: Final = "ALTER TABLE messages DROP CONSTRAINT messages_session_id_fkey"
NO_KEY: Final = "ALTER TABLE messages DROP CONSTRAINT messages_pkey"
ORPHAN: Final = "INSERT INTO messages VALUES ('lost', 'gone', 'user', 'x', '{}', '2026-02-05')"
REFER: Final = "ALTER TABLE messages ADD FOREIGN KEY (session_id) REFERENCES sessions (id)"
# Without ICU, as in the embedded server, there are only collations that tell all ids apart.
FOLDED: Final = """
DO $$
BEGIN
    CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
EXCEPTION WHEN feature_not_supported THEN
    CREATE COLLATION folded FROM "C";
END
$$
"""
NOTHING: Final = "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
GUARD: Final = (
    "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'messages are never changed'; END $$"
)


class World(NamedTuple):
    """What was done to the original application's tables."""

    name: str
    done: tuple[str, ...]
    says: str | None = None
    """The refusal; without one the tables are upgraded."""
    generation: int = 1


WORLDS: Final = (
    World("as it was", ()),
    World("as it was, second generation", (), generation=2),
    # Keys.
    World("key with another name", ("ALTER TABLE messages RENAME CONSTRAINT messages_pkey TO idx_16386_autoindex",)),
    World("no key", (NO_KEY,)),
    World("no key, and NULL is allowed", (NO_KEY, "ALTER TABLE messages ALTER COLUMN id DROP NOT NULL")),
    World("unique index in place of the key", (NO_KEY, "CREATE UNIQUE INDEX by_id ON messages (id)")),
    World("unique constraint beside the key", ("ALTER TABLE messages ADD UNIQUE (id)",)),
    World("deferrable key", (NO_KEY, "ALTER TABLE messages ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED")),
    World("key of two columns", (NO_KEY, "ALTER TABLE messages ADD PRIMARY KEY (session_id, id)")),
    World("duplicated message ids", (NO_KEY, "UPDATE messages SET id = 'm1' WHERE id = 'm2'"), "messages.id has a value that occurs twice; make each unique, then retry"),
    World("NULL as a message's id", (NO_KEY, "ALTER TABLE messages ALTER COLUMN id DROP NOT NULL", "UPDATE messages SET id = NULL WHERE id = 'm2'"), "messages.id has a NULL; give each row a value, then retry"),
    World("no key of sessions", ("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey CASCADE",)),
    World("key of sessions with another name", ("ALTER TABLE sessions RENAME CONSTRAINT sessions_pkey TO another",)),
    World("unique index in place of the key of sessions", ("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey CASCADE", "CREATE UNIQUE INDEX ON sessions (id)")),
    World("deferrable key of sessions", ("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey CASCADE", "ALTER TABLE sessions ADD PRIMARY KEY (id) DEFERRABLE")),
    World("key of sessions of two columns", ("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey CASCADE", "ALTER TABLE sessions ADD PRIMARY KEY (id, created_at)")),
    World("duplicated sessions", ("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey CASCADE", "INSERT INTO sessions SELECT * FROM sessions WHERE id = 'one'"), "sessions.id has a value that occurs twice"),
    World("unique titles", ("ALTER TABLE sessions ADD CONSTRAINT one_title UNIQUE (title)",), "ALTER TABLE sessions DROP CONSTRAINT one_title; then retry"),
    World("unique expression", ("CREATE UNIQUE INDEX one_moment ON messages (session_id, date_trunc('us', created_at), id)", "CREATE UNIQUE INDEX folded ON messages (lower(id))"), "DROP INDEX folded; then retry"),
    World("exclusion", ("ALTER TABLE messages ADD CONSTRAINT apart EXCLUDE USING btree (content WITH =)",), "ALTER TABLE messages DROP CONSTRAINT apart; then retry"),
    World("unique column of the user's", ("ALTER TABLE sessions ADD COLUMN slug text UNIQUE",)),
    # Foreign keys.
    World("no foreign key", (NO_REFERENCE,)),
    World("foreign key without CASCADE", (NO_REFERENCE, REFER)),
    World("foreign key with SET NULL beside another", (NO_REFERENCE, f"{REFER} ON DELETE CASCADE", f"{REFER} ON DELETE RESTRICT")),
    World("foreign key not validated", (NO_REFERENCE, ORPHAN, f"{REFER} ON DELETE CASCADE NOT VALID")),
    World("deferrable foreign key", (NO_REFERENCE, f"{REFER} ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED")),
    World("foreign key disabled", ("ALTER TABLE messages DISABLE TRIGGER ALL", ORPHAN)),
    World("cascade disabled", ("ALTER TABLE sessions DISABLE TRIGGER ALL",)),
    World("orphaned messages", (NO_REFERENCE, ORPHAN)),
    World("orphaned messages, and a table of that name", (NO_REFERENCE, ORPHAN, "CREATE TABLE orphaned_messages (x int)"), "ALTER TABLE orphaned_messages RENAME TO orphaned_messages_before; then retry"),
    World("a table of that name without orphans", (NO_REFERENCE, "CREATE TABLE orphaned_messages (x int)")),
    World("a table that refers to messages", ("CREATE TABLE feedback (message_id varchar(36) REFERENCES messages (id))",), "feedback refers to messages, .* ALTER TABLE feedback DROP CONSTRAINT feedback_message_id_fkey; then retry"),
    World("a table that refers to sessions", ("CREATE TABLE feedback (session_id varchar(36) REFERENCES sessions (id))",)),
    # Types.
    World("ids of type text", ("ALTER TABLE sessions ALTER COLUMN id TYPE text", "ALTER TABLE messages ALTER COLUMN id TYPE text, ALTER COLUMN session_id TYPE text")),
    World("long ids of type text", ("ALTER TABLE messages ALTER COLUMN id TYPE text", "UPDATE messages SET id = repeat('x', 37) WHERE id = 'm1'"), "messages.id has values longer than 36 characters; shorten them, then retry"),
    World("ids of type char", (NO_REFERENCE, "ALTER TABLE sessions ALTER COLUMN id TYPE char(36)", "ALTER TABLE messages ALTER COLUMN id TYPE char(36), ALTER COLUMN session_id TYPE char(36)", f"{REFER} ON DELETE CASCADE")),
    World("short ids", ("ALTER TABLE messages ALTER COLUMN id TYPE varchar(10)",)),
    World("times with a zone", ("ALTER TABLE sessions ALTER COLUMN created_at TYPE timestamptz USING created_at AT TIME ZONE 'UTC', ALTER COLUMN updated_at TYPE timestamptz USING updated_at AT TIME ZONE 'UTC'", "ALTER TABLE messages ALTER COLUMN created_at TYPE timestamptz USING created_at AT TIME ZONE 'UTC'")),
    World("times without microseconds", ("ALTER TABLE sessions ALTER COLUMN updated_at TYPE timestamp(3)",)),
    World("times as text", ("ALTER TABLE sessions ALTER COLUMN created_at TYPE text, ALTER COLUMN updated_at TYPE text",), "sessions.created_at is of type text; .*SET timezone = 'UTC'; ALTER TABLE sessions ALTER COLUMN created_at DROP DEFAULT, ALTER COLUMN created_at TYPE timestamp USING created_at::timestamptz AT TIME ZONE 'UTC'"),
    World("times as numbers", ("ALTER TABLE messages ALTER COLUMN created_at TYPE float8 USING extract(epoch FROM created_at AT TIME ZONE 'UTC')",), r"TYPE timestamp USING to_timestamp\(created_at\)"),
    World("metadata as text", ("ALTER TABLE messages ALTER COLUMN metadata DROP DEFAULT, ALTER COLUMN metadata TYPE text, ALTER COLUMN metadata SET DEFAULT '{}'",), "TYPE jsonb USING metadata::jsonb; then retry"),
    World("metadata as json", ("ALTER TABLE sessions ALTER COLUMN metadata DROP DEFAULT, ALTER COLUMN metadata TYPE json",), "sessions.metadata is of type json. Run"),
    World("short titles and roles", ("ALTER TABLE sessions ALTER COLUMN title TYPE varchar(80)", "ALTER TABLE messages ALTER COLUMN role TYPE varchar(10), ALTER COLUMN content TYPE char(200)")),
    World("roles of an enum", ("CREATE TYPE speaker AS ENUM ('user', 'assistant')", "ALTER TABLE messages ALTER COLUMN role TYPE speaker USING role::speaker, ALTER COLUMN role SET DEFAULT 'user'")),
    World("domains", ("CREATE DOMAIN name AS text CHECK (length(VALUE) < 60)", "CREATE DOMAIN moment AS timestamp NOT NULL", "ALTER TABLE messages ALTER COLUMN content TYPE public.name, ALTER COLUMN created_at TYPE moment", "ALTER TABLE sessions ALTER COLUMN id TYPE public.name")),
    World("collation of an id that ignores case", (FOLDED, 'ALTER TABLE sessions ALTER COLUMN id TYPE varchar(36) COLLATE folded'), ),
    World("ids of two collations", ('ALTER TABLE sessions ALTER COLUMN id TYPE varchar(36) COLLATE "C"',)),
    World("ids of one other collation", ('ALTER TABLE sessions ALTER COLUMN id TYPE varchar(36) COLLATE "C"', 'ALTER TABLE messages ALTER COLUMN id TYPE varchar(36) COLLATE "C", ALTER COLUMN session_id TYPE varchar(36) COLLATE "C"')),
    World("users of type integer", ("ALTER TABLE sessions ALTER COLUMN user_id DROP DEFAULT, ALTER COLUMN user_id TYPE int USING 7",), generation=2),
    # Columns.
    World("column of the user's", ("ALTER TABLE sessions ADD COLUMN starred boolean NOT NULL DEFAULT FALSE, ADD COLUMN number int GENERATED ALWAYS AS IDENTITY, ADD COLUMN note text",)),
    World("required column of the user's", ("ALTER TABLE sessions ADD COLUMN tenant text", "UPDATE sessions SET tenant = 'x'", "ALTER TABLE sessions ALTER COLUMN tenant SET NOT NULL"), "ALTER TABLE sessions ALTER COLUMN tenant DROP NOT NULL; then retry"),
    World("column with the name of a new one", ("ALTER TABLE sessions ADD COLUMN message_count int",), "ALTER TABLE sessions RENAME COLUMN message_count TO message_count_before; then retry"),
    World("generated title", ("ALTER TABLE sessions DROP COLUMN title", "ALTER TABLE sessions ADD COLUMN title text GENERATED ALWAYS AS ('title of ' || id) STORED"), "ALTER TABLE sessions ALTER COLUMN title DROP EXPRESSION; then retry"),
    World("NULL is allowed", ("ALTER TABLE messages ALTER COLUMN session_id DROP NOT NULL, ALTER COLUMN role DROP NOT NULL, ALTER COLUMN created_at DROP NOT NULL",)),
    World("NULL as a time", ("ALTER TABLE messages ALTER COLUMN created_at DROP NOT NULL", "UPDATE messages SET created_at = NULL WHERE id = 'm2'"), "messages.created_at has a NULL"),
    # What an application made around them.
    World("index with the name of a new one", ("CREATE INDEX sessions_by_metadata ON sessions (title)",), "ALTER TABLE sessions_by_metadata RENAME TO sessions_by_metadata_before; then retry"),
    World("table with the name of a new index", ("CREATE TABLE messages_session_id_id_key (x int)",), "ALTER TABLE messages_session_id_id_key RENAME TO"),
    World("index of another table with the name of an old one", ("DROP INDEX idx_messages_session", "CREATE TABLE other (x int)", "CREATE INDEX idx_messages_session ON other (x)"), "ALTER TABLE idx_messages_session RENAME TO"),
    World("no indexes", ("DROP INDEX idx_messages_session",)),
    World("view that groups by the key", ("CREATE VIEW seen AS SELECT id, content FROM messages GROUP BY id",), "DROP VIEW seen; then retry"),
    World("view of a column whose type changes", ("ALTER TABLE messages ALTER COLUMN role TYPE varchar(10)", "CREATE MATERIALIZED VIEW seen AS SELECT role FROM messages"), "DROP MATERIALIZED VIEW seen; then retry"),
    World("view", ("CREATE VIEW seen AS SELECT id, content FROM messages",)),
    World("rule", ("CREATE RULE keep AS ON DELETE TO sessions DO INSTEAD NOTHING",), "DROP RULE keep ON sessions; then retry"),
    World("trigger that prevents updates", (GUARD, "CREATE TRIGGER guard BEFORE UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION guard()")),
    World("trigger that drops updates", (NOTHING, "CREATE TRIGGER nothing BEFORE UPDATE OR DELETE ON messages FOR EACH STATEMENT EXECUTE FUNCTION nothing()", "ALTER TABLE messages ENABLE ALWAYS TRIGGER nothing")),
    World("child table", ("CREATE TABLE more () INHERITS (messages)",), "ALTER TABLE more NO INHERIT messages; then retry"),
    World("parent table", ("CREATE TABLE parent (id varchar(36) NOT NULL)", "ALTER TABLE sessions INHERIT parent"), "ALTER TABLE sessions NO INHERIT parent; then retry"),
    World("replica identity", ("ALTER TABLE messages REPLICA IDENTITY USING INDEX messages_pkey", "CREATE PUBLICATION all_of_it FOR TABLE messages, sessions")),
    World("forced policies", ("ALTER TABLE messages ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",)),
)  # fmt: skip


@pytest.fixture(scope="module")
def database(flux_postgres_server: Server) -> Iterator[str]:
    """A database for all worlds: a schema is made anew in a fraction of the time."""
    dsn = flux_postgres_server.create_database()
    yield dsn
    flux_postgres_server.drop_database(dsn)


async def refusal(dsn: str) -> str | None:
    """What the first use of a database says, and a check and a migration before it."""
    said: list[str | None] = []

    async def say(action: Awaitable[object]) -> None:
        try:
            await action
            said.append(None)
        except SchemaError as error:
            said.append(str(error))

    async def inspect() -> None:
        async with open_connection(dsn) as connection:
            await inspect_target(connection)

    before = await contents(dsn)
    await say(check_postgres(dsn, 10))
    await say(inspect())
    assert await contents(dsn) == before
    async with PostgresConversationMemory(dsn, min_size=0) as memory:
        await say(memory.count_sessions())
    if said[-1] is not None:
        assert await contents(dsn) == before
    assert len(set(said)) == 1, said
    return said[0]


async def use(dsn: str) -> None:
    """Ordinary use: what was there is read, added to, and deleted with its messages; an id is used again."""
    async with connected(dsn) as raw, PostgresConversationMemory(dsn, min_size=0) as memory:
        kept = await raw.fetch("SELECT id FROM messages WHERE session_id = 'one' ORDER BY created_at, seq")
        assert [message["id"] for message in await memory.get_history("one")] == [id_ for (id_,) in kept]
        added = await memory.add_message("one", "tool", "x" * 300, {"a": 1})
        await memory.add_messages("one", [{"role": "user", "content": "1"}, {"role": "user", "content": "2"}])
        assert [message["id"] for message in await memory.get_history("one", limit=3)][0] == added
        assert (await memory.get_session("one") or {})["message_count"] == len(kept) + 3
        session = await memory.create_session("t" * 100, {"lang": "ko"}, user_id="ann")
        assert [row["id"] for row in await memory.get_sessions(user_id="ann", metadata={"lang": "ko"})] == [session]
        await memory.add_message(session, "user", "x", message_id=added)
        assert await memory.get_session("ONE") is None
        for id_ in ("one", session):
            await memory.delete_session(id_)
            assert await raw.fetchval("SELECT count(*) FROM messages WHERE session_id = $1", id_) == 0
        await memory.create_session(session_id="one")
        assert await memory.get_history("one") == []
        await memory.add_message("one", "user", "again")


@pytest.mark.asyncio
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
async def test_each_world_is_upgraded_or_refused_with_what_helps(database: str, world: World) -> None:
    """The check, a migration and the first use agree; the statements of a refusal, run as they stand, end it."""
    await execute(database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    await make_original(database, generation=world.generation)
    await execute(database, *world.done)
    said = await refusal(database)
    if world.says is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(world.says, said), said
        advised = re.search("Run as their owner: (.*); then retry$", said)
        if advised is None:
            return
        await execute(database, advised[1])
        assert await refusal(database) is None
    await use(database)
