"""Pages of sessions in a SQLite memory: by activity, of a user, by metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import islice
from typing import Any, Final, NamedTuple

from flux_memory import records
from flux_memory.records import json_metadata

Rows = list[tuple[Any, ...]]
Fetch = Callable[[str, dict[str, object]], Rows]
"""Runs a statement with its values and returns the rows."""

SELECT_SESSIONS: Final = """
SELECT id, user_id, title, created_at, updated_at, metadata, message_count
FROM sessions
"""
OF_USER: Final = "user_id = :user_id"
NEWEST_FIRST: Final = "ORDER BY updated_at DESC, id DESC\nLIMIT :limit OFFSET :offset"
# The inner limit is a fence: the newest are walked in order and tested one by one, until the page is full.
SELECT_AMONG_NEWEST: Final = """
SELECT *
FROM ({sessions} ORDER BY updated_at DESC, id DESC LIMIT :most) AS sessions
WHERE {has}
LIMIT :limit OFFSET :offset
"""
# The signs keep SQLite from walking another index than the candidates'.
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
# As bytes, since sqlite3 cannot hand over text that is not UTF-8: one corrupt row would end the listing.
CONTAINS: Final = "jsonb_contains(CAST(metadata AS BLOB), :metadata)"

_FIRST_TRY: Final = 4
"""Sessions looked at for each one of the page before the other way is tried."""
_MOST_ENTRIES: Final = 8
"""Entries that the keys are asked for; the test of the whole follows anyway."""
_CUT: Final = 100
"""Characters of a key or a text in `session_metadata`."""


def page(fetch: Fetch, limit: int, offset: int, user_id: str | None, part: str | None) -> Rows:
    """Return a page of sessions, the newest activity first.

    Args:
        fetch: Runs a statement.
        limit: How many.
        offset: How many to pass over.
        user_id: Only this user's.
        part: Only sessions whose metadata contains this JSON object.
    """
    values: dict[str, object] = {"limit": limit, "offset": offset, "user_id": user_id}
    of_user = "" if user_id is None else OF_USER
    if part is not None:
        return _by_metadata(fetch, values | {"metadata": part}, of_user, min(limit + offset, records.MAX_COUNT))
    return fetch(f"{SELECT_SESSIONS}{of_user and 'WHERE ' + of_user}\n{NEWEST_FIRST}", values)


def _by_metadata(fetch: Fetch, values: dict[str, object], of_user: str, wanted: int) -> Rows:
    """Walk the newest sessions where many match, and sort the matching ones where few do: whatever ends first.

    How many match is not known before, so that both are tried with a bound that grows. What that costs at most
    depends on the square root of the number of sessions.
    """
    sessions = f"{SELECT_SESSIONS}{of_user and 'WHERE ' + of_user}"
    entries = []
    for n, entry in enumerate(islice(_entries(json_metadata.read_exactly(str(values["metadata"]))), _MOST_ENTRIES)):
        entries.append(ENTRY.format(n=n))
        values |= {f"key{n}": entry.key, f"member{n}": entry.member, f"value{n}": entry.value, f"other{n}": entry.other}
    has = " AND ".join([*(HAS_ENTRY.format(entry=entry) for entry in entries), CONTAINS])
    walk = SELECT_AMONG_NEWEST.format(sessions=sessions, has=has)
    if not entries:
        return fetch(walk, values | {"most": -1})
    most = max(wanted, 1)
    while True:
        most = min(most * _FIRST_TRY, records.MAX_COUNT)
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
    """What a row of `session_metadata` has at least for metadata to match; see the schema file that makes the rows."""

    key: str
    member: str
    value: str
    other: str
    """The other value that stands for the same, or `value` again."""


def _entries(part: dict[str, Any]) -> Iterator[_Entry]:
    for key, item in part.items():
        if isinstance(item, dict) and item:
            inner = [("." + name[:_CUT], value) for name, value in item.items()]
        elif isinstance(item, list) and item:
            inner = [("[]", value) for value in item]
        else:
            inner = [("", item)]
        for member, value in inner:
            yield _Entry(key[:_CUT], member, *_forms(value))


def _forms(value: object) -> tuple[str, str]:
    if isinstance(value, str):
        form = '"' + value[:_CUT]
    elif value is None:
        form = "null"
    elif isinstance(value, bool):
        form = "true" if value else "false"
    elif isinstance(value, int | Decimal):
        # Equal as numbers: 5, 5.0 and 5e0, of which only the first is an integer in SQLite.
        return "#", str(int(value)) if value == int(value) else "#"
    else:
        form = "array" if isinstance(value, list) else "object"
    return form, form
