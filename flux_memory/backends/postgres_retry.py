"""Runs statements on pooled connections, and runs them again where that is safe."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

import asyncpg

from flux_memory.backends.postgres_errors import ROLLED_BACK_FOR_ANOTHER, Progress

Result = TypeVar("Result")

GRACE: Final = 1.0
"""Seconds that a server has to end what was given up, or to say goodbye; then its connection is dropped."""
_SAME_KEY: Final = 5
"""How often a statement runs that broke a unique key: two retries of one message, of which the second finds it."""
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0


class Pool(Protocol):
    """Where connections are from. One that `take` returned is given to `put_back` once, in whatever state it is."""

    many_hosts: bool

    async def take(self) -> Any:
        """Return a connection, waiting for one as long as the caller does."""
        ...

    def put_back(self, connection: Any) -> asyncio.Future[Any] | None:
        """Take a connection back, or drop it if it is closed; return what is worth waiting for before the next one."""
        ...

    def expire(self) -> None:
        """Replace every connection before it is used again: the server is not what it was."""
        ...


class Statements:
    """Runs statements, each on a connection of its own, each atomic by itself.

    Whatever is run must do no harm when it runs twice: a statement whose connection was lost is run again, because
    it cannot be known whether the server carried it out. The caller's deadline ends it all.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._recovering: set[asyncio.Task[None]] = set()

    async def run(self, progress: Progress, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Call `work` with a connection and return its result."""
        tried = 0
        while True:
            connection = await self._pool.take()
            progress.sent = True
            try:
                result = await work(connection)
            except Exception as error:
                if isinstance(error, TimeoutError):
                    self._give_up(connection)
                    raise
                lost = is_closed(connection)
                progress.failed(error, lost=lost)
                self._pool.put_back(connection)
                tried += 1
                if not lost and not self._may_pass(error, tried):
                    raise
            except BaseException:
                self._give_up(connection)
                raise
            else:
                if (returning := self._pool.put_back(connection)) is not None:
                    await asyncio.wait([returning])
                return result
            if tried > 1:
                await pause(tried)

    def _may_pass(self, error: Exception, tried: int) -> bool:
        """Tell whether a statement that the server refused may succeed when it is run again."""
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            # After a fail-over: the server became a replica, and its successor is elsewhere, or behind the same name.
            self._pool.expire()
            return self._pool.many_hosts or tried == 1
        if isinstance(error, asyncpg.UniqueViolationError):
            return tried < _SAME_KEY
        return isinstance(error, ROLLED_BACK_FOR_ANOTHER)

    def _give_up(self, connection: Any) -> None:
        # The event loop itself holds tasks only weakly.
        task = asyncio.get_running_loop().create_task(self._recover(connection))
        self._recovering.add(task)
        task.add_done_callback(self._recovering.discard)

    async def _recover(self, connection: Any) -> None:
        """Wait until the server has ended what was given up, of which asyncpg has told it."""
        try:
            async with asyncio.timeout(GRACE):
                await connection.execute("SELECT 1")
        except BaseException as error:
            # Through a network that swallows packets neither side would ever hear of it.
            terminate(connection)
            if not isinstance(error, Exception):
                raise
        finally:
            self._pool.put_back(connection)


async def pause(tried: int) -> None:
    """Wait before the next attempt, the longer the more there were, and not as long as others do."""
    longest = min(_FIRST_PAUSE * 2 ** min(tried, 10), _LONGEST_PAUSE)
    await asyncio.sleep(longest * random.uniform(0.5, 1))  # noqa: S311 - no secret


def is_closed(connection: Any) -> bool:
    """Tell whether a connection is of no more use."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        # It was lost, and the pool has taken it back.
        return True


def terminate(connection: Any) -> None:
    """Drop a connection without a word to the server."""
    # A connection of a closed event loop cannot be closed any more; it goes with its socket.
    with suppress(asyncpg.InterfaceError, RuntimeError):
        connection.terminate()
