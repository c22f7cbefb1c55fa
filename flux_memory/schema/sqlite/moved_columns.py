"""Finds the views, triggers and indexes of other programs that would break when columns move to another table."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from flux_memory.schema import SchemaFile
from flux_memory.schema.sqlite.catalog import SchemaObject, quoted

_STEP: Final = "narrow_sessions"
"""The schema file that moves the columns."""
_COLUMNS: Final = frozenset({"title", "metadata"})
_OF_INDEX: Final = re.compile(r"\bON\b.*\b(?:title|metadata)\b", re.IGNORECASE | re.DOTALL)
SELECT_COLUMN_NAMES: Final = "SELECT name FROM pragma_table_info(?)"


def describe_users(
    db: sqlite3.Connection, theirs: Sequence[SchemaObject], steps: Sequence[SchemaFile]
) -> Iterator[str]:
    """Describe the objects that use the title or the metadata of `sessions`, if the files are about to move them.

    Args:
        db: A connection to the file, which is only read.
        theirs: The objects that other programs made.
        steps: The files that are about to be applied.
    """
    if all(step.name != _STEP for step in steps):
        return
    written = {each.table for each in theirs if each.type == "trigger"}
    users = {user for table in written for user in _users_in_writes(db, table)}
    for each in theirs:
        if each.type == "view":
            uses = bool(_users(db, f"SELECT * FROM {quoted(each.name)}"))  # noqa: S608 - quoted
        elif each.type == "index":
            uses = each.table == "sessions" and _OF_INDEX.search(each.sql) is not None
        else:
            uses = each.type == "trigger" and each.name in users
        if uses:
            yield (
                f"the {each.type} {each.name!r} uses the title or the metadata of 'sessions', which move to the table "
                "'session_details'; save its SQL, drop it, and create it again for that table after the upgrade: "
                f"DROP {each.type.upper()} {quoted(each.name)}"
            )


def _users_in_writes(db: sqlite3.Connection, table: str) -> set[str | None]:
    name = quoted(table)
    columns = [quoted(column) for (column,) in db.execute(SELECT_COLUMN_NAMES, (table,))]
    same = ", ".join(f"{column} = {column}" for column in columns)
    writes = (f"INSERT INTO {name} DEFAULT VALUES", f"UPDATE {name} SET {same}", f"DELETE FROM {name}")  # noqa: S608 - quoted
    return {user for write in writes for user in _users(db, write)}


def _users(db: sqlite3.Connection, sql: str) -> set[str | None]:
    """Return the names of the views and triggers within a statement that use one of the columns, without running it.

    A trigger that inserts into `sessions` counts as well. A statement that SQLite cannot compile, such as one on a view
    of a missing table, uses what SQLite found before its error.
    """
    users: set[str | None] = set()

    def note(action: int, table: str | None, column: str | None, _: str | None, user: str | None) -> int:
        uses = action == sqlite3.SQLITE_INSERT or (
            action in {sqlite3.SQLITE_READ, sqlite3.SQLITE_UPDATE} and (column or "").lower() in _COLUMNS
        )
        if uses and (table or "").lower() == "sessions":
            users.add(user)
        return sqlite3.SQLITE_OK

    db.set_authorizer(note)
    try:
        with suppress(sqlite3.Error):
            db.execute(f"EXPLAIN {sql}").close()
    finally:
        db.set_authorizer(None)
    return users
