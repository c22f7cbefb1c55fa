"""Gives an operator's command one connection to a PostgreSQL server, with the library's errors and a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.errors import translate_errors
from flux_memory.backends.postgres.pool import OwnPool
from flux_memory.dsn import SecretText, mask_dsn, parse_dsn
from flux_memory.errors import BackendUnavailableError

Result = TypeVar("Result")

_PAUSE_SECONDS: Final = 0.2
"""Seconds between the loss of a connection and the next."""


class ServerConnection:
    """One connection, whose work ends within a deadline.

    Args:
        pool: The pool that the connection belongs to.
        connection: The connection.
        shown: The DSN as messages show it.
        timeout: The deadline of each work, in seconds.
        reconnects: Whether work runs again on a new connection if its own is lost; then it must be safe to repeat.
    """

    def __init__(self, pool: OwnPool, connection: Any, shown: str, timeout: float, *, reconnects: bool) -> None:
        self.shown = shown
        self._pool = pool
        self._connection = connection
        self._timeout = timeout
        self._reconnects = reconnects

    async def run(self, work: Callable[[Any], Awaitable[Result]], *, seconds: float | None = None) -> Result:
        """Run work on the connection.

        Args:
            work: Takes the driver's connection.
            seconds: A deadline in place of the connection's own.

        Raises:
            FluxMemoryError: The server refused a statement, was lost, or did not answer in time.
        """
        seconds = self._timeout if seconds is None else seconds
        ends = time.monotonic() + seconds
        while True:
            try:
                return await self._run_once(work, max(ends - time.monotonic(), 0.0), seconds)
            except BackendUnavailableError:
                if not self._reconnects or time.monotonic() + _PAUSE_SECONDS >= ends:
                    raise
                self._connection.terminate()
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _run_once(self, work: Callable[[Any], Awaitable[Result]], left: float, seconds: float) -> Result:
        state = CallState(writes=False)
        state.sending()
        with translate_errors(self.shown, seconds, state, self._pool):
            async with asyncio.timeout(left):
                if self._connection.is_closed():
                    self._pool.put_back(self._connection)
                    self._connection = await self._pool.take()
                return await work(self._connection)


@asynccontextmanager
async def connect_to_server(
    dsn: str,
    timeout: float,  # noqa: ASYNC109 - reported
    *,
    reconnects: bool = False,
) -> AsyncIterator[ServerConnection]:
    """Connect to a server for the block.

    Args:
        dsn: A DSN as for `PostgresConversationMemory`.
        timeout: Seconds within which it connects, and within which each work ends.
        reconnects: See `ServerConnection`.

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
        yield ServerConnection(pool, connection, shown, timeout, reconnects=reconnects)
    except asyncio.CancelledError:
        # The driver leaves a future behind if its connecting is cancelled; the loop would report it on the terminal.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        raise
    finally:
        pool.terminate()
