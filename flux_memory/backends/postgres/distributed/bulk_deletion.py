"""Deletes the sessions of a distributed store that meet criteria: each by a call to the server that holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from operator import methodcaller
from typing import Any, Final

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.deleting import BATCH_SESSIONS, INACTIVE, OF_USER
from flux_memory.backends.postgres.outcomes import ChangeOutcome
from flux_memory.backends.postgres.retry import LOCKED_SECONDS, RetryingExecutor
from flux_memory.errors import OutcomeUnknownError, SchemaError

SELECT_BATCH: Final = """
SELECT id, updated_at::text
FROM sessions
WHERE {criteria} AND (
    updated_at > $1::text::timestamp
    OR updated_at = $1::text::timestamp AND id::text COLLATE "C" > $2::text COLLATE "C"
)
ORDER BY updated_at, id COLLATE "C"
LIMIT $3
"""
_BEFORE_ALL: Final = ("-infinity", "")


async def delete_sessions(
    sql: str, executor: RetryingExecutor, state: CallState, user_id: str | None, inactive_since: str | None
) -> int:
    """Delete the sessions that meet the criteria; see `deleting.delete_sessions`.

    Args:
        sql: Deletes one session if it still meets the criteria, and skips it if it is locked.
        executor: Runs the statements.
        state: The state of the call.
        user_id: The owner, or `None`.
        inactive_since: The time since which a session has not changed, or `None`.
    """
    given = [(OF_USER, user_id), (INACTIVE, inactive_since)]
    values = [value for _, value in given if value is not None]
    conditions = [condition for condition, value in given if value is not None]
    numbered = [condition.format(number) for number, condition in enumerate(conditions, 4)]
    select = SELECT_BATCH.format(criteria=" AND ".join(numbered))
    total = 0
    while True:
        after, skipped = _BEFORE_ALL, 0
        while batch := await _select(executor, methodcaller("fetch", select, *after, BATCH_SESSIONS, *values)):
            for session_id, _ in batch:
                outcome = await _delete(executor, state, sql, (session_id, user_id, inactive_since))
                if outcome is ChangeOutcome.KEPT:
                    raise SchemaError(
                        f"a trigger or a policy on the table 'sessions' kept session {session_id!r:.80}, which was to "
                        f"be deleted, after {total} others; let the role delete it"
                    )
                total += outcome is ChangeOutcome.DONE
                skipped += outcome is ChangeOutcome.LOCKED
            after = (batch[-1][1], batch[-1][0])
        if not skipped:
            break
        # Other transactions hold their locks.
        state.blocked = True
        await asyncio.sleep(LOCKED_SECONDS)
    if state.lost:
        raise OutcomeUnknownError(
            f"the sessions are deleted, {total} of them by statements that were answered; the connection was lost "
            "before the answer to another one, so their number is not known"
        )
    return total


async def _select(executor: RetryingExecutor, read: Callable[[Any], Any]) -> list[Any]:
    rows: list[Any] = await executor.run(CallState(writes=False), read)
    return rows


async def _delete(
    executor: RetryingExecutor, state: CallState, sql: str, values: tuple[str, str | None, str | None]
) -> ChangeOutcome:
    ((outcome,),) = await executor.run(state, methodcaller("fetch", sql, *values))
    return ChangeOutcome(outcome)
