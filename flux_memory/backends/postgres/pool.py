"""Gives a PostgreSQL memory its connections, from a pool of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Final

import asyncpg

from flux_memory.backends.loops import CLOSED
from flux_memory.backends.observation import Observers, name_server
from flux_memory.backends.pool_meter import MeteredPool
from flux_memory.backends.pool_stats import Occupancy
from flux_memory.backends.postgres.connecting import DRIVER_ERRORS, classify, connect
from flux_memory.backends.postgres.errors import not_connected
from flux_memory.backends.postgres.permits import Permits
from flux_memory.backends.postgres.retry import (
    SERVER_GRACE_SECONDS,
    back_off,
    is_closed,
    log_connecting_again,
    terminate,
)
from flux_memory.dsn import Dsn
from flux_memory.errors import FluxMemoryError, MemoryClosedError

_IDLE_SECONDS: Final = 60.0
"""Seconds that idle connections beyond `min_size` stay open."""
_SUSPECT_SECONDS: Final = 30.0
"""Idle seconds after which a connection is checked before use: firewalls drop idle ones silently."""
_CONNECT_SHARE: Final = 1 / 3
"""Share of the deadline for one attempt to connect; the rest is for the other hosts."""
_FIRST_CONTACT_SHARE: Final = 0.1
"""Share of the deadline for retries while no server has ever answered; then a wrong address is reported."""


class OwnPool(MeteredPool):
    """Connections that belong to one handle; the one used last is taken first.

    asyncpg's pool costs more than a statement's own client time, waits for ever on a network that drops packets, and
    cannot drop the connections of a server that changed its role.

    Args:
        target: The DSN to connect to.
        min_size: Connections that are opened at once, and kept.
        max_size: The largest number of connections.
        timeout: The deadline of the handle in seconds.
        observers: The observers of the handle.
    """

    def __init__(
        self, target: Dsn, min_size: int, max_size: int, timeout: float, observers: Observers | None = None
    ) -> None:
        super().__init__(observers or Observers(name_server(target)))
        self.many_hosts = len(target.addresses) > 1
        self.reads_only = target.reads_only
        self._tries_again = True
        self._target = target
        # The statements are few and never change. A lifetime would keep those of every lost connection in memory, each
        # by a timer.
        lifetime = {"max_cached_statement_lifetime": 0}
        self._arguments = {"timeout": target.arguments.get("timeout", timeout * _CONNECT_SHARE), **lifetime}
        self._min_size = min_size
        self.max_size: Final = max_size
        self._first_contact_seconds = timeout * _FIRST_CONTACT_SHARE
        self._permits = Permits(max_size)
        self._open: set[Any] = set()
        self._idle: list[tuple[Any, float]] = []
        """Connections that no call uses, and since when."""
        self._expired: set[Any] = set()
        self._openings: set[asyncio.Task[Any]] = set()
        self._spares: set[asyncio.Task[Any]] = set()
        """The openings of `fill` that no call waits for."""
        self._fewest_idle = 0
        self._trimming: asyncio.TimerHandle | None = None
        self._has_answered = False
        self.trouble: Exception | None = None
        self.loop_end: AsyncGenerator[None, None] | None = None
        """Closes the pool at the end of the event loop."""
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def size(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def occupancy(self) -> Occupancy:
        if self._closing:
            return Occupancy(size=len(self._open), idle=len(self._idle), waiting=self.meter.waiting)
        return Occupancy(self._min_size, self.max_size, len(self._open), len(self._idle), self.meter.waiting)

    async def fill(self) -> None:
        """Open connections up to `min_size`; `take` opens those that fail now when it needs them."""
        wanted = range(self._min_size - len(self._open) - len(self._openings))
        with suppress(TimeoutError):
            async with asyncio.timeout(SERVER_GRACE_SECONDS):
                await asyncio.gather(*(self._open_spare() for _ in wanted), return_exceptions=True)

    def take_now(self) -> Any:
        if not self._permits.take():
            return None
        if (connection := self._take_idle()) is None:
            self._permits.release()
        else:
            self.meter.note_taken(connection)
        return connection

    async def take(self) -> Any:
        if (connection := self.take_now()) is not None:
            return connection
        began = time.perf_counter()
        with self.meter.wait():
            await self._permits.wait()
            connection = self._take_idle() or await self._take_checked()
        self.meter.note_taken(connection, time.perf_counter() - began)
        return connection

    def put_back(self, connection: Any) -> None:
        if self.meter.taken:
            self.meter.note_returned(connection)
        if is_closed(connection):
            self._forget(connection)
        elif connection in self._expired:
            self._drop(connection)
        else:
            self._idle.append((connection, time.monotonic()))
            if self._trimming is None and len(self._idle) > self._min_size and not self._closing:
                self._trim_later()
        self._permits.release()

    def expire(self) -> None:
        while self._idle:
            self._drop(self._idle.pop()[0])
        self._expired = set(self._open)
        # Without target_session_attrs in the DSN, only the next host may have the needed role.
        self._target = self._target.rotated()

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds what takes no timeout
        """Wait for statements whose callers are gone, and close all connections, by force after `timeout` seconds."""
        self._closing = True
        if self._loop not in (None, asyncio.get_running_loop()):
            # The end of that loop does not wake a waiter on this one, and only there can a connection say goodbye.
            self.terminate()
            return
        if self._openings:
            await asyncio.wait(self._openings, timeout=min(timeout, SERVER_GRACE_SECONDS))
        for opening in self._openings:
            opening.cancel()
        taken = 0
        try:
            async with asyncio.timeout(timeout):
                while taken < self.max_size:
                    await self._permits.wait()
                    taken += 1
            goodbyes = (connection.close(timeout=SERVER_GRACE_SECONDS) for connection in self._open)
            await asyncio.gather(*goodbyes, return_exceptions=True)
        except TimeoutError:
            pass
        finally:
            self.terminate()
            # After a cancelled close the next one acquires them again.
            for _ in range(taken):
                self._permits.release()

    def terminate(self) -> None:
        """Drop all connections without notifying the server."""
        self._closing = True
        self._stop_trimming()
        for connection in [*self._open]:
            self._drop(connection)
        self._idle.clear()

    def _take_idle(self) -> Any:
        """Return a recently used idle connection, or `None`. A closing pool releases the permit."""
        if self._closing:
            self._permits.release()
            raise MemoryClosedError(CLOSED)
        while self._idle:
            connection, since = self._idle[-1]
            if is_closed(connection):
                self._idle.pop()
                self._forget(connection)
            elif time.monotonic() - since > _SUSPECT_SECONDS:
                return None
            else:
                self._idle.pop()
                self._fewest_idle = min(self._fewest_idle, len(self._idle))
                return connection
        return None

    async def _take_checked(self) -> Any:
        """Return an idle connection that answers, or a new one."""
        while self._idle:
            connection, _ = self._idle.pop()
            try:
                async with asyncio.timeout(SERVER_GRACE_SECONDS):
                    await connection.execute("SELECT 1")
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                # Connections that were idle for longer are lost, too.
                self._drop(connection)
                while self._idle:
                    self._drop(self._idle.pop()[0])
            except BaseException:
                self._drop(connection)
                self._permits.release()
                raise
            else:
                return connection
        return await self._connect()

    async def _connect(self) -> Any:
        """Return a new connection, or one that was put back meanwhile. A failure releases the permit."""
        loop = asyncio.get_running_loop()
        began, tried = loop.time(), 0
        while (connection := self._take_idle()) is None:
            if self._spares:
                try:
                    await asyncio.wait([self._spares.pop()])
                except BaseException:
                    self._permits.release()
                    raise
                # Put back by now, unless it failed.
                continue
            # In its own task: asyncpg leaks a connection whose opening is cancelled.
            opening = self._begin_opening()
            try:
                await asyncio.wait([opening])
            except BaseException:
                opening.add_done_callback(self._keep_or_release)
                raise
            try:
                # `close()` cancels openings, and an application may cancel every task; this call continues.
                if not opening.cancelled():
                    return opening.result()
            except Exception as error:
                never_answered = isinstance(error, OSError) and not self._has_answered
                late = loop.time() - began > self._first_contact_seconds
                ours = isinstance(error, FluxMemoryError)
                ends = ours or self._closing or not self._tries_again or not classify(error).passes
                if ends or (never_answered and late):
                    self._permits.release()
                    raise (error if ours else not_connected(self._target.shown, error)) from error
                log_connecting_again(self.meter, self._target.shown, error, tried + 1)
            tried += 1
            try:
                await back_off(tried)
            except BaseException:
                self._permits.release()
                raise
        return connection

    def _begin_opening(self) -> asyncio.Task[Any]:
        self._loop = asyncio.get_running_loop()
        opening = self._loop.create_task(self._open_connection())
        # asyncpg leaves a future behind, which asyncio logs, if the end of the program cancels it with all tasks.
        asyncio._unregister_task(opening)  # noqa: SLF001 - documented, under "Extending asyncio"
        self._openings.add(opening)
        opening.add_done_callback(self._openings.discard)
        return opening

    async def _open_connection(self) -> Any:
        began = time.perf_counter()
        try:
            connection = await connect(self._target, **self._arguments)
        except TimeoutError as error:
            # The next attempt begins with another host: this one may not exist.
            self._target = self._target.rotated()
            self.trouble = error
            raise
        except DRIVER_ERRORS as error:
            self._has_answered = self._has_answered or isinstance(error, asyncpg.PostgresError)
            self.trouble = error
            raise
        if self._closing:
            terminate(connection)
            raise MemoryClosedError(CLOSED)
        self._has_answered = True
        self.trouble = None
        self._open.add(connection)
        self.meter.note_created(time.perf_counter() - began)
        return connection

    def _keep_or_release(self, opening: asyncio.Task[Any]) -> None:
        """Keep a connection that no caller waits for, or release the permit of one that failed."""
        if opening.cancelled() or opening.exception() is not None:
            self._permits.release()
        else:
            self.put_back(opening.result())

    async def _open_spare(self) -> None:
        await self._permits.wait()
        opening = self._begin_opening()
        self._spares.add(opening)
        opening.add_done_callback(self._spares.discard)
        opening.add_done_callback(self._keep_or_release)
        await asyncio.shield(opening)

    def _forget(self, connection: Any) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self.meter.closed += 1
        self._expired.discard(connection)

    def _drop(self, connection: Any) -> None:
        self._forget(connection)
        terminate(connection)

    def _trim_later(self) -> None:
        self._fewest_idle = len(self._idle)
        self._trimming = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._trim)

    def _trim(self) -> None:
        """Drop the connections that no call has needed since the last time."""
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
