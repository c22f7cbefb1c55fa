"""Tests that a file of each version of the schema moves as it is, and that a move works with the tables of this one."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from original_application import make_file, make_file_with_data
from raw_postgres import execute, fetch_rows
from transfer_memories import OTHER, insert_message, insert_session, make_tables, move, read_target

from flux_memory.errors import MigrationError
from flux_memory.schema import history
from flux_memory.schema.sqlite import CREATE_VERSION_TABLE, INSERT_VERSION
from flux_memory.transfer import Mode, Status, migrate_back
from flux_memory.transfer.rows.problems import ProblemKind

VERSIONS = [step.version for step in history("sqlite")]
LONG_ID = "é" * 255
REVISIONS = "SELECT id, revision::text FROM sessions ORDER BY id"


def make_version(path: Path, version: int, *statements: str) -> None:
    """Create a file with data, bring it to a version by the schema files alone, and run statements."""
    make_file_with_data(path, generation=min(version, 2))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        if version > 2:
            db.execute(CREATE_VERSION_TABLE)
            for step in history("sqlite")[:version]:
                db.executescript(step.sql if step.version > 2 else "")
                db.execute(INSERT_VERSION, (step.version, step.name, step.checksum, "2026-02-05T15:17:45"))
        for statement in statements:
            db.execute(statement)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_each_version_moves_in_place(path: Path, target: str, version: int) -> None:
    """Every version has the same rows in PostgreSQL, and the file keeps its bytes."""
    make_version(path, version)
    before = path.read_bytes()
    for mode, status in (
        (Mode.PREFLIGHT, Status.READY),
        (Mode.MOVE, Status.IDENTICAL),
        (Mode.VERIFY, Status.IDENTICAL),
    ):
        assert move(path, target, mode=mode).status is status
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    sessions, messages = read_target(target)
    assert [(row[0], row[2], row[5], row[6]) for row in sessions] == [
        ("one", "title of one", '{"lang": "ko"}', 4),
        ("two", "title of two", '{"lang": "ko"}', 2),
    ]
    assert [row[1] for row in messages] == ["m3", "m4", "m1", "m6", "m2", "m5"]


@pytest.mark.parametrize("populated", [False, True], ids=["load", "merge"])
def test_a_session_without_details_has_no_title_and_no_metadata(path: Path, target: str, populated: bool) -> None:
    """Another program may store a session alone, in the file or in PostgreSQL: both read alike on both ways."""
    make_version(path, 6, "DELETE FROM session_details WHERE session_id = 'one'")
    make_tables(target)
    if populated:
        asyncio.run(execute(target, OTHER))
    assert move(path, target).status is (Status.CONTAINED if populated else Status.IDENTICAL)
    assert [(row[0], row[2], row[5]) for row in read_target(target)[0] if row[0] == "one"] == [("one", "", "{}")]
    asyncio.run(execute(target, "DELETE FROM session_details WHERE session_id = 'one'"))
    again = move(path, target)
    assert again.status is (Status.CONTAINED if populated else Status.IDENTICAL)
    back = path.with_name("back.db")
    assert asyncio.run(migrate_back(target, back)).status is Status.IDENTICAL


@pytest.mark.parametrize(
    "instead",
    [
        "",
        "; CREATE TABLE session_details AS SELECT * FROM without_key",
        "; CREATE VIEW session_details AS SELECT * FROM without_key",
    ],
    ids=["no table", "no key", "a view"],
)
def test_details_that_are_not_certain_are_not_moved(path: Path, target: str, instead: str) -> None:
    """Without its key the table might have two titles for a session."""
    make_version(path, 6)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "CREATE TABLE without_key AS SELECT * FROM session_details; DROP TABLE session_details" + instead
        )
    with pytest.raises(MigrationError, match="'session_details' is missing, or has no key on session_id"):
        move(path, target)


@pytest.mark.parametrize(
    ("version", "statement", "name"),
    [
        (5, "CREATE TABLE session_details (x)", "session_details"),
        (5, "ALTER TABLE sessions ADD COLUMN revision TEXT", "sessions.revision"),
        (6, "ALTER TABLE sessions ADD COLUMN title TEXT", "sessions.title"),
        (6, "ALTER TABLE session_details ADD COLUMN mood TEXT", "session_details.mood"),
    ],
)
def test_a_name_of_another_version_is_unknown(path: Path, target: str, version: int, statement: str, name: str) -> None:
    """A table or column that the file's version does not have belongs to another program: it is left behind openly."""
    make_version(path, version, statement)
    with pytest.raises(MigrationError, match=f"does not know: {name}"):
        move(path, target)
    assert move(path, target, leave_behind=frozenset({name})).status is Status.IDENTICAL
    assert [row[2] for row in read_target(target)[0]] == ["title of one", "title of two"]


def test_ids_of_255_characters_move_there_and_back(path: Path, target: str) -> None:
    """Other systems have long ids; a longer one is refused before anything is moved."""
    with closing(make_file(path)) as db:
        insert_session(db, LONG_ID)
        insert_message(db, LONG_ID, LONG_ID)
        insert_message(db, LONG_ID + "x", LONG_ID)
    refused = move(path, target)
    assert (refused.status, list(refused.preflight.tallies)) == (
        Status.REFUSED,
        [("messages", ProblemKind.BAD_LENGTH_ID)],
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM messages WHERE id = ?", (LONG_ID + "x",))
    assert move(path, target).status is Status.IDENTICAL
    assert [(row[0], row[1]) for row in read_target(target)[1]] == [(LONG_ID, LONG_ID)]
    assert asyncio.run(migrate_back(target, path.with_name("back.db"))).status is Status.IDENTICAL


def test_only_a_change_by_a_merge_gives_a_new_revision(path: Path, target: str) -> None:
    """A client that compares revisions sees that messages were added, and that nothing else was changed."""
    make_file_with_data(path)
    assert move(path, target).status is Status.IDENTICAL
    first = dict(asyncio.run(fetch_rows(target, REVISIONS)))
    assert len(set(first.values())) == 2
    assert move(path, target).status is Status.IDENTICAL
    assert dict(asyncio.run(fetch_rows(target, REVISIONS))) == first
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "m7", "one", when="2026-02-05T15:17:09.000000")
    assert move(path, target).status is Status.IDENTICAL
    second = dict(asyncio.run(fetch_rows(target, REVISIONS)))
    assert second["two"] == first["two"]
    assert second["one"] not in first.values()


def test_a_file_from_the_way_back_is_complete(path: Path, target: str) -> None:
    """Each session of the new file has its details, and a revision of its own."""
    make_file_with_data(path)
    move(path, target)
    back = path.with_name("back.db")
    assert asyncio.run(migrate_back(target, back)).status is Status.IDENTICAL
    with closing(sqlite3.connect(back)) as db:
        rows = db.execute(
            "SELECT id, title, metadata, revision FROM sessions JOIN session_details ON session_id = id ORDER BY id"
        ).fetchall()
        found = db.execute("SELECT DISTINCT key, value FROM session_metadata").fetchall()
    assert [row[:3] for row in rows] == [(id_, f"title of {id_}", '{"lang": "ko"}') for id_ in ("one", "two")]
    assert len({row[3] for row in rows} - {""}) == 2
    assert found == [("lang", '"ko')]
