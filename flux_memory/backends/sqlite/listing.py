"""Selects and counts sessions in a SQLite memory: by activity, by user, by metadata."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from typing import Any, Final, NamedTuple

from flux_memory import records
from flux_memory.backends.sqlite.fetching import fetch
from flux_memory.records.checking import MAX_COUNT
from flux_memory.records.metadata import read_exactly

Rows = list[tuple[Any, ...]]

# Only these columns: an application may have added others to `sessions`.
SELECT_SESSIONS: Final = "SELECT id, user_id, created_at, updated_at, message_count, revision FROM sessions"
METADATA: Final = "coalesce(details.metadata, '{}')"
NO_METADATA: Final = "'{}'"
# A session that another program inserted may have no details.
WITH_DETAILS: Final = """
SELECT id, user_id, coalesce(details.title, ''), created_at, updated_at, {metadata}, revision, message_count
FROM ({sessions}) AS page LEFT JOIN session_details AS details ON details.session_id = page.id
"""
SELECT_SESSION: Final = WITH_DETAILS.format(metadata=METADATA, sessions=SELECT_SESSIONS + " WHERE id = ?")
OF_USER: Final = "{plus}user_id = :user_id"
AFTER_CURSOR: Final = "({plus}updated_at, id) < (:cursor_time, :cursor_id)"
NEWEST_FIRST: Final = "ORDER BY updated_at DESC, id DESC\nLIMIT :limit OFFSET :offset"
# The inner LIMIT is an optimizer fence: SQLite walks the sessions in order and reads the details one by one, of those
# in the page, or of those to test until the page is full.
AMONG_NEWEST: Final = "ORDER BY updated_at DESC, id DESC LIMIT :most"
# The unary plus signs keep SQLite from using another index than that of the candidates.
AMONG_CANDIDATES: Final = "ORDER BY +updated_at DESC, +id DESC LIMIT -1"
CANDIDATE: Final = "id IN (SELECT session_id FROM session_metadata WHERE {entry})"
MATCHING: Final = """
{with_details}
WHERE {has}
LIMIT :limit OFFSET :offset
"""
COUNT_SESSIONS: Final = "SELECT count(*) FROM sessions"
COUNT_MATCHING: Final = "SELECT count(*) FROM ({matching})"
COUNT_UP_TO: Final = "SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {condition} LIMIT :most)"
ENTRY: Final = "key = :key{n} AND member = :member{n} AND value IN (:value{n}, :other{n})"
HAS_ENTRY: Final = "EXISTS (SELECT 1 FROM session_metadata WHERE {entry} AND session_id = page.id)"
# As bytes: sqlite3 cannot pass text that is not UTF-8 to a function, so one corrupt row would end the listing.
CONTAINS: Final = "jsonb_contains(CAST(coalesce(details.metadata, '{}') AS BLOB), :metadata)"

_FIRST_WALK_FACTOR: Final = 4
"""Sessions tested for each one of the page in the first walk; each further walk tests as many times more."""
_INDEXED_ENTRIES: Final = 8
"""Entries of the filter that are looked up in `session_metadata`; the whole filter is tested anyway."""
_KEY_CHARACTERS: Final = 100
"""Characters that `session_metadata` keeps of a key or a text."""


class Criteria(NamedTuple):
    """Which sessions a page or a count is of; `None` is a criterion that is not given."""

    user_id: str | None
    part: str | None
    """A JSON object that the metadata contains."""
    cursor: tuple[str, str] | None = None
    """The `updated_at` and the id of the session that they follow in a listing."""

    def conditions(self, plus: str = "") -> list[str]:
        """Return the conditions on columns of `sessions`; with a plus sign, SQLite uses no index for them."""
        given = [OF_USER] * (self.user_id is not None) + [AFTER_CURSOR] * (self.cursor is not None)
        return [each.format(plus=plus) for each in given]

    def values(self) -> dict[str, object]:
        """Return the values of the parameters."""
        time, id_ = self.cursor or (None, None)
        return {"user_id": self.user_id, "metadata": self.part, "cursor_time": time, "cursor_id": id_}


def check_criteria(user_id: object, metadata: object, before: object = None) -> Criteria:
    """Return the checked arguments of a listing.

    Args:
        user_id: The owner, or `None`.
        metadata: The filter, or `None`.
        before: A session's record, or `None`.

    Raises:
        InvalidInputError: An argument is invalid.
    """
    user = None if user_id is None else records.check_lookup("user_id", user_id)
    return Criteria(user, records.check_filter(metadata), records.check_session_cursor(before))


def select_page(limit: int, offset: int, criteria: Criteria, with_metadata: bool, db: sqlite3.Connection) -> Rows:
    """Return the rows of a page of sessions, the newest activity first.

    Args:
        limit: How many.
        offset: How many to skip.
        criteria: Which sessions.
        with_metadata: Whether to read the metadata of the page.
        db: The connection; its transaction stays open if the criteria have metadata.
    """
    metadata = METADATA if with_metadata else NO_METADATA
    values = criteria.values() | {"limit": limit, "offset": offset}
    if criteria.part is not None:
        search = MetadataSearch(criteria, criteria.part, metadata)
        return _by_metadata(search, values | search.values, min(limit + offset, MAX_COUNT), db)
    sessions = f"{SELECT_SESSIONS} {_where(criteria.conditions())} {NEWEST_FIRST}"
    return fetch(WITH_DETAILS.format(metadata=metadata, sessions=sessions), values, db)


def count(criteria: Criteria, db: sqlite3.Connection) -> int:
    """Return the number of sessions that meet the criteria.

    Args:
        criteria: Which sessions.
        db: The connection; its transaction stays open if the criteria have metadata.
    """
    values = criteria.values()
    if criteria.part is None:
        return _number(f"{COUNT_SESSIONS} {_where(criteria.conditions())}", values, db)
    db.execute("BEGIN")
    search = MetadataSearch(criteria, criteria.part, NO_METADATA)
    values |= search.values | {"limit": -1, "offset": 0}
    rarest, most = None, 1
    while search.entries and rarest is None:
        most = min(most * _FIRST_WALK_FACTOR, MAX_COUNT)
        rarest = search.find_rare(values, most, db)
    return _number(COUNT_MATCHING.format(matching=search.among_candidates(rarest)), values, db)


def _by_metadata(search: MetadataSearch, values: dict[str, object], wanted: int, db: sqlite3.Connection) -> Rows:
    """Walk the newest sessions if many match, or sort the matching ones if few do.

    The number of matches is not known in advance, so both are tried with a growing bound. The worst case costs as much
    as the square root of the number of sessions.
    """
    # The statements must see one state of the file. The worker ends the transaction.
    db.execute("BEGIN")
    if not search.entries:
        return fetch(search.among_newest(), values | {"most": -1}, db)
    most = max(wanted, 1)
    while True:
        most = min(most * _FIRST_WALK_FACTOR, MAX_COUNT)
        if rarest := search.find_rare(values, most, db):
            return fetch(search.among_candidates(rarest), values, db)
        found = fetch(search.among_newest(), values | {"most": most}, db)
        if len(found) == values["limit"] or search.covers_all(values, most, db):
            return found


class MetadataSearch:
    """The statements that test the metadata of sessions for an object.

    Args:
        criteria: Which sessions.
        part: The object as JSON text.
        metadata: What the statements select as metadata.
    """

    def __init__(self, criteria: Criteria, part: str, metadata: str) -> None:
        self.entries: list[str] = []
        """Conditions on rows of `session_metadata`; each match has a row for each."""
        self.values: dict[str, object] = {}
        for n, entry in enumerate(islice(_entries(read_exactly(part)), _INDEXED_ENTRIES)):
            self.entries.append(ENTRY.format(n=n))
            self.values |= {f"{name}{n}": value for name, value in entry._asdict().items()}
        self._criteria = criteria
        self._metadata = metadata
        self._has = " AND ".join([*(HAS_ENTRY.format(entry=entry) for entry in self.entries), CONTAINS])

    def find_rare(self, values: dict[str, object], most: int, db: sqlite3.Connection) -> str | None:
        """Return an entry that fewer than `most` sessions have, if there is one."""
        return next((entry for entry in self.entries if _are_fewer("session_metadata", entry, values, most, db)), None)

    def covers_all(self, values: dict[str, object], most: int, db: sqlite3.Connection) -> bool:
        """Return whether fewer than `most` sessions meet the criteria beside the metadata; false if there are none."""
        conditions = self._criteria.conditions()
        return bool(conditions) and _are_fewer("sessions", " AND ".join(conditions), values, most, db)

    def among_newest(self) -> str:
        """Return the statement that tests the newest sessions, as many as `:most`."""
        return self._among(f"{_where(self._criteria.conditions())} {AMONG_NEWEST}")

    def among_candidates(self, entry: str | None) -> str:
        """Return the statement that tests the sessions that have an entry, or all."""
        if entry is None:
            return self._among(_where(self._criteria.conditions()))
        conditions = [CANDIDATE.format(entry=entry), *self._criteria.conditions("+")]
        return self._among(f"{_where(conditions)} {AMONG_CANDIDATES}")

    def _among(self, which: str) -> str:
        with_details = WITH_DETAILS.format(metadata=self._metadata, sessions=f"{SELECT_SESSIONS} {which}")
        return MATCHING.format(with_details=with_details, has=self._has)


def _where(conditions: list[str]) -> str:
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""


def _are_fewer(table: str, condition: str, values: dict[str, object], most: int, db: sqlite3.Connection) -> bool:
    sql = COUNT_UP_TO.format(table=table, condition=condition)
    return _number(sql, values | {"most": most}, db) < most


def _number(sql: str, values: dict[str, object], db: sqlite3.Connection) -> int:
    ((number,),) = fetch(sql, values, db)
    return int(number)


class _Entry(NamedTuple):
    """A row of `session_metadata` that every match has; `schema/sqlite/0006_narrow_sessions.sql` makes the rows."""

    key: str
    member: str
    value: str
    other: str
    """The second form of an equal value, or `value` again."""


def _entries(part: dict[str, Any]) -> Iterator[_Entry]:
    for key, item in part.items():
        if isinstance(item, dict) and item:
            inner = [("." + name[:_KEY_CHARACTERS], value) for name, value in item.items()]
        elif isinstance(item, list) and item:
            inner = [("[]", value) for value in item]
        else:
            inner = [("", item)]
        for member, value in inner:
            yield _Entry(key[:_KEY_CHARACTERS], member, *_forms(value))


def _forms(value: object) -> tuple[str, str]:
    if isinstance(value, str):
        form = '"' + value[:_KEY_CHARACTERS]
    elif value is None:
        form = "null"
    elif isinstance(value, bool):
        form = "true" if value else "false"
    elif isinstance(value, int | Decimal):
        # 5, 5.0 and 5e0 are equal, and only the first is an integer in SQLite.
        return "#", str(int(value)) if value == int(value) else "#"
    else:
        form = "array" if isinstance(value, list) else "object"
    return form, form
