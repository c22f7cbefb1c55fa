"""Deletes sessions: one, those that meet criteria, or all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from operator import methodcaller
from typing import Final, NamedTuple

from flux_memory import records
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.feedback import erase_of_user, erase_without_owner
from flux_memory.backends.postgres.locking import SessionChange, change_session
from flux_memory.backends.postgres.outcomes import ChangeOutcome
from flux_memory.backends.postgres.retry import LOCKED_SECONDS, RetryingExecutor
from flux_memory.errors import OutcomeUnknownError, SchemaError

BATCH_SESSIONS: Final = 100
"""Sessions that one statement deletes; their rows stay locked until it ends."""

DELETE_SESSION: Final = """
WITH locked AS (
    SELECT id, revision::text AS revision
    FROM sessions
    WHERE id::text = $1
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM sessions
    USING locked
    WHERE sessions.id::text = locked.id::text AND ($2::text IS NULL OR locked.revision = $2)
    RETURNING TRUE
)
SELECT CASE
    WHEN EXISTS (SELECT 1 FROM deleted) THEN 'done'
    WHEN EXISTS (SELECT 1 FROM locked WHERE revision <> $2) THEN 'conflict'
    WHEN EXISTS (SELECT 1 FROM locked) THEN 'kept'
    WHEN EXISTS (SELECT 1 FROM sessions WHERE id::text = $1) THEN 'locked'
    ELSE 'missing'
END
"""
# FOR UPDATE tests the newest version of each row against the criteria. The next batch begins after this one, so that it
# does not read again what was locked, nor the index entries of what was deleted.
DELETE_BATCH: Final = """
WITH chosen AS (
    SELECT id, updated_at
    FROM sessions
    WHERE {criteria} AND (updated_at, id::text COLLATE "C") > ($1::text::timestamp, $2::text COLLATE "C")
    ORDER BY updated_at, id COLLATE "C"
    LIMIT $3
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM sessions
    USING chosen
    WHERE sessions.id::text = chosen.id::text
    RETURNING TRUE
), last AS (
    SELECT id, updated_at FROM chosen ORDER BY updated_at DESC, id COLLATE "C" DESC LIMIT 1
)
SELECT
    (SELECT count(*) FROM deleted),
    (SELECT count(*) FROM chosen),
    (SELECT updated_at::text FROM last),
    (SELECT id FROM last)
"""
SELECT_ANY: Final = "SELECT EXISTS (SELECT 1 FROM sessions WHERE {criteria})"
OF_USER: Final = "user_id = ${}"
INACTIVE: Final = "updated_at < ${}::text::timestamp"
# Not TRUNCATE, which deadlocks with adds that hold a session's row and wait for the messages' table.
# One transaction: the server begins it for the whole text.
DELETE_EVERYTHING: Final = "DELETE FROM sessions; DELETE FROM feedback"
_BEFORE_ALL: Final = ("-infinity", "")


class DeletionCriteria(NamedTuple):
    """Which sessions to delete; at least one criterion is not `None`."""

    user_id: str | None
    """Their owner."""
    inactive_since: str | None
    """The time since which they have not changed."""


async def delete_session(
    executor: RetryingExecutor, state: CallState, session_id: str, expected_revision: str | None
) -> None:
    """Delete a session if it exists.

    Raises:
        ConflictError: The session has another revision.
        OutcomeUnknownError: The answer of an attempt was lost, and there is a session with another revision.
        SchemaError: A trigger or a policy kept the session.
    """
    deletion = SessionChange(DELETE_SESSION, lambda: (session_id, expected_revision))
    outcome, *_ = await change_session(executor, state, deletion)
    if outcome == ChangeOutcome.KEPT:
        raise SchemaError(
            f"a trigger or a policy on the table 'sessions' kept session {session_id!r:.80}, which was to be deleted; "
            "let the role delete it"
        )
    if outcome != ChangeOutcome.CONFLICT:
        return
    if state.lost:
        raise OutcomeUnknownError(
            f"the connection was lost before the answer to the deletion of session {session_id!r:.80}, which has "
            "another revision now: it was changed before the deletion, or created anew after it"
        )
    raise records.revision_conflict(session_id)


async def delete_sessions(
    executor: RetryingExecutor, state: CallState, user_id: str | None, inactive_since: str | None
) -> int:
    """Delete the sessions that meet the criteria, in batches, and return their number.

    Of a user alone, the feedback is erased as well: some before the sessions by which it is found, and the rest after
    them, when no call can add to them any more. A call that is cut off in between is completed by calling again.

    Raises:
        OutcomeUnknownError: They are deleted, and the answer of a batch was lost.
        SchemaError: A trigger or a policy kept some of them, or of the feedback.
    """
    erased_user = user_id if inactive_since is None else None
    if erased_user:
        await erase_without_owner(executor, state, erased_user)
    criteria = DeletionCriteria(user_id, inactive_since)
    any_left, values = with_criteria(SELECT_ANY, criteria, 1)
    total: int = 0
    while True:
        after: Sequence[str] | None = _BEFORE_ALL
        while after is not None:
            deleted, kept, after = await executor.path.delete_batch(executor, state, criteria, after)
            if kept:
                raise SchemaError(
                    f"a trigger or a policy on the table 'sessions' kept {kept} sessions that were to be "
                    f"deleted, after {total + deleted} others; let the role delete them"
                )
            total += deleted
        reading = CallState(writes=False)
        ((is_left,),) = await executor.run(reading, methodcaller("fetch", any_left, *values))
        if not is_left:
            break
        # Other transactions hold their locks.
        state.blocked = True
        await asyncio.sleep(LOCKED_SECONDS)
    sessions_lost = state.lost
    if erased_user:
        await erase_of_user(executor, state, erased_user)
    if sessions_lost:
        raise OutcomeUnknownError(
            f"the sessions are deleted, {total} of them by statements that were answered; the connection was lost "
            "before the answer to another one, so their number is not known"
        )
    return total


async def delete_batch(
    executor: RetryingExecutor, state: CallState, criteria: DeletionCriteria, after: Sequence[str]
) -> tuple[int, int, Sequence[str] | None]:
    """Delete a batch of sessions that meet the criteria, and skip those that are locked.

    Args:
        executor: Runs the statement.
        state: The state of the call.
        criteria: Which sessions.
        after: The `updated_at` and the id of the last session of the batch before.

    Returns:
        The numbers of sessions that are deleted and that something kept, and the last one unless all were tried.
    """
    sql, values = with_criteria(DELETE_BATCH, criteria, 4)
    ((deleted, chosen, *last),) = await executor.run(state, methodcaller("fetch", sql, *after, BATCH_SESSIONS, *values))
    return deleted, chosen - deleted, last if chosen == BATCH_SESSIONS else None


async def clear_all(executor: RetryingExecutor, state: CallState) -> None:
    """Delete every session, and all feedback."""
    await executor.run_on_any_lock(state, methodcaller("execute", DELETE_EVERYTHING))


def with_criteria(sql: str, criteria: DeletionCriteria, first: int) -> tuple[str, list[str]]:
    """Return a statement with its criteria, of which the first has the given number, and their values."""
    given = zip((OF_USER, INACTIVE), criteria, strict=True)
    used = [(condition, value) for condition, value in given if value is not None]
    numbered = [condition.format(number) for number, (condition, _) in enumerate(used, first)]
    return sql.format(criteria=" AND ".join(numbered)), [value for _, value in used]
