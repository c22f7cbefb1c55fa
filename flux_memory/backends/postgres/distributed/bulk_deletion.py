"""Deletes the sessions of a distributed store that meet criteria: each by a call to the server that holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from operator import methodcaller
from typing import Final

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.deleting import BATCH_SESSIONS, DeletionCriteria, with_criteria
from flux_memory.backends.postgres.outcomes import ChangeOutcome
from flux_memory.backends.postgres.retry import RetryingExecutor

SELECT_BATCH: Final = """
SELECT updated_at::text, id
FROM sessions
WHERE {criteria} AND (
    updated_at > $1::text::timestamp
    OR updated_at = $1::text::timestamp AND id::text COLLATE "C" > $2::text COLLATE "C"
)
ORDER BY updated_at, id COLLATE "C"
LIMIT $3
"""


async def delete_batch(
    sql: str,
    executor: RetryingExecutor,
    state: CallState,
    criteria: DeletionCriteria,
    after: Sequence[str],
) -> tuple[int, int, Sequence[str] | None]:
    """Delete a batch of sessions that meet the criteria; see `deleting.delete_batch`.

    Args:
        sql: Deletes one session if it still meets the criteria, and skips it if it is locked.
        executor: Runs the statements.
        state: The state of the call.
        criteria: Which sessions.
        after: The `updated_at` and the id of the last session of the batch before.
    """
    select, values = with_criteria(SELECT_BATCH, criteria, 4)
    read = methodcaller("fetch", select, *after, BATCH_SESSIONS, *values)
    batch = await executor.run(CallState(writes=False), read)
    outcomes = await _delete_each(sql, executor, state, criteria, [session_id for _, session_id in batch])
    last = (batch[-1][0], batch[-1][1]) if len(batch) == BATCH_SESSIONS else None
    return outcomes.count(ChangeOutcome.DONE), outcomes.count(ChangeOutcome.KEPT), last


async def _delete_each(
    sql: str, executor: RetryingExecutor, state: CallState, criteria: DeletionCriteria, session_ids: Iterable[str]
) -> list[str]:
    """Delete sessions, several at a time, and return the outcomes. Other calls keep half of the connections."""
    outcomes: list[str] = []
    waiting = iter(session_ids)

    async def delete_waiting() -> None:
        for session_id in waiting:
            ((outcome,),) = await executor.run(state, methodcaller("fetch", sql, session_id, *criteria))
            outcomes.append(outcome)

    deleting = [asyncio.create_task(delete_waiting()) for _ in range(executor.max_on_server)]
    try:
        await asyncio.gather(*deleting)
    finally:
        for task in deleting:
            task.cancel()
        await asyncio.gather(*deleting, return_exceptions=True)
    return outcomes
