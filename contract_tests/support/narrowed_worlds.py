"""What may become of PostgreSQL tables of version 5 before titles and metadata move to another, world by world."""

from __future__ import annotations

from typing import Final

from original_worlds import FUNCTION, NO_REFERENCE, World, messages, retype, sessions

POLICIES: Final = """
ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE messages ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_sessions ON sessions USING (user_id = current_setting('chat.user_id', TRUE));
CREATE POLICY own_messages ON messages USING (EXISTS (SELECT FROM sessions WHERE sessions.id = messages.session_id));
CREATE POLICY "Not x" ON messages AS RESTRICTIVE FOR INSERT TO CURRENT_USER WITH CHECK (id <> 'x');
"""
REVIEWS: Final = "CREATE TABLE reviews (session_id varchar(36), message_id varchar(36), title text);"
FOREIGN: Final = "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER there FOREIGN DATA WRAPPER nothing; "

KEPT: Final = {
    "as it was": World(),
    "no index on metadata": World("DROP INDEX sessions_by_metadata"),
    "ids of type text": World(NO_REFERENCE + retype("text")),
    "ids of one other collation": World(NO_REFERENCE + retype('varchar(36) COLLATE "C"')),
    "columns and indexes of the user's": World(
        sessions("ADD COLUMN starred boolean", "ADD COLUMN size int GENERATED ALWAYS AS (length(user_id)) STORED")
        + "CREATE INDEX ON sessions (starred); CREATE INDEX ON messages (session_id, role);"
        + "CREATE STATISTICS of_ids ON id, user_id FROM sessions;"
    ),
    "other tables refer to ours": World(
        REVIEWS
        + "ALTER TABLE reviews ADD FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE,"
        + "ADD FOREIGN KEY (session_id, message_id) REFERENCES messages (session_id, id)"
    ),
    "view of columns that stay": World("CREATE VIEW seen AS SELECT role, content FROM messages"),
    "checks of ids": World(messages("ADD CONSTRAINT named CHECK (id <> '')", "ALTER COLUMN id SET DEFAULT 'm'")),
    "trigger that refuses changes": World(
        FUNCTION.format("RAISE 'no changes';")
        + "CREATE TRIGGER hook BEFORE UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION hook();"
        + "CREATE TRIGGER hook BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION hook()"
    ),
    "policies": World(POLICIES),
    "table with the name of the new one in another schema": World(
        "CREATE SCHEMA other; CREATE TABLE other.session_details (x int)"
    ),
}
ON_MOVED_COLUMNS: Final = {
    "view of titles": World("CREATE VIEW seen AS SELECT title FROM sessions", "DROP VIEW seen; then retry"),
    "materialized view of metadata": World(
        "CREATE MATERIALIZED VIEW seen AS SELECT metadata, user_id FROM sessions",
        "seen depends on column metadata of table sessions, .* DROP MATERIALIZED VIEW seen; then retry",
    ),
    "view of everything": World(
        "CREATE VIEW seen AS SELECT * FROM sessions",
        "column id of table sessions, column title of table sessions, column metadata of .* DROP VIEW seen; then retry",
    ),
    "index on titles": World("CREATE INDEX by_title ON sessions (lower(title))", "DROP INDEX by_title; then retry"),
    "index on some metadata": World(
        "CREATE INDEX starred ON sessions (updated_at) WHERE metadata ? 'star'", "DROP INDEX starred; then retry"
    ),
    "unique titles": World(sessions("ADD CONSTRAINT own UNIQUE (title)"), "DROP CONSTRAINT own; then retry"),
    "unique index on ids and titles": World(
        "CREATE UNIQUE INDEX own ON sessions (id, title)", "Run as their owner: DROP INDEX own; then retry"
    ),
    "unique constraint of titles and another column": World(
        sessions("ADD COLUMN tenant text") + sessions("ADD CONSTRAINT own UNIQUE (tenant, title)"),
        "Run as their owner: ALTER TABLE sessions DROP CONSTRAINT own; then retry",
    ),
    "another table refers to titles": World(
        sessions("ADD CONSTRAINT own UNIQUE (title)")
        + REVIEWS
        # The titles of the rows differ.
        + "ALTER TABLE reviews ADD CONSTRAINT titled FOREIGN KEY (title) REFERENCES sessions (title)",
        "ALTER TABLE reviews DROP CONSTRAINT titled; ALTER TABLE sessions DROP CONSTRAINT own; then retry",
    ),
    "titles refer to another table": World(
        "CREATE TABLE topics (name text PRIMARY KEY); INSERT INTO topics SELECT title FROM sessions;"
        + sessions("ADD CONSTRAINT topic FOREIGN KEY (title) REFERENCES topics"),
        "ALTER TABLE sessions DROP CONSTRAINT topic; then retry",
    ),
    "check of titles": World(
        sessions("ADD CONSTRAINT short CHECK (length(title) < 80 AND user_id <> title)"),
        "ALTER TABLE sessions DROP CONSTRAINT short; then retry",
    ),
    "column generated from titles": World(
        sessions("ADD COLUMN size int NOT NULL GENERATED ALWAYS AS (length(title)) STORED"),
        "ALTER TABLE sessions ALTER COLUMN size DROP EXPRESSION, ALTER COLUMN size DROP NOT NULL; then retry",
    ),
    "trigger on changes of titles": World(
        FUNCTION.format("RETURN NEW;")
        + "CREATE TRIGGER hook AFTER UPDATE OF title ON sessions FOR EACH ROW EXECUTE FUNCTION hook()",
        "DROP TRIGGER hook ON sessions; then retry",
    ),
    "policy on metadata": World(
        "CREATE POLICY shared ON messages USING (EXISTS (SELECT FROM sessions WHERE metadata ? 'shared'))",
        "DROP POLICY shared ON messages; then retry",
    ),
    "statistics of titles": World(
        "CREATE STATISTICS titled ON title, user_id FROM sessions", "DROP STATISTICS public.titled; then retry"
    ),
    "function that reads titles": World(
        "CREATE FUNCTION titled(text) RETURNS text LANGUAGE sql STABLE "
        "RETURN (SELECT title FROM sessions WHERE id = $1)",
        r"DROP ROUTINE titled\(text\); then retry",
    ),
    "rule of another table": World(
        REVIEWS + "CREATE RULE copy AS ON INSERT TO reviews DO ALSO UPDATE sessions SET title = NEW.title",
        "DROP RULE copy ON reviews; then retry",
    ),
}
ON_IDS: Final = {
    "view of ids": World("CREATE VIEW seen AS SELECT id, content FROM messages", "DROP VIEW seen; then retry"),
    "column generated from ids": World(
        messages("ADD COLUMN short text GENERATED ALWAYS AS (left(session_id, 8)) STORED"),
        "ALTER TABLE messages ALTER COLUMN short DROP EXPRESSION",
    ),
    "trigger with a condition on ids": World(
        FUNCTION.format("RETURN NEW;")
        + "CREATE TRIGGER hook BEFORE INSERT ON messages FOR EACH ROW WHEN (NEW.id <> '') EXECUTE FUNCTION hook()",
        "DROP TRIGGER hook ON messages; then retry",
    ),
    "policy of another table": World(
        REVIEWS + "CREATE POLICY own ON reviews USING (session_id IN (SELECT id FROM sessions))",
        "DROP POLICY own ON reviews; then retry",
    ),
    "long ids of type text": World(
        NO_REFERENCE + retype("text") + "UPDATE messages SET id = repeat('x', 256) WHERE id = 'm1'",
        "messages.id has values longer than 255 characters; shorten them, then retry",
    ),
}
NAMES: Final = {
    "column with the name of a new one": World(
        sessions("ADD COLUMN revision int"), "RENAME COLUMN revision TO revision_before; then retry"
    ),
    "required column with the name of one in the new table": World(
        sessions("ADD COLUMN session_id text NOT NULL DEFAULT ''") + sessions("ALTER COLUMN session_id DROP DEFAULT"),
        "RENAME COLUMN session_id TO session_id_before; then retry",
    ),
    "table with the name of the new one": World(
        "CREATE TABLE session_details (title text UNIQUE)",
        "ALTER TABLE session_details RENAME TO session_details_before; then retry",
    ),
    "index with the name of a new one": World(
        "CREATE INDEX session_details_by_metadata ON sessions (user_id)",
        "RENAME TO session_details_by_metadata_before; then retry",
    ),
    "sequence with the name of a new key": World(
        "CREATE SEQUENCE session_details_pkey", "RENAME TO session_details_pkey_before; then retry"
    ),
    "view with the name of the new table": World(
        "CREATE VIEW session_details AS SELECT 1", "'session_details' in the schema public is a view, .* rename it"
    ),
    "foreign table with the name of the new one": World(
        FOREIGN + "CREATE FOREIGN TABLE session_details (x int) SERVER there",
        "'session_details' in the schema public is a foreign table, .* rename it",
    ),
    "policies forced on the owner": World(sessions("ENABLE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY")),
}
NARROWED_WORLDS: Final = KEPT | ON_MOVED_COLUMNS | ON_IDS | NAMES
