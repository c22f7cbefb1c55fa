"""Opens the store of a PostgreSQL handle, and closes it if the event loop ends first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Final, NamedTuple

from flux_memory.backends.postgres.borrowed_pool import BorrowedPool
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.errors import translate_errors
from flux_memory.backends.postgres.pool import OwnPool
from flux_memory.backends.postgres.preparing import prepare
from flux_memory.backends.postgres.retry import SERVER_GRACE_SECONDS, RetryingExecutor
from flux_memory.backends.postgres.writer import MessageWriter

_OPENING_SHARE: Final = 0.9
"""Share of the deadline for opening; the rest lets waiting callers report the cause instead of a timeout."""
_PREPARING_SHARE: Final = 0.8
"""Share of the deadline for checking the database and its schema; then the connection is dropped."""


class OpenStore(NamedTuple):
    """The pool of a handle, and the two ways to use it."""

    pool: OwnPool | BorrowedPool
    executor: RetryingExecutor
    writer: MessageWriter


async def open_store(pool: OwnPool | BorrowedPool, shown: str, timeout: float) -> OpenStore:  # noqa: ASYNC109 - shared out
    """Connect to the server within the handle's timeout, and check and upgrade the database."""
    executor = RetryingExecutor(pool)
    state = CallState(writes=False)
    if pool.loop_end is None:
        pool.loop_end = _close_at_end_of_loop(pool)
        await anext(pool.loop_end)
    began = asyncio.get_running_loop().time()
    with translate_errors(shown, timeout * _OPENING_SHARE, state, pool):
        try:
            async with asyncio.timeout_at(began + timeout * _OPENING_SHARE):
                await executor.run(state, partial(prepare, shown=shown, deadline=began + timeout * _PREPARING_SHARE))
        except BaseException:
            pool.expire()
            raise
        await pool.fill()
    return OpenStore(pool, executor, MessageWriter(executor))


async def _close_at_end_of_loop(pool: OwnPool | BorrowedPool) -> AsyncGenerator[None, None]:
    """Close the pool when the event loop shuts down its generators, which `asyncio.run` does last.

    By then every task was cancelled, and the server is still ending their statements. Without a close, the tasks that
    wait for it and the sockets would be destroyed with the loop, and asyncio would log each of them.
    """
    try:
        yield
    finally:
        await pool.close(SERVER_GRACE_SECONDS)
        # The sockets are closed by callbacks.
        await asyncio.sleep(0)
