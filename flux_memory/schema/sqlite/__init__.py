"""Upgrades the schema of a SQLite file, also the original application's, in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final

from flux_memory.errors import SchemaError
from flux_memory.records import timestamps
from flux_memory.schema import SchemaFile, adopted_version, history, missing_steps
from flux_memory.schema.sqlite.catalog import quoted
from flux_memory.schema.sqlite.objects import (
    foreign_views_and_triggers,
    kept_indexes,
    refuse_obstacles,
    refuse_views_as_tables,
    verify,
)

HAS_VERSION_TABLE: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'flux_memory_schema'"
CREATE_VERSION_TABLE: Final = """
CREATE TABLE flux_memory_schema (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    checksum   TEXT NOT NULL,
    applied_at TEXT NOT NULL
)
"""
SELECT_VERSIONS: Final = "SELECT version, checksum FROM flux_memory_schema"
INSERT_VERSION: Final = "INSERT INTO flux_memory_schema (version, name, checksum, applied_at) VALUES (?, ?, ?, ?)"
SELECT_COLUMNS: Final = "SELECT name FROM pragma_table_info(?)"

SELECT_NULL_IDS: Final = """
SELECT
    (SELECT count(*) FROM sessions WHERE id IS NULL) + (SELECT count(*) FROM messages WHERE id IS NULL)
"""
SET_ORPHANS_ASIDE: Final = (
    "CREATE TABLE orphaned_messages AS SELECT * FROM messages WHERE session_id NOT IN (SELECT id FROM sessions)",
    "DELETE FROM messages WHERE session_id NOT IN (SELECT id FROM sessions)",
)
COUNT_ORPHANS: Final = "SELECT count(*) FROM messages WHERE session_id NOT IN (SELECT id FROM sessions)"
NORMALIZE: Final = (
    """
    UPDATE sessions
    SET created_at = utc_text('session', id, created_at), updated_at = utc_text('session', id, updated_at)
    """,
    "UPDATE messages SET created_at = utc_text('message', id, created_at)",
    """
    UPDATE sessions
    SET title = coalesce(title, ''), metadata = coalesce(metadata, '{}')
    WHERE title IS NULL OR metadata IS NULL
    """,
    "UPDATE messages SET metadata = '{}' WHERE metadata IS NULL",
)
NORMALIZE_USER: Final = "UPDATE sessions SET user_id = '' WHERE user_id IS NULL"


def bring_up_to_date(db: sqlite3.Connection) -> None:
    """Apply the schema files that the file lacks, all or none. If it lacks none, it is only read.

    Args:
        db: A connection in autocommit mode.

    Raises:
        SchemaError: The file is newer than the library, is another program's, has rows that cannot be adopted, or has
            tables, keys, views or triggers with which a write could be lost; it is left as it was.
    """
    if not missing_steps("sqlite", applied_versions(db)):
        verify(db)
        return
    # SQLite would refuse to rename a table while any view is broken, or reads that table.
    db.execute("PRAGMA legacy_alter_table = ON")
    db.execute("BEGIN IMMEDIATE")
    try:
        _upgrade(db)
        verify(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    finally:
        db.execute("PRAGMA legacy_alter_table = OFF")


def _upgrade(db: sqlite3.Connection) -> None:
    # Another process may have upgraded the file during the wait for the lock.
    applied = applied_versions(db)
    inspect(db, applied)
    indexes = kept_indexes(db)
    if not applied:
        db.execute(CREATE_VERSION_TABLE)
        for step in history("sqlite")[: _adopt(db)]:
            applied[step.version] = _record(db, step)
    # SQLite refuses to drop a column while any view or trigger is broken.
    set_aside = foreign_views_and_triggers(db)
    for each in set_aside:
        db.execute(f"DROP {each.type} IF EXISTS {quoted(each.name)}")
    for step in missing_steps("sqlite", applied):
        for statement in _statements(step.sql):
            db.execute(statement)
        _record(db, step)
    for each in set_aside:
        db.execute(each.sql)
    lost = {index.name: index.sql for index in indexes}
    for index in kept_indexes(db):
        lost.pop(index.name, None)
    for sql in lost.values():
        db.execute(sql)


def inspect(db: sqlite3.Connection, applied: dict[int, str]) -> None:
    """Inspect a file as an opening does, without a change.

    Args:
        db: A connection to the file.
        applied: The result of `applied_versions`.

    Raises:
        SchemaError: As `bring_up_to_date` does, except for rows that cannot be adopted.
    """
    original = 0 if applied else original_version(db)
    if not (steps := [step for step in missing_steps("sqlite", applied) if step.version > original]):
        verify(db)
    else:
        refuse_obstacles(db, steps, adopting=bool(original))


def distrust(db: sqlite3.Connection) -> None:
    """Prepare a connection to read a file of unknown origin.

    Views and triggers may then call harmless functions only. The schema is loaded before: it may have an index on an
    expression, which would not load afterwards.
    """
    db.execute("PRAGMA cell_size_check = ON")
    db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    db.execute("PRAGMA trusted_schema = OFF")


def applied_versions(db: sqlite3.Connection) -> dict[int, str]:
    """Return the checksums of the applied files by version; none for a file without a version table."""
    if db.execute(HAS_VERSION_TABLE).fetchone() is None:
        return {}
    return dict(db.execute(SELECT_VERSIONS).fetchall())


def original_version(db: sqlite3.Connection) -> int:
    """Return the version of the original application's tables; 0 if there are none.

    Raises:
        SchemaError: Another program made the tables, or a view is in place of one.
    """
    refuse_views_as_tables(db)
    columns = {table: {name for (name,) in db.execute(SELECT_COLUMNS, (table,))} for table in ("sessions", "messages")}
    return adopted_version(columns)


def _record(db: sqlite3.Connection, step: SchemaFile) -> str:
    db.execute(INSERT_VERSION, (step.version, step.name, step.checksum, timestamps.utc_now()))
    return step.checksum


def _adopt(db: sqlite3.Connection) -> int:
    """Convert an original application's rows to the records' form, and return the version of its tables.

    Times become UTC text of one form; naive times are read as UTC. Messages without a session, which the original
    allowed, move to the table `orphaned_messages`.
    """
    version = original_version(db)
    if version == 0:
        return 0
    if db.execute(SELECT_NULL_IDS).fetchone()[0]:
        raise SchemaError("the original database has rows whose id is NULL; give each its own id, then retry")
    if db.execute(COUNT_ORPHANS).fetchone()[0]:
        for statement in SET_ORPHANS_ASIDE:
            db.execute(statement)
    problems: list[str] = []

    def utc_text(kind: str, id_: str, value: str | float | None) -> str | float | None:
        try:
            return timestamps.parse(value)
        except ValueError as error:
            problems.append(f"{kind} {id_!r:.60}: {error}")
            return value

    db.create_function("utc_text", 3, utc_text)
    for statement in NORMALIZE if version == 1 else (*NORMALIZE, NORMALIZE_USER):
        db.execute(statement)
    if problems:
        raise SchemaError(
            f"the original database has {len(problems)} times that cannot be read, the first in {problems[0]}; "
            "correct them, then retry. Nothing was changed"
        )
    return version


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements; sqlite3's executescript() would commit the open transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
