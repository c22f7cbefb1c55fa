"""Runs changes of a session under the lock of its row, each as one statement where no other change is in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import asyncpg

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.outcomes import ChangeOutcome
from flux_memory.backends.postgres.retry import LOCKED_SECONDS, RetryingExecutor, terminate
from flux_memory.backends.postgres.write_path import WritePath

# At another isolation level the change would not see what was committed while it waited for the lock.
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
LOCK_SESSION: Final = "SELECT TRUE FROM sessions WHERE id::text = $1 FOR NO KEY UPDATE SKIP LOCKED"
SKIPPING: Final = " SKIP LOCKED"


async def change_session(
    executor: RetryingExecutor,
    state: CallState,
    choose: Callable[[WritePath], str],
    values: Callable[[], Sequence[object]],
) -> list[Any]:
    """Run a change of one session and return the row of its outcome.

    A statement's snapshot may be older than the row lock that it waited for; then it changes nothing. It runs again in
    a transaction that locks the row first, so that its snapshot is new: a session that others change all the time does
    not starve it.

    Args:
        executor: Runs the statements.
        state: The state of the call.
        choose: Returns the statement, which skips a locked session. Its one row begins with a `ChangeOutcome`.
        values: Returns the statement's parameters, of which the first is the session's id; called for each attempt.
    """
    locks_first = False
    while True:
        if waits := executor.may_wait_for_lock():
            executor.on_lock.add(state)
        skipping = "" if waits else SKIPPING

        async def change(connection: Any, *, locks: bool = locks_first, skipping: str = skipping) -> list[Any]:
            # Not before: the tables may be distributed meanwhile.
            sql = choose(executor.path)
            statements = [LOCK_SESSION, sql] if locks else [sql]
            return await _run([each.replace(SKIPPING, skipping) for each in statements], values, connection)

        try:
            row: list[Any] = await executor.run(state, change)
        except asyncpg.StringDataRightTruncationError:
            # A cluster cuts an id to the column's length to find its server; no session has such an id.
            return [ChangeOutcome.MISSING]
        finally:
            executor.on_lock.discard(state)
        outcome = ChangeOutcome(row[0])
        if outcome is ChangeOutcome.STALE:
            locks_first = True
            state.sent = False
            state.blocked = True
        elif outcome is ChangeOutcome.LOCKED and not waits:
            state.sent = False
            state.blocked = True
            await asyncio.sleep(LOCKED_SECONDS)
        elif outcome is ChangeOutcome.LOCKED:
            # It was deleted during the wait.
            return [ChangeOutcome.MISSING]
        else:
            return row


async def _run(statements: list[str], values: Callable[[], Sequence[object]], connection: Any) -> list[Any]:
    *locking, changing = statements
    if not locking:
        return [*(await connection.fetch(changing, *values()))[0]]
    # Not by `connection.transaction()`, whose ROLLBACK after a cancellation may never return.
    await connection.execute(BEGIN)
    try:
        given = values()
        for sql in locking:
            await connection.fetch(sql, given[0])
        row = [*(await connection.fetch(changing, *given))[0]]
        await connection.execute("COMMIT")
    except asyncpg.PostgresError:
        await _roll_back(connection)
        raise
    except Exception:
        terminate(connection)
        raise
    return row


async def _roll_back(connection: Any) -> None:
    """Roll back a transaction that the server refused, or drop the connection."""
    try:
        await connection.execute("ROLLBACK")
    except Exception:  # noqa: BLE001 - the caller raises the error of the transaction itself
        terminate(connection)
