"""Reads what a SQLite file describes: its tables, indexes, views and triggers."""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

SELECT_OBJECTS: Final = "SELECT type, name, lower(tbl_name), sql, rootpage FROM sqlite_master"


class SchemaObject(NamedTuple):
    """A table, an index, a view or a trigger, as the file describes it."""

    type: str
    name: str
    table: str
    """The table that it belongs to, in lower case."""
    sql: str
    is_stored: bool
    """Whether it has pages of its own: a view, a trigger and a virtual table have none."""

    @property
    def key(self) -> str:
        """Its lower-case name; that of a trigger, which may have a table's name, begins with NUL."""
        return ("\0" if self.type == "trigger" else "") + self.name.lower()


def read_objects(db: sqlite3.Connection) -> dict[str, SchemaObject]:
    """Return all objects by their keys."""
    found = [
        SchemaObject(kind, name, table, sql or "", bool(page))
        for kind, name, table, sql, page in db.execute(SELECT_OBJECTS)
    ]
    return {each.key: each for each in found}


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
