"""What may have become of the original application's PostgreSQL tables before the first use, world by world."""

from __future__ import annotations

from typing import Final, NamedTuple


class World(NamedTuple):
    """The statements that were run on the tables."""

    done: str = "SELECT"
    says: str | None = None
    """The refusal; without one, the first use upgrades the tables."""
    generation: int = 1


def sessions(*changes: str) -> str:
    """A change of the table of sessions."""
    return f"ALTER TABLE sessions {', '.join(changes)};"


def messages(*changes: str) -> str:
    """A change of the table of messages."""
    return f"ALTER TABLE messages {', '.join(changes)};"


def column(name: str, change: str) -> str:
    """A change of a column, without its default."""
    return f"ALTER COLUMN {name} DROP DEFAULT, ALTER COLUMN {name} {change}"


NO_KEY: Final = messages("DROP CONSTRAINT messages_pkey")
NO_SESSION_KEY: Final = sessions("DROP CONSTRAINT sessions_pkey CASCADE")
NO_REFERENCE: Final = messages("DROP CONSTRAINT messages_session_id_fkey")
REFERENCE: Final = "ADD FOREIGN KEY (session_id) REFERENCES sessions (id)"
CASCADE: Final = f"{REFERENCE} ON DELETE CASCADE"
ORPHAN: Final = "INSERT INTO messages VALUES ('lost', 'gone', 'user', 'x', '{}', '2026-02-05');"
UUIDS: Final = (
    "UPDATE sessions SET id = md5(id)::uuid;UPDATE messages SET id = md5(id)::uuid, session_id = md5(session_id)::uuid;"
)
NUMBERS: Final = (
    "UPDATE sessions SET id = ascii(id); UPDATE messages SET id = substr(id, 2), session_id = ascii(session_id);"
)
# Without ICU, as in the embedded server, every collation tells all ids apart.
FOLDED: Final = """
DO $$
BEGIN
    CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
EXCEPTION WHEN feature_not_supported THEN
    CREATE COLLATION folded FROM "C";
END
$$;
"""
FUNCTION: Final = "CREATE FUNCTION hook() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$;"
TRIGGER: Final = "CREATE TRIGGER hook {} FOR EACH {} EXECUTE FUNCTION hook();"


def retype(id_type: str) -> str:
    """Change the type of all ids; what refers to them has to go before, and come again."""
    ids = f"TYPE {id_type} USING id::{id_type}"
    own = f"TYPE {id_type} USING session_id::{id_type}"
    return sessions(column("id", ids)) + messages(column("id", ids), column("session_id", own), CASCADE)


KEYS: Final = {
    "as it was": World(),
    "as it was, second generation": World(generation=2),
    "key with another name": World(messages("RENAME CONSTRAINT messages_pkey TO idx_16386_autoindex_messages_1")),
    "no key": World(NO_KEY),
    "no key, and NULL is allowed": World(NO_KEY + messages("ALTER COLUMN id DROP NOT NULL")),
    "unique index in place of the key": World(NO_KEY + "CREATE UNIQUE INDEX by_id ON messages (id)"),
    "unique constraint beside the key": World(messages("ADD UNIQUE (id)")),
    "deferrable key": World(NO_KEY + messages("ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED")),
    "key of two columns": World(NO_KEY + messages("ADD PRIMARY KEY (session_id, id)")),
    "duplicated messages": World(
        NO_KEY + "INSERT INTO messages SELECT * FROM messages WHERE id = 'm1'",
        "messages.id has a value that occurs twice; make each unique, then retry",
    ),
    "one id in two sessions": World(
        NO_KEY + "UPDATE messages SET id = 'm1' WHERE id = 'm2'", "messages.id has a value that occurs twice"
    ),
    "NULL as an id": World(
        NO_KEY + messages("ALTER COLUMN id DROP NOT NULL") + "UPDATE messages SET id = NULL WHERE id = 'm2'",
        "messages.id has a NULL; give each row a value, then retry",
    ),
    "no key of sessions": World(NO_SESSION_KEY),
    "key of sessions with another name": World(sessions("RENAME CONSTRAINT sessions_pkey TO another")),
    "unique index in place of the key of sessions": World(
        NO_SESSION_KEY + "CREATE UNIQUE INDEX ON sessions (id);" + messages(CASCADE)
    ),
    "deferrable key of sessions": World(NO_SESSION_KEY + sessions("ADD PRIMARY KEY (id) DEFERRABLE")),
    "key of sessions of two columns": World(NO_SESSION_KEY + sessions("ADD PRIMARY KEY (id, created_at)")),
    "duplicated sessions": World(
        NO_SESSION_KEY + "INSERT INTO sessions SELECT * FROM sessions", "sessions.id has a value that occurs twice"
    ),
    "unique titles": World(
        sessions("ADD CONSTRAINT one_title UNIQUE (title)"), "ALTER TABLE sessions DROP CONSTRAINT one_title; then"
    ),
    "unique times": World(
        "CREATE UNIQUE INDEX one_moment ON messages (id, created_at)", "DROP INDEX one_moment; then retry"
    ),
    "unique expression": World("CREATE UNIQUE INDEX one_case ON messages (lower(id))", "DROP INDEX one_case; then"),
    "exclusion": World(
        messages("ADD CONSTRAINT apart EXCLUDE USING btree (content WITH =)"),
        "ALTER TABLE messages DROP CONSTRAINT apart; then retry",
    ),
    "unique column of the user's": World(sessions("ADD COLUMN slug text UNIQUE")),
    "replica identity": World(messages("REPLICA IDENTITY USING INDEX messages_pkey")),
}
REFERENCES: Final = {
    "no foreign key": World(NO_REFERENCE),
    "foreign key without CASCADE": World(NO_REFERENCE + messages(REFERENCE)),
    "two foreign keys, of which one restricts": World(messages(f"{REFERENCE} ON DELETE RESTRICT")),
    "foreign key not validated": World(NO_REFERENCE + ORPHAN + messages(f"{CASCADE} NOT VALID")),
    "deferrable foreign key": World(NO_REFERENCE + messages(f"{CASCADE} DEFERRABLE INITIALLY DEFERRED")),
    "foreign key disabled": World(messages("DISABLE TRIGGER ALL") + ORPHAN),
    "cascade disabled": World(sessions("DISABLE TRIGGER ALL")),
    "orphaned messages": World(NO_REFERENCE + ORPHAN),
    "orphaned messages, and a table of that name": World(
        NO_REFERENCE + ORPHAN + "CREATE TABLE orphaned_messages (x int)",
        "ALTER TABLE orphaned_messages RENAME TO orphaned_messages_before; then retry",
    ),
    "a table of that name, and no orphans": World(NO_REFERENCE + "CREATE TABLE orphaned_messages (x int)"),
    "another table refers to messages": World(
        "CREATE TABLE reviews (message_id varchar(36) REFERENCES messages (id))",
        "reviews refers to messages, .* ALTER TABLE reviews DROP CONSTRAINT reviews_message_id_fkey; then retry",
    ),
    "another table refers to sessions": World("CREATE TABLE reviews (session_id varchar(36) REFERENCES sessions (id))"),
}
TYPES: Final = {
    "ids of type uuid": World(NO_REFERENCE + UUIDS + retype("uuid")),
    "ids of type integer, generated": World(
        NO_REFERENCE + NUMBERS + retype("int") + messages("ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY")
    ),
    "ids of type uuid, and another table refers to them": World(
        NO_REFERENCE + UUIDS + retype("uuid") + "CREATE TABLE reviews (session_id uuid REFERENCES sessions (id))",
        "ALTER TABLE reviews DROP CONSTRAINT reviews_session_id_fkey; then retry",
    ),
    "ids of type text": World(NO_REFERENCE + retype("text")),
    "ids of type char": World(NO_REFERENCE + retype("char(36)")),
    "long ids of type text": World(
        NO_REFERENCE + retype("text") + "UPDATE messages SET id = repeat('x', 256) WHERE id = 'm1'",
        "messages.id has values longer than 255 characters; shorten them, then retry",
    ),
    "short ids": World(messages("ALTER COLUMN id TYPE varchar(10)")),
    "times with a zone": World(
        sessions("ALTER COLUMN created_at TYPE timestamptz USING created_at AT TIME ZONE 'UTC'")
        + messages("ALTER COLUMN created_at TYPE timestamptz USING created_at AT TIME ZONE 'UTC'")
    ),
    "times without microseconds": World(sessions("ALTER COLUMN updated_at TYPE timestamp(3)")),
    "times as text": World(
        sessions("ALTER COLUMN created_at TYPE text", "ALTER COLUMN updated_at TYPE text"),
        "sessions.created_at is of type text; .* Run as their owner: SET timezone = 'UTC'; ALTER TABLE sessions ALTER",
    ),
    "times as numbers": World(
        messages("ALTER COLUMN created_at TYPE float8 USING extract(epoch FROM created_at AT TIME ZONE 'UTC')"),
        r"TYPE timestamp USING to_timestamp\(created_at\) AT TIME ZONE 'UTC'; then retry",
    ),
    "metadata as text": World(
        messages(column("metadata", "TYPE text")), "TYPE jsonb USING metadata::jsonb; then retry"
    ),
    "metadata as json": World(sessions(column("metadata", "TYPE json")), "sessions.metadata is of type json. Run as"),
    "short titles and roles": World(
        sessions("ALTER COLUMN title TYPE varchar(80)")
        + messages("ALTER COLUMN role TYPE varchar(10)", "ALTER COLUMN content TYPE char(200)")
    ),
    "roles of an enum": World(
        "CREATE TYPE speaker AS ENUM ('user', 'assistant');"
        + messages("ALTER COLUMN role TYPE speaker USING role::speaker", "ALTER COLUMN role SET DEFAULT 'user'")
    ),
    "domains": World(
        "CREATE DOMAIN short AS text CHECK (length(VALUE) < 60); CREATE DOMAIN moment AS timestamp NOT NULL;"
        + messages("ALTER COLUMN content TYPE short", "ALTER COLUMN created_at TYPE moment")
        + sessions("ALTER COLUMN id TYPE short")
    ),
    "ids whose case is ignored": World(FOLDED + sessions("ALTER COLUMN id TYPE varchar(36) COLLATE folded")),
    "ids of two collations": World(sessions('ALTER COLUMN id TYPE varchar(36) COLLATE "C"')),
    "ids of one other collation": World(NO_REFERENCE + retype('varchar(36) COLLATE "C"')),
    "users of type integer": World(sessions(column("user_id", "TYPE int USING 7")), generation=2),
}
COLUMNS: Final = {
    "columns of the user's": World(
        sessions(
            "ADD COLUMN starred boolean NOT NULL DEFAULT FALSE",
            "ADD COLUMN number int GENERATED ALWAYS AS IDENTITY",
            "ADD COLUMN size int NOT NULL GENERATED ALWAYS AS (length(user_id)) STORED",
            "ADD COLUMN note text",
        ),
        generation=2,
    ),
    "required column of the user's": World(
        sessions("ADD COLUMN tenant text NOT NULL DEFAULT 'x'") + sessions("ALTER COLUMN tenant DROP DEFAULT"),
        "ALTER TABLE sessions ALTER COLUMN tenant DROP NOT NULL; then retry",
    ),
    "column with the name of a new one": World(
        sessions("ADD COLUMN message_count int"),
        "ALTER TABLE sessions RENAME COLUMN message_count TO message_count_before; then retry",
    ),
    "generated title": World(
        sessions("DROP COLUMN title") + sessions("ADD COLUMN title text GENERATED ALWAYS AS ('of ' || id) STORED"),
        "ALTER TABLE sessions ALTER COLUMN title DROP EXPRESSION; then retry",
    ),
    "NULL is allowed": World(
        messages(*(f"ALTER COLUMN {name} DROP NOT NULL" for name in ("session_id", "role", "content", "created_at")))
    ),
    "NULL as a time": World(
        messages("ALTER COLUMN created_at DROP NOT NULL") + "UPDATE messages SET created_at = NULL",
        "messages.created_at has a NULL; give each row a value, then retry",
    ),
}
AROUND: Final = {
    "index with the name of a new one": World(
        "CREATE INDEX sessions_by_metadata ON sessions (created_at)",
        "ALTER TABLE sessions_by_metadata RENAME TO sessions_by_metadata_before; then retry",
    ),
    "table with the name of a new key": World(
        "CREATE TABLE messages_session_id_id_key (x int)", "ALTER TABLE messages_session_id_id_key RENAME TO"
    ),
    "check with the name of a new key": World(
        messages("RENAME CONSTRAINT messages_pkey TO another")
        + messages("ADD CONSTRAINT messages_pkey CHECK (role <> '')"),
        "ALTER TABLE messages RENAME CONSTRAINT messages_pkey TO messages_pkey_before; then retry",
    ),
    "index of another table with the name of an old one": World(
        "DROP INDEX idx_messages_session; CREATE TABLE o (x int); CREATE INDEX idx_messages_session ON o (x)",
        "ALTER TABLE idx_messages_session RENAME TO",
    ),
    "no indexes": World("DROP INDEX idx_messages_session"),
    "view that groups by the key": World(
        "CREATE VIEW seen AS SELECT id, content FROM messages GROUP BY id", "DROP VIEW seen; then retry"
    ),
    "view of a column whose type changes": World(
        messages("ALTER COLUMN role TYPE varchar(10)") + "CREATE MATERIALIZED VIEW seen AS SELECT role FROM messages",
        "DROP MATERIALIZED VIEW seen; then retry",
    ),
    "view of columns that stay": World("CREATE VIEW seen AS SELECT role, content FROM messages"),
    "view of several columns that change": World(
        NO_REFERENCE + retype("text") + "CREATE VIEW seen AS SELECT id, title, metadata FROM sessions",
        "DROP VIEW seen; then retry",
    ),
    "rule": World("CREATE RULE keep AS ON DELETE TO sessions DO INSTEAD NOTHING", "DROP RULE keep ON sessions; then"),
    "trigger that refuses changes": World(
        FUNCTION.format("RAISE 'messages never change';") + TRIGGER.format("BEFORE UPDATE ON messages", "ROW")
    ),
    "trigger that drops changes": World(
        FUNCTION.format("RETURN NULL;")
        + TRIGGER.format("BEFORE UPDATE ON messages", "ROW")
        + messages("ENABLE ALWAYS TRIGGER hook")
    ),
    "child table": World("CREATE TABLE more () INHERITS (messages)", "ALTER TABLE more NO INHERIT messages; then"),
    "parent table": World(
        "CREATE TABLE parent (id varchar(36) NOT NULL);" + sessions("INHERIT parent"),
        "ALTER TABLE sessions NO INHERIT parent; then retry",
    ),
    "policies forced on the owner": World(messages("ENABLE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY")),
}
# As pgloader 3.6 leaves the original's SQLite file: ids of type text, keys with names of its own, few NOT NULL.
LOADED: Final = (
    NO_REFERENCE
    + retype("text")
    + messages("RENAME CONSTRAINT messages_pkey TO idx_16392_sqlite_autoindex_messages_1")
    + sessions("RENAME CONSTRAINT sessions_pkey TO idx_16385_sqlite_autoindex_sessions_1")
    + messages(*(f"ALTER COLUMN {name} DROP NOT NULL" for name in ("session_id", "role", "content", "created_at")))
    + sessions("ALTER COLUMN created_at DROP NOT NULL", "ALTER COLUMN updated_at DROP NOT NULL")
    + "ALTER INDEX idx_messages_session RENAME TO idx_16392_idx_messages_session;"
)
PGLOADER: Final = {
    "after pgloader": World(
        LOADED
        + messages(column("created_at", "TYPE text"), column("metadata", "TYPE text"))
        + sessions(*(column(name, "TYPE text") for name in ("created_at", "updated_at", "metadata"))),
        "messages.created_at is of type text; messages.metadata is of type text; sessions.created_at is of type text;",
    ),
    "after pgloader with rules for times and metadata": World(LOADED),
    "after pgloader without keys": World(
        LOADED
        + messages("DROP CONSTRAINT messages_session_id_fkey")
        + messages("DROP CONSTRAINT idx_16392_sqlite_autoindex_messages_1", "ALTER COLUMN id DROP NOT NULL")
        + sessions("DROP CONSTRAINT idx_16385_sqlite_autoindex_sessions_1", "ALTER COLUMN id DROP NOT NULL")
    ),
}
WORLDS: Final = KEYS | REFERENCES | TYPES | COLUMNS | AROUND | PGLOADER
