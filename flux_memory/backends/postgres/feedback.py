"""`PostgresFeedback`: the feedback of a PostgreSQL database, and its SQL.

Each statement uses one table, so that feedback can be spread over several machines by its own id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, Final, NamedTuple

import asyncpg

from flux_memory import records
from flux_memory.backends.checked_feedback import CheckedFeedback
from flux_memory.backends.long_calls import LongCalls
from flux_memory.backends.postgres import dated_feedback
from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.locking import in_transaction
from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.errors import SchemaError
from flux_memory.records.limits import MAX_ID_LENGTH
from flux_memory.records.ratings import DatedFeedback, ImportOutcome

_INSERT: Final = """
INSERT INTO feedback (id, session_id, message_id, rating, comment, corrected_answer, metadata, user_id, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, statement_timestamp() AT TIME ZONE 'UTC')
"""
INSERT_FEEDBACK: Final = _INSERT + "ON CONFLICT (id) DO NOTHING\nRETURNING TRUE"
INSERT_OPENLY: Final = _INSERT + "RETURNING TRUE"
SELECT_SAME_ID: Final = """
SELECT session_id, message_id, rating, comment, corrected_answer, metadata::text FROM feedback WHERE id::text = $1
"""
# As in `queries`, times and JSON cross the wire as text.
SELECT_ENTRIES: Final = """
SELECT
    id,
    session_id,
    message_id,
    rating,
    comment,
    corrected_answer,
    metadata::text,
    rtrim(to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD')
FROM feedback
"""
SELECT_FEEDBACK: Final = (
    SELECT_ENTRIES
    + """{where}
ORDER BY created_at DESC, id COLLATE "C" DESC
LIMIT $1 OFFSET $2
"""
)
SELECT_FOLLOWING: Final = (
    SELECT_ENTRIES
    + """WHERE
    (created_at, id::text COLLATE "C") > ($1::text::timestamp, $2::text COLLATE "C")
ORDER BY created_at, id COLLATE "C"
LIMIT $3
"""
)
CRITERIA: Final = {
    "session_id": "session_id::text = ${}",
    "message_id": "message_id::text = ${}",
    "rating": "rating = ${}::smallint",
}
SELECT_STATS: Final = """
SELECT
    to_char(created_at, 'YYYY-MM-DD'),
    count(*) FILTER (WHERE rating = 1::smallint),
    count(*) FILTER (WHERE rating = -1::smallint),
    count(*) FILTER (WHERE rating = 0::smallint)
FROM feedback
WHERE created_at >= $1::text::timestamp
GROUP BY 1
ORDER BY 1
"""
DELETE_ENTRY: Final = "DELETE FROM feedback WHERE id::text = $1"
SELECT_ENTRY: Final = "SELECT EXISTS (SELECT 1 FROM feedback WHERE id::text = $1)"
SELECT_IDS_OF_USER: Final = """
SELECT id
FROM sessions
WHERE user_id = $1 AND id::text COLLATE "C" > $2::text COLLATE "C"
ORDER BY id COLLATE "C"
LIMIT $3
"""
DELETE_WITHOUT_OWNER: Final = "DELETE FROM feedback WHERE session_id::text = ANY ($1::text::text[]) AND user_id = ''"
DELETE_OF_USER: Final = "DELETE FROM feedback WHERE user_id = $1"
SELECT_OF_USER: Final = "SELECT EXISTS (SELECT 1 FROM feedback WHERE user_id = $1)"

_BATCH_SESSIONS: Final = 1_000
"""Sessions whose feedback one statement erases."""
_KEPT_ATTEMPTS: Final = 3
"""Deletions without effect after which something keeps the rows; fewer may have met a concurrent add."""
_HIDDEN_ATTEMPTS: Final = 3
"""Adds after which a policy hides the entry that has the id; fewer may have met one that was deleted just then."""
_BEFORE_ALL: Final = "-infinity"


class Access(NamedTuple):
    """The ways of a handle to its server."""

    rows: Callable[..., Awaitable[Sequence[Any]]]
    write: Callable[..., Awaitable[Any]]
    long: LongCalls
    timeout: float
    """Seconds of a call outside any `deadline()`."""


class PostgresFeedback(CheckedFeedback):
    """The feedback of a `PostgresConversationMemory`."""

    async def _add(self, access: Access, row: records.FeedbackRow, seconds: float) -> None:
        await access.write(lambda store, state: add_entry(store.executor, state, row), seconds)

    async def _select(self, access: Access, criteria: Mapping[str, Any], page: tuple[int, int]) -> Sequence[Any]:
        conditions = [CRITERIA[name].format(number) for number, name in enumerate(criteria, 3)]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        return await access.rows(SELECT_FEEDBACK.format(where=where), *page, *criteria.values())

    async def _count(self, access: Access, since: str | None) -> Sequence[Any]:
        return await access.rows(SELECT_STATS, since or _BEFORE_ALL)

    async def _delete(self, access: Access, feedback_id: str) -> None:
        if len(feedback_id) > MAX_ID_LENGTH:
            # A cluster refuses it; no entry has such an id.
            return
        statements, what = (DELETE_ENTRY, SELECT_ENTRY), f"the feedback {feedback_id!r:.80}"
        await access.write(lambda store, state: _delete_all(store.executor, state, statements, feedback_id, what))

    async def _add_dated(self, access: Access, entries: Sequence[DatedFeedback]) -> list[ImportOutcome]:
        outcomes: list[ImportOutcome] = await access.write(
            lambda store, state: dated_feedback.add_entries(store.executor, state, entries)
        )
        return outcomes

    async def _select_following(self, access: Access, after: tuple[str, str], limit: int) -> Sequence[Any]:
        moment, id_ = after
        return await access.rows(SELECT_FOLLOWING, moment or _BEFORE_ALL, id_, limit)


async def add_entry(executor: RetryingExecutor, state: CallState, row: records.FeedbackRow) -> bool:
    """Store an entry and return `True`; return `False` if it was stored before.

    Args:
        executor: Runs the statements.
        state: The state of the call.
        row: The entry.

    Raises:
        ConflictError: Another entry has the id.
        SchemaError: A trigger drops the entry.
    """
    for _ in range(_HIDDEN_ATTEMPTS):
        added, stored = await executor.run_on_any_lock(
            state, lambda connection: in_transaction(connection, partial(_insert, executor, connection, row))
        )
        if added:
            return True
        if stored is not None:
            if row.same_as(stored):
                return False
            raise records.feedback_id_taken(row.id)
    is_stored = await executor.run_on_any_lock(
        state, lambda connection: in_transaction(connection, partial(_insert_openly, executor, connection, row))
    )
    if is_stored is None:
        raise records.feedback_id_taken(row.id)
    if not is_stored:
        raise dated_feedback.dropped(row.id)
    return True


async def _insert(
    executor: RetryingExecutor, connection: Any, row: records.FeedbackRow
) -> tuple[bool, list[Any] | None]:
    """Insert an entry; return whether its id was free, and else the stored entry."""
    user_id = await dated_feedback.lock_owner(executor, connection, row.session_id)
    if await connection.fetch(INSERT_FEEDBACK, *row, user_id):
        return True, None
    stored = await connection.fetch(executor.path.statement(SELECT_SAME_ID), row.id)
    return False, [*stored[0]] if stored else None


async def _insert_openly(executor: RetryingExecutor, connection: Any, row: records.FeedbackRow) -> bool | None:
    """Insert an entry that was neither stored nor found, and return whether it is stored.

    Returns `None` if another entry, which a policy hides, has the id.
    """
    user_id = await dated_feedback.lock_owner(executor, connection, row.session_id)
    try:
        return bool(await connection.fetch(INSERT_OPENLY, *row, user_id))
    except asyncpg.UniqueViolationError:
        # The transaction is void, and its COMMIT rolls it back.
        return None


async def erase_without_owner(executor: RetryingExecutor, state: CallState, user_id: str) -> None:
    """Erase the feedback that was added before its session, which is the user's, was created."""
    reading, last = CallState(writes=False), ""
    while True:
        found = await executor.run(reading, methodcaller("fetch", SELECT_IDS_OF_USER, user_id, last, _BATCH_SESSIONS))
        ids = [session_id for (session_id,) in found]
        if ids:
            await executor.run_on_any_lock(state, methodcaller("execute", DELETE_WITHOUT_OWNER, write_texts(ids)))
        if len(ids) < _BATCH_SESSIONS:
            return
        last = ids[-1]


async def erase_of_user(executor: RetryingExecutor, state: CallState, user_id: str) -> None:
    """Erase the feedback of a user.

    Raises:
        SchemaError: A trigger or a policy keeps some of it.
    """
    await _delete_all(executor, state, (DELETE_OF_USER, SELECT_OF_USER), user_id, f"feedback of user {user_id!r:.80}")


async def _delete_all(
    executor: RetryingExecutor, state: CallState, statements: tuple[str, str], value: str, what: str
) -> None:
    """Delete rows until there are none.

    Raises:
        SchemaError: A trigger or a policy keeps some of them.
    """
    delete, select = map(executor.path.statement, statements)
    without_effect = 0
    while without_effect < _KEPT_ATTEMPTS:
        status: str = await executor.run_on_any_lock(state, methodcaller("execute", delete, value))
        ((is_left,),) = await executor.run(CallState(writes=False), methodcaller("fetch", select, value))
        if not is_left:
            return
        without_effect = without_effect + 1 if status == "DELETE 0" else 0
    raise SchemaError(
        f"a trigger or a policy on the table 'feedback' kept {what}, which was to be deleted; let the role delete it"
    )
