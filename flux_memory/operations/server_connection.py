"""Gives an operator's command one connection to a PostgreSQL server, with the library's errors and a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.errors import translate_errors
from flux_memory.backends.postgres.pool import OwnPool
from flux_memory.dsn import SecretText, mask_dsn, parse_dsn

Result = TypeVar("Result")


class ServerConnection:
    """One connection, whose work ends within a deadline.

    Args:
        pool: The pool that the connection belongs to.
        connection: The connection.
        shown: The DSN as messages show it.
        timeout: The deadline of each work, in seconds.
    """

    def __init__(self, pool: OwnPool, connection: Any, shown: str, timeout: float) -> None:
        self.shown = shown
        self._pool = pool
        self._connection = connection
        self._timeout = timeout

    async def run(self, work: Callable[[Any], Awaitable[Result]], *, seconds: float | None = None) -> Result:
        """Run work on the connection.

        Args:
            work: Takes the driver's connection.
            seconds: A deadline in place of the connection's own.

        Raises:
            FluxMemoryError: The server refused a statement, was lost, or did not answer in time.
        """
        seconds = self._timeout if seconds is None else seconds
        state = CallState(writes=False)
        state.sending()
        with translate_errors(self.shown, seconds, state, self._pool):
            async with asyncio.timeout(seconds):
                return await work(self._connection)


@asynccontextmanager
async def connect_to_server(dsn: str, timeout: float) -> AsyncIterator[ServerConnection]:  # noqa: ASYNC109 - reported
    """Connect to a server for the block.

    Args:
        dsn: A DSN as for `PostgresConversationMemory`.
        timeout: Seconds within which it connects, and within which each work ends.

    Raises:
        FluxMemoryError: The server cannot be reached; the message names the next step.
    """
    dsn = SecretText(dsn)
    shown = mask_dsn(dsn)
    pool = OwnPool(parse_dsn(dsn), 1, 1, timeout)
    try:
        with translate_errors(shown, timeout, CallState(writes=False), pool):
            async with asyncio.timeout(timeout):
                connection = await pool.take()
        yield ServerConnection(pool, connection, shown, timeout)
    except asyncio.CancelledError:
        # The driver leaves a future behind if its connecting is cancelled; the loop would report it on the terminal.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        raise
    finally:
        pool.terminate()
