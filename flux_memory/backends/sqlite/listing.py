"""Selects a page of sessions in a SQLite memory: by activity, by user, by metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import islice
from typing import Any, Final, NamedTuple

from flux_memory.records.checking import MAX_COUNT
from flux_memory.records.metadata import read_exactly

Rows = list[tuple[Any, ...]]
Fetch = Callable[[str, dict[str, object]], Rows]
"""Runs a statement with its values and returns the rows."""

SELECT_SESSIONS: Final = """
SELECT id, user_id, title, created_at, updated_at, metadata, message_count
FROM sessions
"""
OF_USER: Final = "user_id = :user_id"
NEWEST_FIRST: Final = "ORDER BY updated_at DESC, id DESC\nLIMIT :limit OFFSET :offset"
# The inner LIMIT is an optimizer fence: SQLite walks the newest in order and tests each until the page is full.
SELECT_AMONG_NEWEST: Final = """
SELECT *
FROM ({sessions} ORDER BY updated_at DESC, id DESC LIMIT :most) AS sessions
WHERE {has}
LIMIT :limit OFFSET :offset
"""
# The unary plus signs keep SQLite from using another index than that of the candidates.
SELECT_CANDIDATES: Final = """
SELECT *
FROM (
    {sessions} WHERE id IN (SELECT session_id FROM session_metadata WHERE {rarest}) {of_user}
    ORDER BY +updated_at DESC, +id DESC
    LIMIT -1
) AS sessions
WHERE {has}
LIMIT :limit OFFSET :offset
"""
COUNT_UP_TO: Final = "SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {condition} LIMIT :most)"
ENTRY: Final = "key = :key{n} AND member = :member{n} AND value IN (:value{n}, :other{n})"
HAS_ENTRY: Final = "EXISTS (SELECT 1 FROM session_metadata WHERE {entry} AND session_id = sessions.id)"
# As bytes: sqlite3 cannot pass text that is not UTF-8 to a function, so one corrupt row would end the listing.
CONTAINS: Final = "jsonb_contains(CAST(metadata AS BLOB), :metadata)"

_FIRST_WALK_FACTOR: Final = 4
"""Sessions tested for each one of the page in the first walk; each further walk tests as many times more."""
_INDEXED_ENTRIES: Final = 8
"""Entries of the filter that are looked up in `session_metadata`; the whole filter is tested anyway."""
_KEY_CHARACTERS: Final = 100
"""Characters that `session_metadata` keeps of a key or a text."""


def page(fetch: Fetch, limit: int, offset: int, user_id: str | None, part: str | None) -> Rows:
    """Return a page of sessions, the newest activity first.

    Args:
        fetch: Runs a statement.
        limit: How many.
        offset: How many to skip.
        user_id: Only this user's sessions.
        part: Only sessions whose metadata contains this JSON object.
    """
    values: dict[str, object] = {"limit": limit, "offset": offset, "user_id": user_id}
    of_user = "" if user_id is None else OF_USER
    if part is not None:
        return _by_metadata(fetch, values | {"metadata": part}, of_user, min(limit + offset, MAX_COUNT))
    return fetch(f"{SELECT_SESSIONS}{of_user and 'WHERE ' + of_user}\n{NEWEST_FIRST}", values)


def _by_metadata(fetch: Fetch, values: dict[str, object], of_user: str, wanted: int) -> Rows:
    """Walk the newest sessions if many match, or sort the matching ones if few do.

    The number of matches is not known in advance, so both are tried with a growing bound. The worst case costs as much
    as the square root of the number of sessions.
    """
    sessions = f"{SELECT_SESSIONS}{of_user and 'WHERE ' + of_user}"
    entries = []
    for n, entry in enumerate(islice(_entries(read_exactly(str(values["metadata"]))), _INDEXED_ENTRIES)):
        entries.append(ENTRY.format(n=n))
        values |= {f"key{n}": entry.key, f"member{n}": entry.member, f"value{n}": entry.value, f"other{n}": entry.other}
    has = " AND ".join([*(HAS_ENTRY.format(entry=entry) for entry in entries), CONTAINS])
    walk = SELECT_AMONG_NEWEST.format(sessions=sessions, has=has)
    if not entries:
        return fetch(walk, values | {"most": -1})
    most = max(wanted, 1)
    while True:
        most = min(most * _FIRST_WALK_FACTOR, MAX_COUNT)
        values["most"] = most
        for rarest in entries:
            if _count(fetch, "session_metadata", rarest, values) < most:
                and_of_user = of_user and f"AND +{of_user}"
                return fetch(
                    SELECT_CANDIDATES.format(sessions=SELECT_SESSIONS, rarest=rarest, of_user=and_of_user, has=has),
                    values,
                )
        found = fetch(walk, values)
        if len(found) == values["limit"] or (of_user and _count(fetch, "sessions", of_user, values) < most):
            return found


def _count(fetch: Fetch, table: str, condition: str, values: dict[str, object]) -> int:
    ((count,),) = fetch(COUNT_UP_TO.format(table=table, condition=condition), values)
    return int(count)


class _Entry(NamedTuple):
    """A row of `session_metadata` that every match has; `schema/sqlite/0004_session_metadata.sql` makes the rows."""

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
