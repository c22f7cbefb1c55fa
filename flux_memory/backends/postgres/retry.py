"""Runs statements on pooled connections, and retries them where that is safe."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import asyncpg

from flux_memory.backends.pool_meter import PoolMeter
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.connecting import message_of
from flux_memory.backends.postgres.errors import ROLLED_BACK_FOR_ANOTHER
from flux_memory.backends.postgres.recording import StatementRecorder
from flux_memory.backends.postgres.write_path import WritePath

Result = TypeVar("Result")

_LOG: Final = logging.getLogger("flux_memory.postgres")

SERVER_GRACE_SECONDS: Final = 1.0
"""Seconds that the server has to cancel a statement or to close a connection; then the connection is dropped."""
_REFUSALS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError)
"""Errors which, on an open connection, mean that the statement had no effect; one in decoding a reply does not."""
_UNIQUE_ATTEMPTS: Final = 5
"""Attempts at a statement that violates a unique key: of two concurrent retries the second finds the message."""
_INTERNAL_ERROR: Final = "XX000"
"""The SQLSTATE that Citus gives a unique key's violation in a part of a statement."""
LOCKED_SECONDS: Final = 0.05
"""Seconds until locked sessions are tried again, if no further statement may wait for a lock."""
_FIRST_BACKOFF_SECONDS: Final = 0.02
_MAX_BACKOFF_SECONDS: Final = 1.0


class Pool(Protocol):
    """A source of connections. Each one that is taken goes to `put_back` once, in any state."""

    many_hosts: bool
    """Whether the DSN names several hosts."""
    reads_only: bool
    """Whether the DSN asks for servers that accept no writes."""
    trouble: Exception | None
    """The error of the last attempt to connect; `None` if it succeeded."""

    @property
    def meter(self) -> PoolMeter:
        """The meter of the pool, which knows the observers of the handle."""
        ...

    @property
    def max_size(self) -> int:
        """The largest number of connections."""
        ...

    def take_now(self) -> Any:
        """Return a connection, or `None` if there is none without waiting."""
        ...

    async def take(self) -> Any:
        """Return a connection; wait for one without a limit of its own."""
        ...

    def put_back(self, connection: Any) -> asyncio.Future[Any] | None:
        """Take a connection back, or drop it if it is closed; return the release to await before the next `take`."""
        ...

    def expire(self) -> None:
        """Replace every connection before its next use: the server has changed its role."""
        ...


class StatementObserver(Protocol):
    """The observer of a statement: the state of its one call, or all calls that share it."""

    def sending(self) -> None:
        """Note that a statement is about to be sent; the connection for it is open."""
        ...

    def failed(self, error: Exception, *, lost: bool) -> None:
        """Note how a statement failed: its answer was lost, or else the server refused it."""
        ...

    def note_statement(self, sql: str) -> None:
        """Keep the text of a statement that is sent, for the log of slow calls."""
        ...


class RetryingExecutor:
    """Runs statements, each on a connection of its own and atomic by itself.

    A statement must be idempotent: if its connection is lost, it runs again, although the server may have carried it
    out. Retries end only with the caller's deadline.

    Args:
        pool: The source of connections.
        path: The statements of the store.
        find_path: Finds the statements anew after the server refused one that the tables do not support.
        retries: Whether to run a statement again.
    """

    def __init__(
        self,
        pool: Pool,
        path: WritePath,
        find_path: Callable[[Any], Awaitable[WritePath]] | None = None,
        *,
        retries: bool = True,
    ) -> None:
        self._pool = pool
        self.meter: Final = pool.meter
        self._records_statements = pool.meter.observers.records_statements
        self.path = path
        """The statements of the store; they change if the tables are distributed while the handle is open."""
        self._find_path = find_path
        self._retries = retries
        self._recovering: set[asyncio.Task[None]] = set()
        self._max_on_lock = max(pool.max_size // 2, 1)
        self.max_on_server = max(pool.max_size // 2, 1)
        """Statements that adds to one server of a cluster may run at once; the other servers need the rest."""
        self.on_lock: set[object] = set()
        """The calls and statements that may wait for a row lock, each on a connection; others need the rest."""
        self._on_any_lock = asyncio.Semaphore(max(pool.max_size - self._max_on_lock - 1, 1))

    async def run(self, observer: StatementObserver, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Call `work` with a connection and return its result."""
        tried = 0
        while True:
            connection = self._pool.take_now() or await self._pool.take()
            try:
                observer.sending()
                used = (
                    StatementRecorder(connection, observer.note_statement) if self._records_statements else connection
                )
                result = await work(used)
            except Exception as error:
                if isinstance(error, TimeoutError):
                    observer.failed(error, lost=True)
                    self._give_up(connection)
                    raise
                tried += 1
                failure = _name_failure(error, connection)
                if not await self._runs_again(observer, connection, failure, tried):
                    raise failure from failure.__cause__
            except BaseException:
                self._give_up(connection)
                raise
            else:
                if (returning := self._pool.put_back(connection)) is not None:
                    await asyncio.wait([returning])
                return result
            if tried > 1:
                await back_off(tried)

    def may_wait_for_lock(self) -> bool:
        """Return whether one more statement may wait for a row lock."""
        return len(self.on_lock) < self._max_on_lock

    async def run_on_any_lock(self, state: CallState, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Run a write that cannot skip locked rows; leave a connection to calls that need no lock."""
        state.blocked = True
        async with self._on_any_lock:
            return await self.run(state, work)

    async def _runs_again(self, observer: StatementObserver, connection: Any, error: Exception, tried: int) -> bool:
        """Return whether a failed statement may run again, and put its connection back."""
        if isinstance(error, asyncpg.InternalClientError):
            # asyncpg has read that the server ended the session, and not yet that the connection is closed.
            terminate(connection)
        closed = is_closed(connection)
        behind = is_lost_behind(error) or isinstance(error, self.path.remote_failures)
        observer.failed(error, lost=closed or behind or not isinstance(error, _REFUSALS))
        may_succeed = self._retries and (closed or behind or self._may_succeed(error, tried))
        try:
            if not may_succeed and isinstance(error, asyncpg.FeatureNotSupportedError):
                may_succeed = await self._changes_path(connection)
        finally:
            self._pool.put_back(connection)
        if may_succeed:
            self._note_repetition(error, tried, closed=closed)
        return may_succeed

    def _may_succeed(self, error: Exception, tried: int) -> bool:
        """Return whether a statement that the server refused may succeed if it runs again."""
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            if self._pool.reads_only:
                return False
            # After a fail-over the server is a replica; the new primary is another host, or has taken the same name.
            self._pool.expire()
            return self._pool.many_hosts or tried == 1
        if isinstance(error, asyncpg.UniqueViolationError) or getattr(error, "sqlstate", None) == _INTERNAL_ERROR:
            return tried < _UNIQUE_ATTEMPTS
        return isinstance(error, ROLLED_BACK_FOR_ANOTHER)

    async def _changes_path(self, connection: Any) -> bool:
        """Return whether the tables were distributed since the handle opened, and use their statements from now on."""
        if self._find_path is None:
            return False
        path = await self._find_path(connection)
        is_new = path.tables != self.path.tables
        self.path = path
        return is_new

    def _note_repetition(self, error: Exception, tried: int, *, closed: bool) -> None:
        name = type(error).__name__
        if closed:
            _LOG.warning(
                "the connection was lost after attempt %d (%s: %s); the statement runs again on another one",
                *(tried, name, message_of(error)),
            )
            self.meter.note_reconnect(name)
        else:
            # Without the message, which may quote a value.
            _LOG.info(
                "the server refused attempt %d (%s, SQLSTATE %s); the statement runs again",
                *(tried, name, getattr(error, "sqlstate", None)),
            )
            self.meter.note_retry(name)

    def _give_up(self, connection: Any) -> None:
        """Put a connection back once the server has ended its cancelled statement.

        The callback owns the connection: the task may be cancelled before its first step.
        """
        # The event loop itself holds tasks only weakly.
        task = asyncio.get_running_loop().create_task(_wait_until_idle(connection))
        self._recovering.add(task)
        task.add_done_callback(partial(self._put_back_or_drop, connection))

    def _put_back_or_drop(self, connection: Any, waiting: asyncio.Task[None]) -> None:
        self._recovering.discard(waiting)
        if waiting.cancelled() or waiting.exception() is not None:
            # A network that drops packets would hide the cancellation from both sides for ever.
            terminate(connection)
        self._pool.put_back(connection)


def _name_failure(error: Exception, connection: Any) -> Exception:
    """Return the error of a statement, or the driver's own kind for one that the driver did not mean to raise."""
    if not isinstance(error, AttributeError) or not is_closed(connection):
        return error
    # asyncpg reads what it cleared, if a connection is dropped between two of its steps.
    failure: Exception = asyncpg.InternalClientError(f"AttributeError in the driver: {error}")
    failure.__cause__ = error
    return failure


async def _wait_until_idle(connection: Any) -> None:
    async with asyncio.timeout(SERVER_GRACE_SECONDS):
        with suppress(asyncpg.InFailedSQLTransactionError):
            await connection.execute("SELECT 1")
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")


async def back_off(tried: int) -> None:
    """Back off before the next attempt: exponential, with jitter."""
    longest = min(_FIRST_BACKOFF_SECONDS * 2 ** min(tried, 10), _MAX_BACKOFF_SECONDS)
    await asyncio.sleep(longest * random.uniform(0.5, 1))  # noqa: S311 - no secret


def is_lost_behind(error: Exception) -> bool:
    """Return whether a server or a proxy, over a connection that is well, reports the loss of one behind it.

    The statement may have taken effect: a worker's reply to COMMIT may have been lost.
    """
    lost = isinstance(error, asyncpg.PostgresConnectionError)
    return lost and not isinstance(error, asyncpg.ProtocolViolationError)


def log_connecting_again(meter: PoolMeter, shown: str, error: Exception, tried: int) -> None:
    """Log an attempt to connect that failed and is repeated.

    Args:
        meter: The meter of the pool.
        shown: The masked DSN.
        error: Why the attempt failed.
        tried: The number of failed attempts.
    """
    name = type(error).__name__
    _LOG.warning(
        "attempt %d to connect to PostgreSQL at %s failed (%s: %s); trying again",
        *(tried, shown, name, message_of(error)),
    )
    meter.note_reconnect(name)


def is_closed(connection: Any) -> bool:
    """Return whether a connection is closed, or was lost."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        # A borrowed pool has taken the lost connection back.
        return True


def terminate(connection: Any) -> None:
    """Drop a connection without notifying the server."""
    # A connection of a closed event loop can no longer be closed; its socket closes with it.
    with suppress(asyncpg.InterfaceError, RuntimeError):
        connection.terminate()
