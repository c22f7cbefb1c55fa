"""Targets into which a move succeeds, each with what slows it down, and what the dry run and the move must say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flux_memory.transfer import Status

FUNCTION: Final = "CREATE FUNCTION act() RETURNS {} LANGUAGE plpgsql AS $$ BEGIN {}; END $$"
GUARD: Final = FUNCTION.format("trigger", "RAISE EXCEPTION 'guarded by the operators'")
DDL_GUARD: Final = FUNCTION.format("event_trigger", "RAISE EXCEPTION 'guarded by the operators'")
ALL_RIGHTS: Final = (
    "GRANT SELECT ON flux_memory_schema TO {role}",
    "GRANT SELECT, INSERT, UPDATE ON sessions, session_details, messages, feedback TO {role}",
)
OWN_ALL: Final = tuple(
    f"ALTER TABLE {table} OWNER TO {{role}}" for table in ("sessions", "session_details", "messages", "feedback")
)
SESSION: Final = """
INSERT INTO sessions (id, created_at, updated_at) VALUES ('one', now(), now());
INSERT INTO session_details (session_id, title) VALUES ('one', 'another')
"""


@dataclass(frozen=True)
class World:
    """A target, and what comes of a move into it."""

    tables: str
    """`none`, `current`, or the `original` application's with rows."""
    setup: tuple[str, ...]
    says: str = ""
    """Said by the dry run and by the move: in a line, or in their error."""
    status: Status | None = None
    """How the move ends; `None` for an error."""
    as_role: bool = False
    """Whether a role moves that owns nothing; `{role}` in `setup` is its name."""
    replace: bool = False
    """Whether the move replaces the target's rows."""


BATCHES: Final = "so the rows are loaded in batches"
MOVES: Final = {
    # Nothing is in the way.
    "no tables": World("none", (), status=Status.IDENTICAL),
    "current tables": World("current", (), status=Status.IDENTICAL),
    "the original's tables": World("original", ("DELETE FROM sessions",), status=Status.IDENTICAL),
    "the original's rows": World("original", (), status=Status.IDENTICAL),
    "ids of type uuid": World(
        "original",
        ("DELETE FROM sessions", "ALTER TABLE messages ALTER COLUMN id TYPE UUID USING id::uuid"),
        status=Status.IDENTICAL,
    ),
    "a renamed key of the original's tables": World(
        "original", ("ALTER TABLE messages RENAME CONSTRAINT messages_pkey TO pk",), status=Status.IDENTICAL
    ),
    "a missing foreign key of the original's tables": World(
        "original", ("ALTER TABLE messages DROP CONSTRAINT messages_session_id_fkey",), status=Status.IDENTICAL
    ),
    "some of the original's rows": World(
        "original", ("DELETE FROM sessions WHERE id = 'one'",), status=Status.IDENTICAL
    ),
    "times with a zone": World(
        "original",
        ("ALTER TABLE messages ALTER COLUMN created_at TYPE TIMESTAMPTZ",),
        status=Status.IDENTICAL,
    ),
    # Only the keys cannot be rebuilt.
    "a view that groups by the key": World(
        "current",
        ("CREATE VIEW grouped AS SELECT id, user_id FROM sessions GROUP BY id",),
        f"view grouped depends on constraint sessions_pkey.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "a policy that groups by the key": World(
        "current",
        (
            "ALTER TABLE messages ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY known ON messages USING (session_id IN (SELECT id FROM sessions GROUP BY id, user_id))",
            "CREATE VIEW users AS SELECT user_id FROM sessions GROUP BY id",
        ),
        f"depends on constraint sessions_pkey.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "a table that refers to sessions": World(
        "current",
        ("CREATE TABLE ratings (session_id TEXT REFERENCES sessions (id), stars INT)",),
        f"constraint ratings_session_id_fkey.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "a guard against TRUNCATE": World(
        "current",
        (GUARD, "CREATE TRIGGER keep BEFORE TRUNCATE ON messages EXECUTE FUNCTION act()"),
        f"the trigger keep of the table messages acts on TRUNCATE.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "a log of TRUNCATE": World(
        "current",
        (
            "CREATE TABLE log (at TIMESTAMPTZ)",
            FUNCTION.format("trigger", "INSERT INTO log VALUES (now()); RETURN NULL"),
            "CREATE TRIGGER noted AFTER TRUNCATE ON sessions EXECUTE FUNCTION act()",
        ),
        f"the trigger noted of the table sessions acts on TRUNCATE.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "a view that groups by the key of the details": World(
        "current",
        ("CREATE VIEW grouped AS SELECT session_id, title FROM session_details GROUP BY session_id",),
        f"view grouped depends on constraint session_details_pkey.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "a guard against DDL": World(
        "current",
        (DDL_GUARD, "CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION act()"),
        f"guarded by the operators.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "a guard against dropping": World(
        "current",
        (DDL_GUARD, "CREATE EVENT TRIGGER guard ON sql_drop EXECUTE FUNCTION act()"),
        f"guarded by the operators.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "a guard against new indexes": World(
        "current",
        (
            DDL_GUARD,
            "CREATE EVENT TRIGGER guard ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION act()",
        ),
        f"guarded by the operators.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "an index for logical replication": World(
        "current",
        ("ALTER TABLE messages REPLICA IDENTITY USING INDEX messages_pkey",),
        f"messages_pkey is marked for replication.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "a table that inherits from ours": World(
        "current",
        ("CREATE TABLE old_messages () INHERITS (messages)",),
        f"old_messages inherits from the table messages.*{BATCHES}",
        Status.IDENTICAL,
    ),
    "an owner who may not TRUNCATE": World(
        "current",
        (
            *ALL_RIGHTS,
            *OWN_ALL,
            "REVOKE TRUNCATE ON messages FROM {role}",
            "GRANT ALL ON SCHEMA public TO {role}",
        ),
        f"permission denied for table messages.*{BATCHES}",
        Status.IDENTICAL,
        as_role=True,
    ),
    "an owner who may not create indexes": World(
        "current",
        (*ALL_RIGHTS, *OWN_ALL),
        f"permission denied for schema public.*{BATCHES}",
        Status.IDENTICAL,
        as_role=True,
    ),
    "a role that owns nothing": World("current", ALL_RIGHTS, BATCHES, Status.IDENTICAL, as_role=True),
    "a role that policies do not concern": World(
        "current",
        (*ALL_RIGHTS, "ALTER ROLE {role} BYPASSRLS", "ALTER TABLE sessions ENABLE ROW LEVEL SECURITY"),
        BATCHES,
        Status.IDENTICAL,
        as_role=True,
    ),
    "a column of the user's": World(
        "current", ("ALTER TABLE sessions ADD COLUMN tag TEXT NOT NULL DEFAULT ''",), status=Status.IDENTICAL
    ),
    "--replace": World("original", (), status=Status.IDENTICAL, replace=True),
    "--replace without tables": World("none", (), status=Status.IDENTICAL, replace=True),
    "--replace and a view that groups by the key": World(
        "current",
        (SESSION, "CREATE VIEW grouped AS SELECT id, user_id FROM sessions GROUP BY id"),
        f"view grouped depends on constraint sessions_pkey.*{BATCHES}",
        Status.IDENTICAL,
        replace=True,
    ),
    "--replace and a guard against DDL": World(
        "current",
        (SESSION, DDL_GUARD, "CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION act()"),
        f"guarded by the operators.*{BATCHES}",
        Status.IDENTICAL,
        replace=True,
    ),
    "--replace and a guard against DELETE, but no row to delete": World(
        "current",
        (GUARD, "CREATE TRIGGER keep BEFORE DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION act()"),
        status=Status.IDENTICAL,
        replace=True,
    ),
}
