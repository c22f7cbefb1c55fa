"""The SQL of the reads: histories, single messages, sessions, their listing and their number."""

from __future__ import annotations

from typing import Final

from flux_memory.backends.postgres.lookup import FIND_MESSAGE, MESSAGE_OF_SESSION

# Times and JSON cross the wire as text: a borrowed pool may have codecs of its own, and the records need text. A time
# before Christ keeps its BC, so that it is not read as a later one.

SELECT_MESSAGE_COLUMNS: Final = """
SELECT id, role, content, metadata::text, rtrim(to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD')
"""
SELECT_MESSAGES: Final = SELECT_MESSAGE_COLUMNS + "FROM messages\nWHERE session_id::text = $1\n"
SELECT_HISTORY: Final = SELECT_MESSAGES + "ORDER BY seq DESC\nLIMIT $2"
CURSOR: Final = f"SELECT seq FROM {FIND_MESSAGE.format(session='$1', id='$3')} WHERE found.id::text = $3"  # noqa: S608 - constants of ours
FROM_CURSOR: Final = f"    AND seq {{}} ({CURSOR})\n"
SELECT_HISTORY_BEFORE: Final = SELECT_MESSAGES + FROM_CURSOR.format("<") + "ORDER BY seq DESC\nLIMIT $2"
SELECT_HISTORY_AFTER: Final = SELECT_MESSAGES + FROM_CURSOR.format(">") + "ORDER BY seq\nLIMIT $2"
SELECT_MESSAGE: Final = f"{SELECT_MESSAGE_COLUMNS}FROM {MESSAGE_OF_SESSION}\nWHERE found.id::text = $2"

# A session that another program made has no details.
SELECT_SESSIONS: Final = """
SELECT
    id,
    user_id,
    coalesce(title, ''),
    rtrim(to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD'),
    rtrim(to_char(updated_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD'),
    coalesce(metadata, '{}')::text,
    revision::text,
    message_count
"""
SELECT_SESSION: Final = (
    SELECT_SESSIONS + "FROM sessions LEFT JOIN session_details ON session_id::text = id::text\nWHERE id::text = $1"
)
SELECT_SESSIONS_WITHOUT_METADATA: Final = SELECT_SESSIONS.replace("coalesce(metadata, '{}')::text", "'{}'")
NEWEST_FIRST: Final = 'ORDER BY updated_at DESC, id COLLATE "C" DESC'
OF_USER: Final = "user_id = ${}"
BEFORE: Final = '(updated_at, id::text COLLATE "C") < (${}::text::timestamp, ${}::text COLLATE "C")'
EVERYTHING: Final = "{}"
"""The filter that all metadata contains, also that of a session without details."""
CONTAINS: Final = "metadata @> ${}::text::jsonb"
# OFFSET 0 is an optimizer fence: without it, the planner may read the details of all sessions for a page of a few.
DETAILS: Final = """LATERAL (
        SELECT title, metadata
        FROM session_details
        WHERE session_id::text = sessions.id::text
        OFFSET 0
    ) AS details"""
PAGE: Final = """
    SELECT *
    FROM sessions
    {where}
    {order}
    LIMIT $1 OFFSET $2
"""
PAGE_BY_METADATA: Final = """
    SELECT sessions.*
    FROM sessions
    JOIN session_details ON session_id::text = id::text AND {contains}
    {where}
    {order}
    LIMIT $1 OFFSET $2
"""
# Another fence: PostgreSQL walks the user's sessions in order and tests each until the page is full. Without it, the
# planner reads the sessions of all users that have the metadata.
PAGE_OF_USER_BY_METADATA: Final = """
    SELECT sessions.*
    FROM (SELECT * FROM sessions {where} {order} OFFSET 0) AS sessions
    JOIN {details} ON {contains}
    LIMIT $1 OFFSET $2
"""

# Without casts, by which a cluster would not see that the rows are on one server. The operator of another schema, which
# could be a better match for the columns' type, is not called.
BESIDE: Final = "session_id OPERATOR(pg_catalog.=) sessions.id"
"""The condition under which details belong to a session."""

COUNT_SESSIONS: Final = "SELECT count(*) FROM sessions"
COUNT_SESSIONS_OF_USER: Final = COUNT_SESSIONS + " WHERE user_id = $1"
COUNT_SESSIONS_BY_METADATA: Final = "SELECT count(*) FROM session_details WHERE metadata @> $1::text::jsonb"
COUNT_SESSIONS_OF_USER_BY_METADATA: Final = f"""
SELECT count(*)
FROM sessions
JOIN session_details ON {BESIDE}
WHERE user_id = $1 AND metadata @> $2::text::jsonb
"""  # noqa: S608 - constants of ours


def select_page(
    limit: int,
    offset: int,
    *,
    user: str | None = None,
    part: str | None = None,
    before: tuple[str, str] | None = None,
    with_metadata: bool = True,
) -> tuple[str, list[object]]:
    """Return the statement that reads a page of sessions, and its values; the arguments are checked.

    Args:
        limit: The largest number of sessions.
        offset: The number of sessions to skip.
        user: The owner, or `None`.
        part: The metadata filter as JSON text, or `None`.
        before: The `updated_at` and the id of the session before the page, or `None`.
        with_metadata: Whether to read the metadata.
    """
    values: list[object] = [limit, offset]
    part = None if part == EVERYTHING else part

    def numbered(condition: str, *given: str) -> str:
        values.extend(given)
        return condition.format(*(f"{number}" for number in range(len(values) - len(given) + 1, len(values) + 1)))

    conditions = [
        *([] if user is None else [numbered(OF_USER, user)]),
        *([] if before is None else [numbered(BEFORE, *before)]),
    ]
    parts = {
        "where": f"WHERE {' AND '.join(conditions)}" if conditions else "",
        "order": NEWEST_FIRST,
        "details": DETAILS,
    }
    if part is None:
        page = PAGE.format(**parts)
    else:
        form = PAGE_BY_METADATA if user is None else PAGE_OF_USER_BY_METADATA
        page = form.format(**parts, contains=numbered(CONTAINS, part))
    columns = SELECT_SESSIONS if with_metadata else SELECT_SESSIONS_WITHOUT_METADATA
    return f"{columns}FROM ({page}) AS sessions\nLEFT JOIN {DETAILS} ON TRUE\n{NEWEST_FIRST}", values


def select_count(user: str | None, part: str | None) -> tuple[str, list[object]]:
    """Return the statement that counts sessions, and its values; see `select_page`."""
    if part is None or part == EVERYTHING:
        return (COUNT_SESSIONS, []) if user is None else (COUNT_SESSIONS_OF_USER, [user])
    if user is None:
        return COUNT_SESSIONS_BY_METADATA, [part]
    return COUNT_SESSIONS_OF_USER_BY_METADATA, [user, part]
