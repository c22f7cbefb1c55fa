"""Targets into which a move fails or ends with differences, each with what the dry run and the move must say."""

from __future__ import annotations

from typing import Final

from dry_run_worlds import ALL_RIGHTS, DDL_GUARD, FUNCTION, GUARD, SESSION, World
from original_application import POSTGRES_TABLES

from flux_memory.transfer import Status

LATE: Final = (
    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON messages INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION act()"
)
OBSTACLES: Final = {
    # The server refuses the tables.
    "a foreign key that is switched off": World(
        "current",
        ("ALTER TABLE messages DISABLE TRIGGER ALL",),
        "the foreign key messages_session_id_fkey .* is disabled",
    ),
    "--replace and a guard against DELETE": World(
        "current",
        (SESSION, GUARD, "CREATE TRIGGER keep BEFORE DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION act()"),
        "guarded by the operators",
        replace=True,
    ),
    "--replace and a guard against DELETE and TRUNCATE": World(
        "current",
        (SESSION, GUARD, "CREATE TRIGGER keep BEFORE DELETE OR TRUNCATE ON sessions EXECUTE FUNCTION act()"),
        "guarded by the operators",
        replace=True,
    ),
    "--replace and a table that refers to sessions": World(
        "current",
        ("CREATE TABLE ratings (session_id TEXT REFERENCES sessions (id), stars INT)",),
        r"other tables refer to the target's sessions or messages \(ratings\)",
        replace=True,
    ),
    "another program's tables": World("none", ("CREATE TABLE sessions (cookie TEXT)",), "not conversation memory"),
    "foreign tables": World(
        "none",
        (
            "CREATE FOREIGN DATA WRAPPER nothing",
            "CREATE SERVER there FOREIGN DATA WRAPPER nothing",
            "CREATE FOREIGN TABLE sessions (id TEXT) SERVER there",
            "CREATE FOREIGN TABLE messages (id TEXT) SERVER there",
        ),
        "'sessions' in the schema public is a foreign table",
    ),
    "a missing version table": World(
        "current",
        ("DROP TABLE flux_memory_schema",),
        "flux_memory_schema, which has their version, is missing or not visible",
    ),
    "an emptied version table": World("current", ("DELETE FROM flux_memory_schema",), "shows the role no row"),
    "a newer version": World(
        "current", ("INSERT INTO flux_memory_schema VALUES (99, 'later', 'x')",), "upgrade flux-memory"
    ),
    "a missing key": World(
        "current", ("ALTER TABLE messages DROP CONSTRAINT messages_session_id_id_key",), "not what flux-memory needs"
    ),
    "metadata as text": World(
        "original",
        (
            "ALTER TABLE sessions ALTER COLUMN metadata DROP DEFAULT",
            "ALTER TABLE sessions ALTER COLUMN metadata TYPE TEXT",
        ),
        "sessions.metadata is of type text",
    ),
    "unlogged tables": World(
        "none", (POSTGRES_TABLES.replace("CREATE TABLE", "CREATE UNLOGGED TABLE"),), "is an unlogged table"
    ),
    "a view that groups by the original's key": World(
        "original",
        ("CREATE VIEW grouped AS SELECT id, content FROM messages GROUP BY id",),
        "depends on constraint messages_pkey",
    ),
    "a guard against DDL on the original's tables": World(
        "original",
        (DDL_GUARD, "CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION act()"),
        "guarded by the operators",
    ),
    "a guard against DDL without tables": World(
        "none",
        (DDL_GUARD, "CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION act()"),
        "guarded by the operators",
    ),
    "the original's tables of another owner": World(
        "original",
        ("GRANT ALL ON sessions, messages TO {role}", "GRANT ALL ON SCHEMA public TO {role}"),
        "only its owner may upgrade it",
        as_role=True,
    ),
    "no right to create": World(
        "none", ("REVOKE CREATE ON SCHEMA public FROM PUBLIC",), "may not create tables", as_role=True
    ),
    "no right to write": World(
        "current",
        (ALL_RIGHTS[0], "GRANT SELECT ON sessions, session_details, messages, feedback TO {role}"),
        "may not write to the target's tables",
        as_role=True,
    ),
    "no right to read details": World(
        "current",
        (*ALL_RIGHTS, "REVOKE SELECT ON session_details FROM {role}"),
        "GRANT SELECT ON sessions, session_details, messages, feedback",
        as_role=True,
    ),
    "a policy": World(
        "current",
        (*ALL_RIGHTS, "ALTER TABLE messages ENABLE ROW LEVEL SECURITY"),
        "row-level security policy for table",
        as_role=True,
    ),
    # The server refuses the rows.
    "a NOT NULL column of the user's": World(
        "current",
        ("ALTER TABLE sessions ADD COLUMN tenant TEXT NOT NULL",),
        "sessions.tenant is NOT NULL without a default",
    ),
    "a NOT NULL column in the original's tables": World(
        "original",
        (
            "ALTER TABLE sessions ADD COLUMN tenant TEXT NOT NULL DEFAULT 'none'",
            "ALTER TABLE sessions ALTER COLUMN tenant DROP DEFAULT",
            "DELETE FROM sessions WHERE id = 'one'",
        ),
        "sessions.tenant is NOT NULL without a default",
    ),
    "a CHECK of the user's": World(
        "current",
        ("ALTER TABLE messages ADD CHECK (role <> 'user')",),
        'violates check constraint "messages_role_check"',
    ),
    "a unique key of the user's": World(
        "current", ("ALTER TABLE session_details ADD UNIQUE (metadata)",), "session_details_metadata_key"
    ),
    "a unique key of the user's in the original's tables": World(
        "original", ("DELETE FROM sessions", "ALTER TABLE sessions ADD UNIQUE (metadata)"), "sessions_metadata_key"
    ),
    "a deferred constraint of the user's": World(
        "current",
        (
            GUARD,
            LATE,
        ),
        "guarded by the operators",
    ),
    "a trigger that refuses rows": World(
        "current",
        (GUARD, "CREATE TRIGGER no BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION act()"),
        "guarded by the operators",
    ),
    "a column that is too short": World(
        "current", ("ALTER TABLE messages ALTER COLUMN content TYPE VARCHAR(5)",), "messages.content is of type"
    ),
    # The move would end with differences.
    "a trigger that changes rows": World(
        "current",
        (
            FUNCTION.format("trigger", "NEW.content := upper(NEW.content); RETURN NEW"),
            "CREATE TRIGGER changed BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION act()",
        ),
        status=Status.DIFFERENT,
    ),
    "a trigger that changes titles": World(
        "current",
        (
            FUNCTION.format("trigger", "NEW.title := upper(NEW.title); RETURN NEW"),
            "CREATE TRIGGER changed BEFORE INSERT ON session_details FOR EACH ROW EXECUTE FUNCTION act()",
        ),
        status=Status.DIFFERENT,
    ),
    "a trigger that drops details": World(
        "current",
        (
            FUNCTION.format("trigger", "RETURN NULL"),
            "CREATE TRIGGER dropped BEFORE INSERT ON session_details FOR EACH ROW EXECUTE FUNCTION act()",
        ),
        status=Status.DIFFERENT,
    ),
    "a trigger that drops rows": World(
        "current",
        (
            FUNCTION.format("trigger", "RETURN NULL"),
            "CREATE TRIGGER dropped BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION act()",
        ),
        status=Status.DIFFERENT,
    ),
    "a session in conflict": World("current", (SESSION,), status=Status.DIFFERENT),
    "a session in conflict in the original's tables": World(
        "original", ("UPDATE sessions SET title = 'another' WHERE id = 'one'",), status=Status.DIFFERENT
    ),
}
