"""Views, triggers, indexes and keys that flux-memory did not make: kept, or refused by name, and never obeyed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
from foreign_objects import list_objects, refused_by_name, run_script
from original_application import dump_file, make_file_with_data
from raw_sqlite import execute_in_file

from flux_memory import ConversationMemory, FluxMemoryError, Memory
from flux_memory.health import check_sqlite

NOTES: Final = "CREATE TABLE notes (message TEXT, session TEXT);"
SILENT: Final = "SELECT raise(IGNORE)"


async def current(path: Path) -> None:
    async with ConversationMemory(path) as memory:
        await memory.create_session(session_id="one")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "sql",
    [
        "CREATE VIEW newest AS SELECT max(created_at) FROM messages",
        "CREATE VIEW joined AS SELECT messages.* FROM messages JOIN sessions ON sessions.id = session_id",
        "CREATE VIEW broken AS SELECT * FROM nowhere",
        "CREATE VIEW unknown AS SELECT no_such_function(content) FROM messages",
        "CREATE VIEW first AS SELECT * FROM messages; CREATE VIEW second AS SELECT * FROM first",
        f"{NOTES} CREATE TRIGGER forget AFTER DELETE ON notes BEGIN DELETE FROM messages WHERE id = old.message; END",
        f"{NOTES} CREATE TRIGGER broken AFTER INSERT ON notes BEGIN DELETE FROM nowhere; END",
        (
            "CREATE VIEW v AS SELECT id FROM messages;"
            "CREATE TRIGGER t INSTEAD OF DELETE ON v BEGIN DELETE FROM messages WHERE id = old.id; END"
        ),
        "CREATE INDEX by_role ON messages (role)",
        "CREATE INDEX lately ON messages (created_at) WHERE role = 'user'",
        "CREATE INDEX by_number ON messages (json_extract(metadata, '$.n'))",
        "CREATE INDEX by_creation ON sessions (created_at, id COLLATE NOCASE)",
        "CREATE TABLE notes (x TEXT REFERENCES sessions (id) ON DELETE CASCADE); INSERT INTO notes VALUES ('one')",
        "CREATE TABLE notes (x); CREATE INDEX by_x ON notes (x)",
    ],
)
@pytest.mark.parametrize("generation", [1, 2])
async def test_what_does_no_harm_survives_the_adoption(path: Path, sql: str, generation: int) -> None:
    """A user's view, index or table is there afterwards, word for word; the order and the rows are right."""
    make_file_with_data(path, generation=generation)
    before = list_objects(path)
    run_script(path, sql)
    added = list_objects(path) - before
    assert (await check_sqlite(str(path), 10)).sessions == 2
    async with ConversationMemory(path) as memory:
        assert [message["id"] for message in await memory.get_history("one")] == ["m3", "m4", "m1", "m6"]
    assert added <= list_objects(path)
    async with ConversationMemory(path) as memory:
        await memory.add_message("one", "user", "x")
        await memory.delete_session("two")


ON_ROWS: Final = {
    f"CREATE TRIGGER keen BEFORE INSERT ON messages BEGIN {SILENT}; END": "the trigger 'keen' on 'messages'",
    "CREATE TRIGGER keen AFTER INSERT ON messages BEGIN UPDATE messages SET content = '' WHERE id = new.id; END": (
        'DROP TRIGGER "keen"'
    ),
    'CREATE TRIGGER "a ""b""" AFTER DELETE ON sessions BEGIN SELECT 1; END': 'DROP TRIGGER "a ""b"""',
    f"CREATE TRIGGER keen BEFORE UPDATE ON SESSIONS BEGIN {SILENT}; END": "the trigger 'keen' on 'sessions'",
    "CREATE TRIGGER one AFTER INSERT ON messages BEGIN SELECT 1; END;"
    "CREATE TRIGGER two AFTER INSERT ON messages BEGIN SELECT 2; END": "'one' on 'messages'",
    "CREATE TRIGGER session_metadata AFTER INSERT ON messages BEGIN SELECT 1; END": "DROP TRIGGER",
    "CREATE UNIQUE INDEX said_once ON messages (content)": "the unique index 'said_once'",
    "CREATE UNIQUE INDEX created_once ON sessions (created_at, id)": 'DROP INDEX "created_once"',
    "CREATE TABLE notes (x TEXT REFERENCES messages (id))": "the table 'notes' has a foreign key to 'messages'",
    "CREATE TABLE notes (x TEXT REFERENCES Messages ON DELETE CASCADE); INSERT INTO notes VALUES ('m1')": "'notes'",
}
"""What decides about the rows of either kind of file, and what a refusal says."""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("sql", "says"),
    [
        *ON_ROWS.items(),
        ("CREATE TABLE session_details (id TEXT)", "the table 'session_details' has a name that flux-memory needs"),
        ("ALTER TABLE sessions ADD COLUMN Revision INTEGER", "the column 'Revision' of 'sessions' has a name that"),
        (
            "CREATE INDEX sessions_of_user_by_activity ON sessions (id)",
            "the index 'sessions_of_user_by_activity' has a",
        ),
        ("CREATE INDEX idx_sessions_user ON sessions (title)", "'idx_sessions_user' has a name that flux-memory needs"),
        ("CREATE TABLE messages_in_order (id TEXT)", "the table 'messages_in_order' has a name"),
        ("CREATE TABLE orphaned_messages (id TEXT)", "the table 'orphaned_messages' has a name"),
        (
            f"{NOTES} CREATE TRIGGER session_metadata_after_insert AFTER INSERT ON notes BEGIN SELECT 1; END",
            "the trigger 'session_metadata_after_insert' has a name that flux-memory needs",
        ),
        ("CREATE VIEW Session_Metadata AS SELECT 1", "the view 'Session_Metadata' has a name"),
        (
            "ALTER TABLE sessions RENAME TO s; CREATE TABLE sessions AS SELECT * FROM s",
            "the table 'sessions' lacks the key (id BINARY)",
        ),
        (
            (
                "ALTER TABLE sessions RENAME TO s;"
                "CREATE TABLE sessions (id STRING PRIMARY KEY, title, created_at, updated_at, metadata)"
            ),
            "the column 'id' of 'sessions' turns a text into a number",
        ),
        (
            "ALTER TABLE messages RENAME TO m; CREATE VIEW messages AS SELECT * FROM m",
            "'messages' is a view, which flux-memory does not read",
        ),
        (
            (
                "DROP TABLE messages; CREATE VIRTUAL TABLE messages USING"
                " fts5(id, session_id, role, content, metadata, created_at)"
            ),
            "'messages' is a virtual table",
        ),
    ],
)
async def test_what_would_do_harm_is_refused_by_name(path: Path, sql: str, says: str) -> None:
    """Nothing vanishes and nothing fails half-way: the file stays as it was, and the message names what to drop."""
    make_file_with_data(path)
    run_script(path, sql)
    await refused_by_name(path, says)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("sql", "says"),
    [
        *ON_ROWS.items(),
        (
            f"CREATE TRIGGER keen BEFORE INSERT ON flux_memory_schema BEGIN {SILENT}; END",
            "the trigger 'keen' on 'flux_memory_schema'",
        ),
        (
            f"CREATE TRIGGER keen BEFORE INSERT ON session_details BEGIN {SILENT}; END",
            "the trigger 'keen' on 'session_details'",
        ),
        ("CREATE UNIQUE INDEX titled_once ON session_details (title, session_id)", 'DROP INDEX "titled_once"'),
        ("DROP TRIGGER sessions_first_revision", "the trigger 'sessions_first_revision' is missing"),
        (
            "DROP TABLE session_details; CREATE TABLE session_details (session_id TEXT PRIMARY KEY, title, metadata)",
            "the table 'session_details' lacks the foreign key to 'sessions'",
        ),
        (
            "DROP TRIGGER sessions_first_revision; ALTER TABLE sessions DROP COLUMN revision",
            "the table 'sessions' lacks the column 'revision'",
        ),
        ("DROP TRIGGER session_metadata_after_insert", "the trigger 'session_metadata_after_insert' is missing"),
        (
            (
                "DROP TRIGGER session_metadata_before_delete;"
                f"CREATE TRIGGER session_metadata_before_delete BEFORE DELETE ON session_details BEGIN {SILENT}; END"
            ),
            "the trigger 'session_metadata_before_delete' differs",
        ),
        (
            (
                "DROP VIEW session_metadata_wanted;"
                "CREATE VIEW session_metadata_wanted AS SELECT '' AS key, '' AS member, '' AS value, '' AS session_id"
            ),
            "the view 'session_metadata_wanted' differs",
        ),
        ("DROP INDEX sessions_by_activity", "CREATE INDEX sessions_by_activity ON sessions(updated_at, id)"),
        (
            "DROP INDEX sessions_by_activity; CREATE INDEX sessions_by_activity ON sessions (id) WHERE id = ''",
            "the index 'sessions_by_activity' differs",
        ),
        ("DROP TABLE session_metadata", "the table 'session_metadata' is missing"),
        (
            "DROP TABLE session_metadata; CREATE VIEW session_metadata AS SELECT 1",
            "the table 'session_metadata' lacks the column 'key'",
        ),
        ("ALTER TABLE messages RENAME TO m; CREATE VIEW messages AS SELECT * FROM m", "'messages' is a view"),
        (
            "CREATE TABLE m AS SELECT * FROM messages; DROP TABLE messages; ALTER TABLE m RENAME TO messages",
            "the table 'messages' lacks the key (session_id BINARY, id BINARY)",
        ),
        (
            (
                "DROP TABLE messages; CREATE TABLE messages (session_id TEXT, id TEXT, seq INTEGER, role TEXT,"
                "content TEXT, metadata TEXT, created_at TEXT, PRIMARY KEY (session_id, seq), UNIQUE (session_id, id))"
            ),
            "lacks the foreign key to 'sessions'",
        ),
        (
            (
                "DROP TABLE messages;"
                "CREATE TABLE messages (session_id TEXT REFERENCES sessions (id) ON DELETE CASCADE, id TEXT,"
                " seq INTEGER, role TEXT, content TEXT, metadata TEXT, created_at TEXT, PRIMARY KEY (session_id, seq),"
                "UNIQUE (session_id, id), UNIQUE (role) ON CONFLICT REPLACE)"
            ),
            "the table 'messages' has a key (role BINARY)",
        ),
    ],
)
async def test_a_current_file_that_differs_is_refused_by_name(path: Path, sql: str, says: str) -> None:
    """The right version and the right checksums are not enough: a trigger, a key or a view decides what is stored."""
    await current(path)
    run_script(path, sql)
    await refused_by_name(path, says)


Call = Callable[[Memory], Awaitable[object]]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("event", "call"),
    [
        ("INSERT ON messages", lambda memory: memory.add_message("one", "user", "x")),
        ("INSERT ON messages", lambda memory: memory.add_message("one", "user", "x", message_id="m")),
        ("INSERT ON messages", lambda memory: memory.add_messages("one", [{"role": "user", "content": "x"}] * 2)),
        ("INSERT ON messages WHEN new.content = 'b'", lambda memory: memory.add_messages(
            "one", [{"role": "user", "content": each} for each in "abc"]
        )),
        ("UPDATE ON sessions", lambda memory: memory.add_message("one", "user", "x")),
        ("UPDATE ON sessions", lambda memory: memory.update_session_title("one", "new")),
        ("INSERT ON session_details", lambda memory: memory.create_session()),
        ("UPDATE ON session_details", lambda memory: memory.update_session_title("one", "new")),
        ("UPDATE ON session_details", lambda memory: memory.update_session("one", merge_metadata={"a": 1})),
        ("UPDATE ON sessions", lambda memory: memory.update_session("one", truncate_all=True)),
        ("DELETE ON messages", lambda memory: memory.update_session("one", truncate_all=True)),
        ("DELETE ON messages", lambda memory: memory.pop_message("one")),
        ("UPDATE ON sessions", lambda memory: memory.pop_message("one")),
        ("INSERT ON sessions", lambda memory: memory.add_message("new", "user", "x", create=True)),
        ("INSERT ON session_details", lambda memory: memory.fork_session("one")),
        ("INSERT ON messages", lambda memory: memory.fork_session("one")),
        ("DELETE ON sessions", lambda memory: memory.delete_sessions(user_id="")),
        ("INSERT ON sessions", lambda memory: memory.create_session()),
        ("INSERT ON sessions", lambda memory: memory.create_session(session_id="new")),
        ("DELETE ON sessions", lambda memory: memory.delete_session("one")),
        ("DELETE ON sessions", lambda memory: memory.clear_all()),
    ],
)  # fmt: skip
async def test_a_trigger_that_drops_a_write_of_an_open_file_is_no_acknowledgement(
    path: Path, event: str, call: Call
) -> None:
    """Each write counts the rows that it changed; one that changed none raises, and leaves nothing half done."""
    await current(path)
    async with ConversationMemory(path) as memory:
        await memory.add_message("one", "user", "before")
        execute_in_file(path, f"CREATE TRIGGER keen BEFORE {event} BEGIN {SILENT}; END")
        before = dump_file(path)
        with pytest.raises(FluxMemoryError, match="nothing was stored; drop a trigger"):
            await call(memory)
        assert dump_file(path) == before
        execute_in_file(path, "DROP TRIGGER keen")
        await call(memory)
