"""Tests that an upgrade which moves columns breaks nothing that other programs made in the file, and loses no value."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from foreign_objects import list_objects, refused_by_name, run_script
from original_application import make_file_with_data, read_rows

from flux_memory import ConversationMemory
from flux_memory.schema import history
from flux_memory.schema import sqlite as schema

NOTES: Final = "CREATE TABLE notes (message TEXT, session TEXT);"
USES_OF_MOVED_COLUMNS: Final = {
    "CREATE VIEW titles AS SELECT id, title FROM sessions": 'DROP VIEW "titles"',
    "CREATE VIEW whole AS SELECT * FROM sessions": 'DROP VIEW "whole"',
    'CREATE VIEW "a ""b""" AS SELECT 1 FROM Sessions AS s WHERE "TITLE" = 1': 'DROP VIEW "a ""b"""',
    "CREATE VIEW first AS SELECT metadata AS m FROM sessions; CREATE VIEW second AS SELECT m FROM first": (
        'DROP VIEW "second"'
    ),
    "CREATE INDEX by_name ON sessions (title COLLATE NOCASE)": 'DROP INDEX "by_name"',
    "CREATE INDEX by_part ON sessions (created_at) WHERE Metadata <> '{}'": 'DROP INDEX "by_part"',
    "CREATE INDEX by_value ON sessions (json_extract(metadata, '$.n'))": 'DROP INDEX "by_value"',
    f"{NOTES} CREATE TRIGGER named AFTER INSERT ON notes BEGIN UPDATE sessions SET title = new.message; END": (
        'DROP TRIGGER "named"'
    ),
    f"{NOTES} CREATE TRIGGER named UPDATE OF session ON notes BEGIN SELECT title FROM sessions; END": (
        'DROP TRIGGER "named"'
    ),
    f"{NOTES} CREATE TRIGGER named AFTER DELETE ON notes BEGIN INSERT INTO sessions VALUES (1, 2, 3, 4, 5); END": (
        'DROP TRIGGER "named"'
    ),
    "CREATE VIEW v AS SELECT id FROM sessions;"
    "CREATE TRIGGER named INSTEAD OF UPDATE ON v BEGIN UPDATE sessions SET title = '' WHERE id = new.id; END": (
        'DROP TRIGGER "named"'
    ),
}
"""What would break, or mean something else, once the columns are in another table; and what a refusal says."""


def make_earlier(path: Path) -> None:
    """Create a file of the release before the columns moved, with a session and a message."""
    when = "2026-02-05T15:17:45.000000+00:00"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(schema.CREATE_VERSION_TABLE)
        for step in history("sqlite")[:4]:
            db.executescript(step.sql)
            db.execute(schema.INSERT_VERSION, (step.version, step.name, step.checksum, when))
        db.execute(
            "INSERT INTO sessions (id, title, created_at, updated_at, metadata, user_id, message_count) "
            "VALUES ('one', 'called', ?, ?, '{\"n\":1.50}', 'ann', 1)",
            (when, when),
        )
        db.execute("INSERT INTO messages VALUES ('one', 'm1', 1, 'user', 'x', '{}', ?)", (when,))


@pytest.mark.asyncio
@pytest.mark.parametrize(("sql", "says"), USES_OF_MOVED_COLUMNS.items())
@pytest.mark.parametrize("make", [make_file_with_data, make_earlier])
async def test_what_uses_a_column_that_moves_is_refused_by_name(
    path: Path, make: Callable[[Path], None], sql: str, says: str
) -> None:
    """An upgrade breaks no object of another program, also where SQLite itself would not notice."""
    make(path)
    run_script(path, sql)
    await refused_by_name(path, says, "which move to the table 'session_details'")


@pytest.mark.asyncio
async def test_a_file_of_the_release_before_is_upgraded_with_what_others_made(path: Path) -> None:
    """Every value is there afterwards, found by the filter, and a column, a view, a trigger and an index are kept."""
    make_earlier(path)
    run_script(
        path,
        f"{NOTES} ALTER TABLE sessions ADD COLUMN starred INTEGER; UPDATE sessions SET starred = 1;"
        "CREATE VIEW stars AS SELECT id, starred FROM sessions;"
        "CREATE TRIGGER forget AFTER DELETE ON notes BEGIN UPDATE sessions SET starred = 0 WHERE id = old.session; END;"
        "CREATE INDEX by_star ON sessions (starred)",
    )
    added = {each for each in list_objects(path) if each[0] in {"notes", "stars", "forget", "by_star"}}
    async with ConversationMemory(path) as memory:
        (session,) = await memory.get_sessions(metadata={"n": 1.5}, user_id="ann")
        assert await memory.get_session("one") == session
        assert (session["title"], session["metadata"], session["message_count"]) == ("called", {"n": 1.5}, 1)
        assert session["revision"]
        assert [each["id"] for each in await memory.get_history("one")] == ["m1"]
    assert len(added) == 4
    assert added <= list_objects(path)
    assert read_rows(path, "SELECT * FROM stars") == [("one", 1)]
    run_script(path, "INSERT INTO notes VALUES ('', 'one'); DELETE FROM notes")
    assert read_rows(path, "SELECT * FROM stars") == [("one", 0)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("DROP TRIGGER session_metadata_before_update", "the trigger 'session_metadata_before_update' is missing"),
        ("DROP VIEW session_metadata_wanted", "the view 'session_metadata_wanted' is missing"),
        (
            (
                "DROP TRIGGER session_metadata_after_insert;"
                "CREATE TRIGGER session_metadata_after_insert AFTER INSERT ON sessions BEGIN SELECT 1; END"
            ),
            "the trigger 'session_metadata_after_insert' differs from flux-memory's",
        ),
    ],
)
async def test_an_earlier_file_that_differs_is_refused_by_name(path: Path, sql: str, says: str) -> None:
    """The upgrade builds on what the triggers did; without one of them, a filter would miss sessions."""
    make_earlier(path)
    run_script(path, sql)
    await refused_by_name(path, says)
