"""Compares the tables, keys, indexes, views and triggers of a SQLite file with those that the schema files create.

A trigger, a view in place of a table, or a further key decides what a write stores: one that the library did not make
would let a call acknowledge what is not stored.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from typing import Final, NamedTuple

from flux_memory.errors import SchemaError
from flux_memory.schema import VERSION_TABLE, SchemaFile, history
from flux_memory.schema.sqlite.catalog import SchemaObject, quoted, read_objects
from flux_memory.schema.sqlite.moved_columns import describe_users

SELECT_COLUMNS: Final = "SELECT name, upper(type) FROM pragma_table_info(?)"
SELECT_KEYS: Final = """
SELECT list.name, list.origin, group_concat(columns.name || ' ' || columns.coll, ', ')
FROM pragma_index_list(?) AS list, pragma_index_xinfo(list.name) AS columns
WHERE list."unique" AND NOT list.partial AND columns.key
GROUP BY list.name
"""
SELECT_UNIQUE_INDEXES: Final = "SELECT name FROM pragma_index_list(?) WHERE \"unique\" AND origin = 'c'"
SELECT_FOREIGN_KEYS: Final = 'SELECT lower("table"), "from", "to", on_delete FROM pragma_foreign_key_list(?)'

TABLES: Final = ("sessions", "messages")
_KEEPS_TEXT: Final = re.compile("(?!.*INT).*(CHAR|CLOB|TEXT|BLOB)|")
"""Declared types of columns that do not turn a text such as '007' into a number."""
_TEXTS: Final = {"id", "session_id", "user_id", "title", "role", "content"}
_CREATES: Final = re.compile(r"^CREATE (?:TABLE|VIEW|INDEX|TRIGGER) (\w+)", re.MULTILINE)
_ADDS: Final = re.compile(r"^ALTER TABLE sessions ADD COLUMN (\w+)", re.MULTILINE)
_SUPERSEDED: Final = {"idx_messages_session", "idx_sessions_user"}
"""Indexes of the original application that the schema files replace."""
_MAX_NAMED: Final = 5
_REBUILD: Final = "restore a backup, or move its rows to a new file"


class _Table(NamedTuple):
    columns: dict[str, str]
    """Declared types by name."""
    keys: set[str]
    foreign_keys: set[tuple[str, ...]]


def refuse_views_as_tables(db: sqlite3.Connection) -> None:
    """Refuse a file with a view or a virtual table in place of a table: it could return any number of rows, slowly.

    Raises:
        SchemaError: The file has such a view; the message names it.
    """
    _refuse(_views_as_tables(read_objects(db)))


def refuse_obstacles(db: sqlite3.Connection, steps: Sequence[SchemaFile], *, adopting: bool) -> None:
    """Refuse a file in which the schema files cannot be applied without a loss, or will not work afterwards.

    Args:
        db: A connection to the file, which is only read.
        steps: The files that are about to be applied.
        adopting: Whether the original application made the tables.

    Raises:
        SchemaError: The file has obstacles; the message names them, and what to do.
    """
    found = read_objects(db)
    earlier = _expected(steps[0].version - 1)
    # The steps replace the views and triggers of earlier ones, on whose work they build.
    changed = _changed_objects(found, (each for each in earlier.objects.values() if each.type in {"view", "trigger"}))
    names = _taken_names(found, steps, earlier, adopting=adopting)
    columns = _taken_columns(db, steps)
    sessions = _unusable("sessions", _expected().tables["sessions"], _table(db, "sessions")) if adopting else ()
    users = describe_users(db, _theirs(found), steps)
    _refuse([*_views_as_tables(found), *_strangers(db, found), *changed, *names, *columns, *sessions, *users])


def verify(db: sqlite3.Connection) -> None:
    """Verify that a current file has what the schema files create, and nothing that changes what a write stores.

    Raises:
        SchemaError: The file differs; the message names each difference, and what to do.
    """
    found = read_objects(db)
    _refuse([*_views_as_tables(found), *_strangers(db, found), *_differences(db, found)])


def kept_indexes(db: sqlite3.Connection) -> list[SchemaObject]:
    """Return the indexes on messages that a user added: they go with the table when it is rebuilt."""
    return [
        index
        for index in read_objects(db).values()
        if index.type == "index" and index.table == "messages" and index.sql and index.name not in _SUPERSEDED
    ]


def foreign_views_and_triggers(db: sqlite3.Connection) -> list[SchemaObject]:
    """Return the views, and then the triggers, that other programs made."""
    theirs = [each for each in _theirs(read_objects(db)) if each.type in {"view", "trigger"}]
    return sorted(theirs, key=lambda each: each.type, reverse=True)


def _theirs(found: dict[str, SchemaObject]) -> list[SchemaObject]:
    return [each for name, each in found.items() if each.sql and name not in _expected().objects]


def _refuse(problems: Iterable[str]) -> None:
    named = list(dict.fromkeys(problems))
    if named:
        more = f"; and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
        raise SchemaError(f"{'; '.join(named[:_MAX_NAMED])}{more}. Nothing was changed")


def _views_as_tables(found: dict[str, SchemaObject]) -> Iterator[str]:
    for name in TABLES:
        if name in found and not (found[name].type == "table" and found[name].is_stored):
            kind = "view" if found[name].type == "view" else "virtual table"
            yield f"{name!r} is a {kind}, which flux-memory does not read; use a file that has the rows in a table"


def _strangers(db: sqlite3.Connection, found: dict[str, SchemaObject]) -> Iterator[str]:
    """Describe objects that other programs attached to the tables, and that could affect a write."""
    ours = _expected()
    for name, each in found.items():
        if each.type == "trigger" and each.table in {*ours.tables, VERSION_TABLE} and name not in ours.objects:
            yield (
                f"the trigger {each.name!r} on {each.table!r} could change or drop what is stored; save its SQL, and "
                f"drop it: DROP TRIGGER {quoted(each.name)}"
            )
        if each.type == "table" and each.is_stored and each.table not in ours.tables:
            foreign_keys = db.execute(SELECT_FOREIGN_KEYS, (each.name,)).fetchall()
            if any(parent == "messages" for parent, *_ in foreign_keys):
                yield (
                    f"the table {each.name!r} has a foreign key to 'messages', whose ids are unique only within a "
                    "session; create that table again without the key"
                )
    for table in ours.tables:
        for (name,) in db.execute(SELECT_UNIQUE_INDEXES, (table,)):
            yield (
                f"the unique index {name!r} on {table!r} would refuse what flux-memory stores; drop it: "
                f"DROP INDEX {quoted(name)}"
            )


def _taken_names(
    found: dict[str, SchemaObject], steps: Iterable[SchemaFile], earlier: _Expected, *, adopting: bool
) -> Iterator[str]:
    needed = {name for step in steps for name in _CREATES.findall(step.sql)} | (
        {"orphaned_messages"} if adopting else set()
    )
    taken = {each.name.lower(): each for name, each in found.items() if name not in earlier.objects}
    for name in sorted(needed & taken.keys()):
        each = taken[name]
        yield f"the {each.type} {each.name!r} has a name that flux-memory needs; rename it, or save and drop it"


def _taken_columns(db: sqlite3.Connection, steps: Iterable[SchemaFile]) -> Iterator[str]:
    needed = {column for step in steps for column in _ADDS.findall(step.sql)}
    for column in _table(db, "sessions").columns:
        if column.lower() in needed:
            yield f"the column {column!r} of 'sessions' has a name that flux-memory needs; rename it"


def _differences(db: sqlite3.Connection, found: dict[str, SchemaObject]) -> Iterator[str]:
    ours = _expected()
    yield from _changed_objects(found, ours.objects.values())
    for table, structure in ours.tables.items():
        if table in found:
            current = _table(db, table)
            for column in sorted(structure.columns.keys() - current.columns.keys()):
                yield f"the table {table!r} lacks the column {column!r}: {_REBUILD}"
            for parent, *_ in structure.foreign_keys - current.foreign_keys:
                yield f"the table {table!r} lacks the foreign key to {parent!r}: {_REBUILD}"
            yield from _unusable(table, structure, current)


def _changed_objects(found: dict[str, SchemaObject], ours: Iterable[SchemaObject]) -> Iterator[str]:
    """Describe what is missing of our objects, or has another definition."""
    for wanted in ours:
        if (each := found.get(wanted.key)) is None:
            yield f"the {wanted.type} {wanted.name!r} is missing; create it again: {_one_line(wanted.sql)}"
        elif wanted.type != "table" and _one_line(each.sql) != _one_line(wanted.sql):
            yield (
                f"the {each.type} {wanted.name!r} differs from flux-memory's; drop it, and create it again: "
                f"{_one_line(wanted.sql)}"
            )


def _unusable(name: str, wanted: _Table, found: _Table) -> Iterator[str]:
    """Describe keys and types with which a write would change, drop or refuse what it should store."""
    for column in _TEXTS & wanted.columns.keys() & found.columns.keys():
        if not _KEEPS_TEXT.fullmatch(found.columns[column]):
            yield f"the column {column!r} of {name!r} turns a text into a number: {_REBUILD}"
    for key in sorted(wanted.keys ^ found.keys):
        yield f"the table {name!r} {'lacks the' if key in wanted.keys else 'has a'} key ({key}): {_REBUILD}"


class _Expected(NamedTuple):
    objects: dict[str, SchemaObject]
    tables: dict[str, _Table]


@cache
def _expected(version: int = sys.maxsize) -> _Expected:
    """Return what the schema files up to a version create, by creating it."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for step in history("sqlite"):
            if step.version <= version:
                db.executescript(step.sql)
        objects = {name: each for name, each in read_objects(db).items() if each.sql}
        return _Expected(objects, {name: _table(db, name) for name, each in objects.items() if each.type == "table"})


def _table(db: sqlite3.Connection, name: str) -> _Table:
    return _Table(
        dict(db.execute(SELECT_COLUMNS, (name,)).fetchall()),
        {columns for _, origin, columns in db.execute(SELECT_KEYS, (name,)) if origin != "c"},
        set(db.execute(SELECT_FOREIGN_KEYS, (name,))),
    )


def _one_line(sql: str) -> str:
    return " ".join(sql.split())
