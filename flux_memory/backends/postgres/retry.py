"""Runs statements on pooled connections, and runs them again where that is safe."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from operator import methodcaller
from typing import Any, Final, Protocol, TypeVar

import asyncpg

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.errors import ROLLED_BACK_FOR_ANOTHER

Result = TypeVar("Result")

GRACE: Final = 1.0
"""Seconds that a server has to end what was given up, or to say goodbye; then its connection is dropped."""
_REFUSALS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError)
"""On a living connection these say that the statement was not carried out; an error in decoding a reply does not."""
_SAME_KEY: Final = 5
"""How often a statement runs that broke a unique key: two retries of one message, of which the second finds it."""
LOCKED_SECONDS: Final = 0.05
"""Seconds until locked sessions are tried again, where no further statement may wait for a lock."""
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0


class Pool(Protocol):
    """Where connections are from. One that `take` returned is given to `put_back` once, in whatever state it is."""

    many_hosts: bool

    @property
    def max_size(self) -> int:
        """Return how many connections there are at most."""
        ...

    async def take(self) -> Any:
        """Return a connection, waiting for one as long as the caller does."""
        ...

    def put_back(self, connection: Any) -> asyncio.Future[Any] | None:
        """Take a connection back, or drop it if it is closed; return what is worth waiting for before the next one."""
        ...

    def expire(self) -> None:
        """Replace every connection before it is used again: the server is not what it was."""
        ...


class Attempts(Protocol):
    """What is told how a statement fares: the state of one call, or all calls that share the statement."""

    def sending(self) -> None:
        """Note that a connection is there and a statement is about to be sent."""
        ...

    def failed(self, error: Exception, *, lost: bool) -> None:
        """Note how a statement failed: its answer was lost, or else the server refused it."""
        ...


class RetryingExecutor:
    """Runs statements, each on a connection of its own, each atomic by itself.

    A statement must do no harm when it runs twice: one whose connection was lost is run again, because the server may
    or may not have carried it out. The caller's deadline ends it all.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._recovering: set[asyncio.Task[None]] = set()
        self._max_on_lock = max(pool.max_size // 2, 1)
        self.on_lock: set[object] = set()
        """What may be waiting for a row lock, each on a connection; the other connections are left for the rest."""
        self._on_any_lock = asyncio.Semaphore(max(pool.max_size - self._max_on_lock - 1, 1))

    async def run(self, attempts: Attempts, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Call `work` with a connection and return its result."""
        tried = 0
        while True:
            connection = await self._pool.take()
            try:
                attempts.sending()
                result = await work(connection)
            except Exception as error:
                if isinstance(error, TimeoutError):
                    attempts.failed(error, lost=True)
                    self._give_up(connection)
                    raise
                closed = is_closed(connection)
                attempts.failed(error, lost=closed or not isinstance(error, _REFUSALS))
                self._pool.put_back(connection)
                tried += 1
                if not closed and not self._may_pass(error, tried):
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

    def may_wait_for_lock(self) -> bool:
        """Return whether one more statement may wait for a row lock."""
        return len(self.on_lock) < self._max_on_lock

    async def run_on_any_lock(self, state: CallState, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Run a write that cannot skip what is locked, and leave a connection to the calls that need no lock."""
        state.blocked = True
        async with self._on_any_lock:
            return await self.run(state, work)

    async def run_on_session(self, state: CallState, sql: str, *values: object) -> bool:
        """Run a write that needs a session's lock, and return whether it found the session.

        Args:
            state: The state of the call.
            sql: Skips the session if it is locked; returns whether the write was done, and whether the session exists.
            values: The parameters of the statement.
        """
        while True:
            if waits := self.may_wait_for_lock():
                self.on_lock.add(state)
            attempt = methodcaller("fetch", sql.replace(" SKIP LOCKED", "") if waits else sql, *values)
            try:
                ((done, exists),) = await self.run(state, attempt)
            finally:
                self.on_lock.discard(state)
            # After the wait for its lock, a session that the statement's snapshot has was deleted meanwhile.
            if done or waits or not exists:
                return bool(done)
            state.sent = False
            state.blocked = True
            await asyncio.sleep(LOCKED_SECONDS)

    def _may_pass(self, error: Exception, tried: int) -> bool:
        """Return whether a statement that the server refused may succeed when it is run again."""
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            # After a fail-over: the server became a replica, and its successor is elsewhere, or behind the same name.
            self._pool.expire()
            return self._pool.many_hosts or tried == 1
        if isinstance(error, asyncpg.UniqueViolationError):
            return tried < _SAME_KEY
        return isinstance(error, ROLLED_BACK_FOR_ANOTHER)

    def _give_up(self, connection: Any) -> None:
        """Put a connection back once the server has ended the statement that it was told to cancel.

        The callback owns the connection: the task may be cancelled before its first step.
        """
        # The event loop itself holds tasks only weakly.
        task = asyncio.get_running_loop().create_task(_wait_until_idle(connection))
        self._recovering.add(task)
        task.add_done_callback(partial(self._put_back_or_drop, connection))

    def _put_back_or_drop(self, connection: Any, waiting: asyncio.Task[None]) -> None:
        self._recovering.discard(waiting)
        if waiting.cancelled() or waiting.exception() is not None:
            # Through a network that swallows packets neither side would ever hear of the cancellation.
            terminate(connection)
        self._pool.put_back(connection)


async def _wait_until_idle(connection: Any) -> None:
    async with asyncio.timeout(GRACE):
        await connection.execute("SELECT 1")


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
