"""Reads a SQLite memory: the layout of its tables, unknown parts, and the rows in their order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, tzinfo
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

from flux_memory.errors import MigrationError
from flux_memory.records.printing import shell_quoted
from flux_memory.schema import NARROWED, VERSION_TABLE, WITH_FEEDBACK, adopted_version, missing_steps
from flux_memory.schema import sqlite as schema
from flux_memory.schema.sqlite.objects import refuse_views_as_tables
from flux_memory.transfer.rows.postgres_time import microseconds
from flux_memory.transfer.rows.raw import FEEDBACK_FIELDS, RawRow

SELECT_TABLES: Final = (
    "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
)
SELECT_UNIQUE: Final = """
SELECT group_concat(columns.name)
FROM pragma_index_list(?) AS list, pragma_index_info(list.name) AS columns
WHERE list."unique" AND NOT list.partial
GROUP BY list.name
"""
# Only keys are sorted: a sorter holds sixteen rows at a time, which may have tens of megabytes each. The LIMIT is an
# optimizer fence.
SELECT_SESSIONS: Final = """
SELECT
    sessions.id, {user}, {details}.title, {details}.metadata, sessions.created_at, sessions.updated_at, repeated,
    sessions.rowid
FROM (
    SELECT rowid AS place, {repeated} AS repeated FROM sessions /* where */ ORDER BY id, rowid LIMIT -1
) AS keys
LEFT JOIN sessions ON sessions.rowid = place
"""
JOIN_DETAILS: Final = "LEFT JOIN session_details ON session_details.session_id = sessions.id"
SELECT_MESSAGES: Final = """
SELECT session_id, id, role, content, metadata, created_at, repeated, messages.rowid
FROM (
    SELECT rowid AS place, {repeated} AS repeated FROM messages /* where */ ORDER BY session_id, {order} LIMIT -1
) AS keys
LEFT JOIN messages ON messages.rowid = place
"""
SELECT_FEEDBACK: Final = """
SELECT {columns}
FROM (SELECT rowid AS place FROM feedback ORDER BY id, rowid LIMIT -1) AS keys
LEFT JOIN feedback ON feedback.rowid = place
"""
WHERE: Final = "/* where */"
SELECT_MIDDLE: Final = """
SELECT session_id FROM messages ORDER BY session_id LIMIT 1 OFFSET (SELECT count(*) / 2 FROM messages)
"""

_ORIGINAL: Final = {
    "sessions": {"id", "user_id", "title", "created_at", "updated_at", "metadata"},
    "messages": {"id", "session_id", "role", "content", "metadata", "created_at"},
}
_WIDE: Final = {
    "sessions": {*_ORIGINAL["sessions"], "message_count"},
    "messages": {*_ORIGINAL["messages"], "seq"},
}
_SPLIT: Final = {
    "sessions": {"id", "user_id", "created_at", "updated_at", "message_count", "revision"},
    "session_details": {"session_id", "title", "metadata"},
    "messages": _WIDE["messages"],
}
_FEEDBACK: Final = set(FEEDBACK_FIELDS)
_DERIVED: Final = {VERSION_TABLE, "session_metadata", "session_metadata_wanted"}
"""Tables and views of the library whose content follows from the rows."""


class Part(NamedTuple):
    """A range of sessions by id."""

    first: str | None = None
    """First id, inclusive; `None` is the beginning, including ids that are not text."""
    end: str | None = None
    """Last id, exclusive; `None` is the end."""


EVERYTHING: Final = Part()


@dataclass(frozen=True)
class Layout:
    """Which columns and keys the tables of a SQLite memory have."""

    has_user_id: bool
    has_details: bool
    """Whether titles and metadata are in `session_details`."""
    has_feedback: bool
    """Whether there is a table of feedback."""
    numbered: bool
    """Whether messages have a `seq`."""
    unique_sessions: bool
    unique_messages: bool
    unknown: tuple[str, ...]
    """Tables, and columns as `table.column`, that the library does not know."""


def inspect_source(db: sqlite3.Connection) -> Layout:
    """Return the layout of a file.

    Raises:
        MigrationError: The file is not a readable conversation memory.
        SchemaError: The schema is newer than the library, or belongs to another application.
    """
    refuse_views_as_tables(db)
    tables = {name for (name,) in db.execute(SELECT_TABLES)}
    if not tables & set(_ORIGINAL):
        raise MigrationError(
            "the file has neither a table 'sessions' nor a table 'messages', so it holds no conversation memory; "
            "check --sqlite-path"
        )
    applied = schema.applied_versions(db)
    missing_steps("sqlite", applied)
    known = _SPLIT if max(applied, default=0) >= NARROWED else _WIDE
    columns = {table: {name for (name,) in db.execute(schema.SELECT_COLUMNS, (table,))} for table in known}
    if not applied and adopted_version({table: columns[table] & _ORIGINAL[table] for table in _ORIGINAL}) == 0:
        raise MigrationError("the tables 'sessions' and 'messages' are not conversation memory; check --sqlite-path")
    of_feedback = {name for (name,) in db.execute(schema.SELECT_COLUMNS, ("feedback",))}
    # The scratch file of a retry has the columns, and no version.
    has_feedback = max(applied, default=0) >= WITH_FEEDBACK or of_feedback == _FEEDBACK
    if has_feedback:
        known, columns = known | {"feedback": _FEEDBACK}, columns | {"feedback": of_feedback}
        if lacking := _FEEDBACK - of_feedback:
            raise MigrationError(
                f"the table 'feedback' is missing or lacks {', '.join(sorted(lacking))}; restore a backup and move that"
            )
    unique = {table: {key for (key,) in db.execute(SELECT_UNIQUE, (table,))} for table in known}
    if "session_details" in known and "session_id" not in unique["session_details"]:
        raise MigrationError(
            "the table 'session_details' is missing, or has no key on session_id, so titles and metadata of sessions "
            "are not certain; restore a backup, and move that"
        )
    encoding = db.execute("PRAGMA encoding").fetchone()[0]
    if encoding != "UTF-8":
        raise MigrationError(
            f"the file stores text as {encoding}; make one in UTF-8 with: sqlite3 OLD .dump | sqlite3 NEW"
        )
    unknown = sorted(tables - set(known) - _DERIVED) + sorted(
        f"{table}.{name}" for table, names in columns.items() for name in names - known[table]
    )
    return Layout(
        has_user_id="user_id" in columns["sessions"],
        has_details="session_details" in known,
        has_feedback=has_feedback,
        numbered="seq" in columns["messages"],
        unique_sessions="id" in unique["sessions"],
        unique_messages=bool(unique["messages"] & {"id", "session_id,id", "id,session_id"}),
        unknown=tuple(unknown),
    )


class Source:
    """The rows of a SQLite memory: sessions ordered by the bytes of their ids, messages by their place in the session.

    Args:
        db: A snapshot.
        layout: The layout of its tables.
        naive: The zone of times without an offset.
    """

    def __init__(self, db: sqlite3.Connection, layout: Layout, naive: tzinfo = UTC) -> None:
        self.layout = layout
        self.naive = naive
        self.by_time = False
        """Sort by the times' values; text of mixed forms does not sort by time."""
        self.tolerant = False
        """Decode bytes that are not UTF-8 to lone surrogates."""
        self._db = db
        db.create_function("microseconds", 1, partial(_sortable, naive), deterministic=True)

    def be_tolerant(self) -> None:
        """From now on decode bytes that are not UTF-8 to lone surrogates instead of failing."""
        self.tolerant = True
        self._db.text_factory = _tolerant_text

    def interrupt(self) -> None:
        """Stop the running query; safe from any thread."""
        self._db.interrupt()

    def count(self) -> tuple[int, int]:
        """Return the numbers of sessions and messages."""
        sessions = self._db.execute("SELECT count(*) FROM sessions").fetchone()[0]
        return sessions, self._db.execute("SELECT count(*) FROM messages").fetchone()[0]

    def middle(self) -> str | None:
        """Return the session id of the middle message, or `None` if it is not valid text."""
        try:
            (middle,) = self._db.execute(SELECT_MIDDLE).fetchone() or (None,)
        except sqlite3.OperationalError:
            # The id is not UTF-8; the preflight reports it.
            return None
        return middle if isinstance(middle, str) else None

    def sessions(self, part: Part = EVERYTHING) -> Iterator[RawRow]:
        """Iterate over the sessions."""
        return self._part(self._select_sessions(), "id", part)

    def session(self, session_id: str) -> RawRow | None:
        """Return a session, or `None` if it does not exist."""
        return next(self._rows(self._select_sessions(), "WHERE id = ?", session_id), None)

    def messages(self, part: Part = EVERYTHING) -> Iterator[RawRow]:
        """Iterate over the messages, session by session."""
        return self._part(self._select_messages(), "session_id", part)

    def messages_of(self, session_id: str) -> Iterator[RawRow]:
        """Iterate over a session's messages."""
        return self._rows(self._select_messages(), "WHERE session_id = ?", session_id)

    def feedback(self) -> Iterator[RawRow]:
        """Iterate over the feedback, ordered by the bytes of its ids; rows end with their own fields."""
        if self.layout.has_feedback:
            columns = ", ".join(f"feedback.{name}" for name in FEEDBACK_FIELDS)
            yield from self._db.execute(SELECT_FEEDBACK.format(columns=columns))

    def _select_sessions(self) -> str:
        user = "sessions.user_id" if self.layout.has_user_id else "''"
        repeated = "0" if self.layout.unique_sessions else "row_number() OVER (PARTITION BY id ORDER BY rowid) > 1"
        if not self.layout.has_details:
            return SELECT_SESSIONS.format(user=user, details="sessions", repeated=repeated)
        return SELECT_SESSIONS.format(user=user, details="session_details", repeated=repeated) + JOIN_DETAILS

    def _select_messages(self) -> str:
        order = "created_at, rowid"
        if self.layout.numbered:
            order = "seq"
        elif self.by_time:
            order = "microseconds(created_at), rowid"
        repeated = "0"
        if not self.layout.unique_messages:
            repeated = f"row_number() OVER (PARTITION BY session_id, id ORDER BY {order}) > 1"
        return SELECT_MESSAGES.format(order=order, repeated=repeated)

    def _part(self, select: str, column: str, part: Part) -> Iterator[RawRow]:
        if part.first is not None:
            return self._rows(select, f"WHERE {column} >= ?", part.first)
        if part.end is None:
            return self._rows(select, "")
        # With an OR, SQLite would sort instead of reading in index order.
        return chain(self._rows(select, f"WHERE {column} IS NULL"), self._rows(select, f"WHERE {column} < ?", part.end))

    def _rows(self, select: str, where: str, *values: str) -> Iterator[RawRow]:
        for row in self._db.execute(select.replace(WHERE, where), values):
            if row[7] is None:
                raise sqlite3.DatabaseError("an index names a row that is not there")
            yield row


def refuse_unknown(layout: Layout, left_behind: Iterable[str]) -> None:
    """Refuse to drop unknown tables and columns silently.

    Raises:
        MigrationError: The file has unknown tables or columns that are not in `left_behind`; the message names them.
    """
    refused = [name for name in layout.unknown if name not in set(left_behind)]
    if refused:
        options = " ".join(f"--leave-behind {shell_quoted(name)}" for name in refused)
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
