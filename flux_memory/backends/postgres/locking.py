"""Runs changes of a session under the lock of its row, each as one statement where no other change is in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.outcomes import ChangeOutcome
from flux_memory.backends.postgres.retry import LOCKED_SECONDS, RetryingExecutor, terminate

Result = TypeVar("Result")

# At another isolation level the change would not see what was committed while it waited for the lock.
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
LOCK_SESSION: Final = "SELECT TRUE FROM sessions WHERE id::text = $1 FOR NO KEY UPDATE SKIP LOCKED"
SKIPPING: Final = " SKIP LOCKED"


class SessionChange(NamedTuple):
    """A statement that changes one session and returns one row, which begins with a `ChangeOutcome`."""

    sql: str
    values: Callable[[], Sequence[object]]
    """Returns the parameters, of which the first is the session's id; called for each attempt."""


async def change_session(
    executor: RetryingExecutor, state: CallState, change: SessionChange, *, shortcut: SessionChange | None = None
) -> list[Any]:
    """Run a change of one session and return the row of its outcome.

    A statement's snapshot may be older than the row lock that it waited for; then it changes nothing. It runs again in
    a transaction that locks the row first, so that its snapshot is new: a session that others change all the time does
    not starve it.

    Args:
        executor: Runs the statements.
        state: The state of the call.
        change: Skips a locked session.
        shortcut: A cheaper statement for the usual case, which waits for a lock. Where it answers `STALE`, `change`
            decides.
    """
    locks_first = False
    while True:
        if waits := executor.may_wait_for_lock():
            executor.on_lock.add(state)
        attempted = shortcut if shortcut is not None and waits and executor.path.has_shortcuts else change
        statements = [LOCK_SESSION, attempted.sql] if locks_first else [attempted.sql]
        run = partial(_run, executor, statements, attempted.values, "" if waits else SKIPPING)
        try:
            row: list[Any] = await executor.run(state, run)
        except asyncpg.StringDataRightTruncationError:
            # A cluster cuts an id to the column's length to find its server; no session has such an id.
            return [ChangeOutcome.MISSING]
        finally:
            executor.on_lock.discard(state)
        outcome = ChangeOutcome(row[0])
        if outcome is ChangeOutcome.STALE and attempted is shortcut:
            shortcut = None
            state.sent = False
        elif outcome is ChangeOutcome.STALE:
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


async def _run(
    executor: RetryingExecutor,
    statements: list[str],
    values: Callable[[], Sequence[object]],
    skipping: str,
    connection: Any,
) -> list[Any]:
    # Chosen for each attempt: the tables may be distributed meanwhile.
    *locking, changing = (executor.path.statement(sql).replace(SKIPPING, skipping) for sql in statements)
    if not locking:
        return [*(await connection.fetch(changing, *values()))[0]]

    async def lock_and_change() -> list[Any]:
        given = values()
        for sql in locking:
            await connection.fetch(sql, given[0])
        return [*(await connection.fetch(changing, *given))[0]]

    return await in_transaction(connection, lock_and_change)


async def in_transaction(connection: Any, work: Callable[[], Awaitable[Result]]) -> Result:
    """Run statements in a transaction, and return their result once it is committed."""
    # Not by `connection.transaction()`, whose ROLLBACK after a cancellation may never return.
    await connection.execute(BEGIN)
    try:
        result = await work()
        await connection.execute("COMMIT")
    except asyncpg.PostgresError:
        await _roll_back(connection)
        raise
    except Exception:
        terminate(connection)
        raise
    return result


async def _roll_back(connection: Any) -> None:
    """Roll back a transaction that the server refused, or drop the connection."""
    try:
        await connection.execute("ROLLBACK")
    except Exception:  # noqa: BLE001 - the caller raises the error of the transaction itself
        terminate(connection)
