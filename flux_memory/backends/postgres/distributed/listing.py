"""The SQL that lists the sessions of a distributed store: each server sorts its own and sends one page."""

from __future__ import annotations

from typing import Final

from flux_memory.backends.postgres.queries import (
    BESIDE,
    CONTAINS,
    EVERYTHING,
    NEWEST_FIRST,
    OF_USER,
    SELECT_SESSIONS,
    SELECT_SESSIONS_WITHOUT_METADATA,
)

# Without a fence: one would send all sessions of a user to the coordinator.
PAGE: Final = f"FROM sessions\nLEFT JOIN session_details ON {BESIDE}\n{{where}}\n{NEWEST_FIRST}"
PAGE_BY_METADATA: Final = PAGE.replace("LEFT JOIN", "JOIN")
BEFORE: Final = """(updated_at < ${0}::text::timestamp
    OR updated_at = ${0}::text::timestamp AND id::text COLLATE "C" < ${1}::text COLLATE "C")"""


def select_page(
    limit: int,
    offset: int,
    *,
    user: str | None = None,
    part: str | None = None,
    before: tuple[str, str] | None = None,
    with_metadata: bool = True,
) -> tuple[str, list[object]]:
    """Return the statement that reads a page of sessions, and its values; see `queries.select_page`."""
    values: list[object] = [limit, offset]
    conditions = []
    for condition, given in [
        (OF_USER, [] if user is None else [user]),
        (BEFORE, [] if before is None else [*before]),
        (CONTAINS, [] if part is None or part == EVERYTHING else [part]),
    ]:
        if given:
            first = len(values) + 1
            values.extend(given)
            conditions.append(condition.format(*range(first, first + len(given))))
    page = PAGE if part is None or part == EVERYTHING else PAGE_BY_METADATA
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    columns = SELECT_SESSIONS if with_metadata else SELECT_SESSIONS_WITHOUT_METADATA
    return f"{columns}{page.format(where=where)}\nLIMIT $1 OFFSET $2", values
