"""What a SQLite memory holds: its generation, what in it is unknown, and its rows in the order they were written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, tzinfo
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

from flux_memory.errors import MigrationError
from flux_memory.schema import VERSION_TABLE, adopted_version, missing
from flux_memory.schema import sqlite as schema
from flux_memory.transfer.rows.postgres_time import microseconds
from flux_memory.transfer.rows.raw import RawRow

SELECT_TABLES: Final = (
    "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
)
SELECT_UNIQUE: Final = """
SELECT group_concat(columns.name)
FROM pragma_index_list(?) AS list, pragma_index_info(list.name) AS columns
WHERE list."unique" AND NOT list.partial
GROUP BY list.name
"""
SELECT_MIDDLE: Final = """
SELECT session_id FROM messages ORDER BY session_id LIMIT 1 OFFSET (SELECT count(*) / 2 FROM messages)
"""

_KNOWN: Final = {
    "sessions": {"id", "user_id", "title", "created_at", "updated_at", "metadata", "message_count"},
    "messages": {"id", "session_id", "seq", "role", "content", "metadata", "created_at"},
}
_DERIVED: Final = {VERSION_TABLE, "session_metadata", "session_metadata_wanted"}
"""Tables and views of the library that say nothing which the rows do not."""


class Part(NamedTuple):
    """A range of sessions, in the order of their ids."""

    first: str | None = None
    """The id it begins with; `None` is the beginning, where ids that are no text come."""
    end: str | None = None
    """The id before which it ends; `None` is the end."""


EVERYTHING: Final = Part()


@dataclass(frozen=True)
class Layout:
    """What the tables of a SQLite memory look like."""

    has_user_id: bool
    numbered: bool
    """Whether messages carry their own order."""
    unique_sessions: bool
    unique_messages: bool
    unknown: tuple[str, ...]
    """Tables, and columns as `table.column`, that are not the library's."""


def inspect_source(db: sqlite3.Connection) -> Layout:
    """Find out what a file holds.

    Raises:
        MigrationError: It holds no conversation memory that can be read.
        SchemaError: It is newer than the library, or somebody else's.
    """
    tables = {name for (name,) in db.execute(SELECT_TABLES)}
    if not tables & set(_KNOWN):
        raise MigrationError(
            "the file has neither a table 'sessions' nor a table 'messages', so it holds no conversation memory; "
            "check --sqlite-path"
        )
    columns = {table: {name for (name,) in db.execute(schema.SELECT_COLUMNS, (table,))} for table in _KNOWN}
    applied = schema.applied_versions(db)
    if applied:
        missing("sqlite", applied)
    else:
        known = {table: names & (_KNOWN[table] - {"seq", "message_count"}) for table, names in columns.items()}
        if adopted_version(known) == 0:
            raise MigrationError(
                "the tables 'sessions' and 'messages' are not conversation memory; check --sqlite-path"
            )
    encoding = db.execute("PRAGMA encoding").fetchone()[0]
    if encoding != "UTF-8":
        raise MigrationError(
            f"the file stores text as {encoding}; make one in UTF-8 with: sqlite3 OLD .dump | sqlite3 NEW"
        )
    unknown = sorted(tables - set(_KNOWN) - _DERIVED) + sorted(
        f"{table}.{name}" for table, names in columns.items() for name in names - _KNOWN[table]
    )
    unique = {table: {key for (key,) in db.execute(SELECT_UNIQUE, (table,))} for table in _KNOWN}
    return Layout(
        has_user_id="user_id" in columns["sessions"],
        numbered="seq" in columns["messages"],
        unique_sessions="id" in unique["sessions"],
        unique_messages=bool(unique["messages"] & {"id", "session_id,id", "id,session_id"}),
        unknown=tuple(unknown),
    )


class Source:
    """The rows of a SQLite memory, sessions in the order of their ids' bytes, messages in the order of a session.

    Args:
        db: A snapshot.
        layout: What its tables look like.
        naive: The zone of times that name none.
    """

    def __init__(self, db: sqlite3.Connection, layout: Layout, naive: tzinfo = UTC) -> None:
        self.layout = layout
        self.naive = naive
        self.by_time = False
        """Sort by the times themselves, not by their text: mixed forms do not sort as text."""
        self.tolerant = False
        """Read text that is not UTF-8 as lone surrogates."""
        self._db = db
        db.create_function("microseconds", 1, partial(_sortable, naive), deterministic=True)

    def be_tolerant(self) -> None:
        """From now on read text that is not UTF-8 as lone surrogates, rather than fail."""
        self.tolerant = True
        self._db.text_factory = _tolerant_text

    def interrupt(self) -> None:
        """Stop what is being read, from another thread."""
        self._db.interrupt()

    def count(self) -> tuple[int, int]:
        """Return how many sessions and how many messages there are."""
        sessions = self._db.execute("SELECT count(*) FROM sessions").fetchone()[0]
        return sessions, self._db.execute("SELECT count(*) FROM messages").fetchone()[0]

    def middle(self) -> str | None:
        """Return the id of the session that the message in the middle belongs to, if it is an ordinary text."""
        try:
            (middle,) = self._db.execute(SELECT_MIDDLE).fetchone() or (None,)
        except sqlite3.OperationalError:
            # Text that is not UTF-8; whoever reads all of it will say so.
            return None
        return middle if isinstance(middle, str) else None

    def sessions(self, part: Part = EVERYTHING) -> Iterator[RawRow]:
        """Return the sessions."""
        return self._part(self._select_sessions(), "id", part, "rowid")

    def session(self, session_id: str) -> RawRow | None:
        """Return one session."""
        return next(self._rows(f"{self._select_sessions()} WHERE id = ? ORDER BY rowid", session_id), None)

    def messages(self, part: Part = EVERYTHING) -> Iterator[RawRow]:
        """Return the messages session by session."""
        return self._part(self._select_messages(), "session_id", part, self._order())

    def messages_of(self, session_id: str) -> Iterator[RawRow]:
        """Return one session's messages."""
        return self._rows(f"{self._select_messages()} WHERE session_id = ? ORDER BY {self._order()}", session_id)

    def _select_sessions(self) -> str:
        user = "user_id" if self.layout.has_user_id else "''"
        repeated = "0" if self.layout.unique_sessions else "row_number() OVER (PARTITION BY id ORDER BY rowid) > 1"
        return (
            f"SELECT id, {user}, title, metadata, created_at, updated_at, {repeated}, rowid "  # noqa: S608 - ours
            "FROM sessions"
        )

    def _select_messages(self) -> str:
        repeated = (
            "0"
            if self.layout.unique_messages
            else f"row_number() OVER (PARTITION BY session_id, id ORDER BY {self._order()}) > 1"
        )
        return (
            f"SELECT session_id, id, role, content, metadata, created_at, {repeated}, rowid "  # noqa: S608 - ours
            "FROM messages"
        )

    def _order(self) -> str:
        if self.layout.numbered:
            return "seq"
        return "microseconds(created_at), rowid" if self.by_time else "created_at, rowid"

    def _part(self, select: str, column: str, part: Part, order: str) -> Iterator[RawRow]:
        by = f"ORDER BY {column}, {order}"
        if part.first is not None:
            return self._rows(f"{select} WHERE {column} >= ? {by}", part.first)
        if part.end is None:
            return self._rows(f"{select} {by}")
        # An OR of the two would keep SQLite from reading in the order of its index.
        return chain(
            self._rows(f"{select} WHERE {column} IS NULL {by}"),
            self._rows(f"{select} WHERE {column} < ? {by}", part.end),
        )

    def _rows(self, sql: str, *values: str) -> Iterator[RawRow]:
        cursor = self._db.cursor()
        cursor.arraysize = 64
        return iter(cursor.execute(sql, values))


def refuse_unknown(layout: Layout, left_behind: Iterable[str]) -> None:
    """Refuse what would be dropped silently.

    Raises:
        MigrationError: The file has tables or columns that nobody said to leave behind; the message names them.
    """
    refused = [name for name in layout.unknown if name not in set(left_behind)]
    if refused:
        options = " ".join(f"--leave-behind {name}" for name in refused)
        raise MigrationError(
            f"the file has tables or columns that conversation memory does not know: {', '.join(refused)}. They would "
            f"not be moved; save what you need of them, then run again with {options}"
        )


def _sortable(naive: tzinfo, value: object) -> int:
    try:
        return microseconds(value, naive)
    except ValueError:
        return 0


def _tolerant_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
