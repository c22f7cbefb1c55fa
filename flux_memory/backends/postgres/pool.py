"""The connections behind a PostgreSQL memory: a pool of its own, or a borrowed one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

import asyncpg

from flux_memory.backends.lifecycle import CLOSED
from flux_memory.backends.postgres.errors import passes
from flux_memory.backends.postgres.retry import GRACE, is_closed, pause, terminate
from flux_memory.dsn import Dsn, rotate_hosts
from flux_memory.errors import InvalidInputError, MemoryClosedError, SchemaError
from flux_memory.schema import postgres as schema

_IDLE_SECONDS: Final = 60.0
"""How long connections beyond `min_size` stay open with nothing to do."""
_SUSPECT_SECONDS: Final = 30.0
"""After how long without use a connection is asked whether it is still there: firewalls forget without a word."""
_CONNECT_SHARE: Final = 1 / 3
"""Of a deadline, for one attempt to connect, so that there is time for another host's."""
_FIRST_SHARE: Final = 0.1
"""Of a deadline, for the network to be there when nothing has ever answered: a wrong address is soon told."""


class _Idle(NamedTuple):
    connection: Any
    since: float


class OwnPool:
    """Connections of this handle's own; the one used last is taken first.

    asyncpg's pool costs more than a statement's own client time, waits for ever on a network that swallows packets,
    and cannot drop the connections of a server that changed its role.

    Args:
        target: Where to.
        min_size: Connections that are opened at once, and kept.
        max_size: Connections at most.
        timeout: The deadline of the handle in seconds.
    """

    def __init__(self, target: Dsn, min_size: int, max_size: int, timeout: float) -> None:
        self.many_hosts = rotate_hosts(target.url) != target.url
        self._url = target.url
        # The statements are few and stay the same. A lifetime would keep those of every lost connection for as long,
        # by a timer each.
        lifetime = {"max_cached_statement_lifetime": 0}
        self._arguments = {"timeout": timeout * _CONNECT_SHARE, **lifetime, **target.arguments}
        self._min_size = min_size
        self.max_size: Final = max_size
        self._patience = timeout * _FIRST_SHARE
        self._slots = asyncio.Semaphore(max_size)
        self._open: set[Any] = set()
        self._idle: list[_Idle] = []
        self._expired: set[Any] = set()
        self._openings: set[asyncio.Task[Any]] = set()
        self._fewest_idle = 0
        self._trimming: asyncio.TimerHandle | None = None
        self._answered = False
        self.trouble: Exception | None = None
        self._closing = False

    @property
    def size(self) -> int:
        """How many connections are open."""
        return len(self._open)

    async def fill(self) -> None:
        """Open connections until there are `min_size`; those that cannot be had now are opened when needed."""
        wanted = range(self._min_size - len(self._open))
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await asyncio.gather(*(self._open_spare() for _ in wanted), return_exceptions=True)

    async def take(self) -> Any:
        await self._slots.acquire()
        return self._ready() or await self._found()

    def put_back(self, connection: Any) -> None:
        if is_closed(connection):
            self._forget(connection)
        elif connection in self._expired:
            self._drop(connection)
        else:
            self._idle.append(_Idle(connection, asyncio.get_running_loop().time()))
            if self._trimming is None and len(self._idle) > self._min_size and not self._closing:
                self._trim_later()
        self._slots.release()

    def expire(self) -> None:
        while self._idle:
            self._drop(self._idle.pop().connection)
        self._expired = set(self._open)
        # Where no role is asked for in the DSN, the next host may have the one that is needed.
        self._url = rotate_hosts(self._url)

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds what takes no timeout
        """Wait for statements whose callers are gone, and close what is open, by force after `timeout` seconds."""
        self._closing = True
        for opening in self._openings:
            opening.cancel()
        taken = 0
        try:
            async with asyncio.timeout(timeout):
                while taken < self.max_size:
                    await self._slots.acquire()
                    taken += 1
            goodbyes = (connection.close(timeout=GRACE) for connection in self._open)
            await asyncio.gather(*goodbyes, return_exceptions=True)
        except (TimeoutError, RuntimeError):
            # RuntimeError: this is another event loop than that of the connections.
            pass
        finally:
            self.terminate()
            # A close that was cancelled is called again, and waits for them again.
            for _ in range(taken):
                self._slots.release()

    def terminate(self) -> None:
        """Drop all connections without a word to the server."""
        self._closing = True
        self._stop_trimming()
        for connection in [*self._open]:
            self._drop(connection)

    def _ready(self) -> Any:
        """Return an idle connection that was in use a moment ago, or `None`."""
        if self._closing:
            self._slots.release()
            raise MemoryClosedError(CLOSED)
        while self._idle:
            connection, since = self._idle[-1]
            if is_closed(connection):
                self._idle.pop()
                self._forget(connection)
            elif asyncio.get_running_loop().time() - since > _SUSPECT_SECONDS:
                return None
            else:
                self._idle.pop()
                self._fewest_idle = min(self._fewest_idle, len(self._idle))
                return connection
        return None

    async def _found(self) -> Any:
        """Return an old connection that answers, or a new one."""
        while self._idle:
            connection = self._idle.pop().connection
            try:
                async with asyncio.timeout(GRACE):
                    await connection.execute("SELECT 1")
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                # What has been silent even longer is not asked any more.
                self._drop(connection)
                while self._idle:
                    self._drop(self._idle.pop().connection)
            except BaseException:
                self._drop(connection)
                self._slots.release()
                raise
            else:
                return connection
        return await self._connected()

    async def _connected(self) -> Any:
        """Return a new connection, or one that was put back meanwhile. A failure releases the slot."""
        loop = asyncio.get_running_loop()
        began, tried = loop.time(), 0
        while (connection := self._ready()) is None:
            # A task of its own: asyncpg does not clean up after a connection whose opening is cancelled.
            opening = self._begin_opening()
            try:
                await asyncio.wait([opening])
            except BaseException:
                opening.add_done_callback(self._keep)
                raise
            try:
                # `close()` cancels an opening, and an application may cancel every task; the caller goes on.
                if not opening.cancelled():
                    return opening.result()
            except Exception as error:
                unheard_of = isinstance(error, OSError) and not self._answered
                late = loop.time() - began > self._patience
                if self._closing or not passes(error) or (unheard_of and late):
                    self._slots.release()
                    raise
            tried += 1
            try:
                await pause(tried)
            except BaseException:
                self._slots.release()
                raise
        return connection

    def _begin_opening(self) -> asyncio.Task[Any]:
        opening = asyncio.get_running_loop().create_task(self._opened())
        self._openings.add(opening)
        opening.add_done_callback(self._openings.discard)
        return opening

    async def _opened(self) -> Any:
        try:
            connection = await asyncpg.connect(self._url, **self._arguments)
        except UnicodeError as error:
            raise InvalidInputError(f"the DSN has a host that cannot be one: {error}; mend its name") from error
        except TimeoutError as error:
            # The next attempt begins with another host: behind this one there may be nothing at all.
            self._url = rotate_hosts(self._url)
            self.trouble = ConnectionError(f"no connection within {self._arguments['timeout']:.3g} s")
            raise self.trouble from error
        except Exception as error:
            self._answered = self._answered or isinstance(error, asyncpg.PostgresError)
            self.trouble = error
            raise
        self._answered = True
        self.trouble = None
        self._open.add(connection)
        return connection

    def _keep(self, opening: asyncio.Task[Any]) -> None:
        """Keep the connection whose caller did not wait for it."""
        if opening.cancelled() or opening.exception() is not None:
            self._slots.release()
        else:
            self.put_back(opening.result())

    async def _open_spare(self) -> None:
        await self._slots.acquire()
        opening = self._begin_opening()
        opening.add_done_callback(self._keep)
        await asyncio.shield(opening)

    def _forget(self, connection: Any) -> None:
        self._open.discard(connection)
        self._expired.discard(connection)

    def _drop(self, connection: Any) -> None:
        self._forget(connection)
        terminate(connection)

    def _trim_later(self) -> None:
        self._fewest_idle = len(self._idle)
        self._trimming = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._trim)

    def _trim(self) -> None:
        """Drop what has not been needed since the last time."""
        self._trimming = None
        surplus = max(min(self._fewest_idle, len(self._idle) - self._min_size), 0)
        unneeded, self._idle = self._idle[:surplus], self._idle[surplus:]
        for connection, _ in unneeded:
            self._drop(connection)
        if len(self._idle) > self._min_size:
            self._trim_later()

    def _stop_trimming(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None


class BorrowedPool:
    """Somebody's asyncpg pool: each connection goes back after each statement, and nothing is ever closed."""

    many_hosts = False

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.max_size: Final[int] = pool.get_max_size()
        self.trouble: Exception | None = None
        self._tasks: set[asyncio.Future[Any]] = set()

    async def fill(self) -> None:
        """Leave its size to its owner."""

    async def take(self) -> Any:
        tried = 0
        while True:
            try:
                connection = await self._pool.acquire()
            except Exception as error:
                self.trouble = error
                if not passes(error):
                    raise
            else:
                self.trouble = None
                return connection
            tried += 1
            await pause(tried)

    def put_back(self, connection: Any) -> asyncio.Future[Any]:
        # A task of its own: its reset can fail, or be cancelled, when the statement is done.
        releasing = self._start(self._pool.release(connection, timeout=GRACE))
        releasing.add_done_callback(partial(_drop_unless_released, connection))
        return releasing

    def expire(self) -> None:
        self._start(self._pool.expire_connections())

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds what takes no timeout
        """Give back what is on its way; the pool is its owner's."""
        with suppress(RuntimeError, ValueError):
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=min(timeout, GRACE))

    def terminate(self) -> None:
        """Leave the pool to its owner."""

    def _start(self, doing: Coroutine[Any, Any, None]) -> asyncio.Future[Any]:
        # The event loop itself holds tasks only weakly.
        task = asyncio.ensure_future(doing)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()


def _drop_unless_released(connection: Any, releasing: asyncio.Future[Any]) -> None:
    if releasing.cancelled():
        # Perhaps before its first step: the owner's pool would wait for the connection for ever.
        terminate(connection)


async def prepare(connection: Any, deadline: float) -> None:
    """Make sure that the database can hold every text, and bring its schema up to date.

    Args:
        connection: An asyncpg connection.
        deadline: The moment of the event loop's clock at which the connection is dropped.
    """
    # Not by cancellation, which a transaction answers with a ROLLBACK that may never return.
    end = asyncio.get_running_loop().call_at(deadline, terminate, connection)
    try:
        await check_encoding(connection)
        await schema.bring_up_to_date(connection)
    finally:
        end.cancel()


async def check_encoding(connection: Any) -> None:
    """Raise `SchemaError` unless the database can hold every text."""
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise SchemaError(
            f"the database's encoding is {encoding}, which cannot hold every text; create it with ENCODING 'UTF8'"
        )
