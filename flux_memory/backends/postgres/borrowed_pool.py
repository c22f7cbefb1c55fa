"""Borrows the connections of a PostgreSQL memory from an asyncpg pool of the application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

from flux_memory.backends.observation import Observers
from flux_memory.backends.pool_meter import MeteredPool
from flux_memory.backends.pool_stats import Occupancy
from flux_memory.backends.postgres.connecting import DRIVER_ERRORS, classify
from flux_memory.backends.postgres.errors import not_connected
from flux_memory.backends.postgres.retry import SERVER_GRACE_SECONDS, back_off, log_connecting_again, terminate


class BorrowedPool(MeteredPool):
    """The application's asyncpg pool: each connection goes back after each statement, and none is ever closed."""

    many_hosts = False
    reads_only = False

    def __init__(self, pool: Any, observers: Observers) -> None:
        super().__init__(observers)
        self._pool = pool
        self.max_size: Final[int] = pool.get_max_size()
        self.trouble: Exception | None = None
        self.loop_end: AsyncGenerator[None, None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()

    async def fill(self) -> None:
        """Do nothing: the owner decides the pool's size."""

    def occupancy(self) -> Occupancy:
        """Return the connections of the whole pool, also those that the application uses itself."""
        pool = self._pool
        return Occupancy(pool.get_min_size(), self.max_size, pool.get_size(), pool.get_idle_size(), self.meter.waiting)

    def take_now(self) -> None:
        """Return `None`: to take a connection from asyncpg's pool is to wait."""

    async def take(self) -> Any:
        tried, began = 0, time.perf_counter()
        with self.meter.wait():
            while True:
                try:
                    connection = await self._pool.acquire()
                except Exception as error:
                    self.trouble = error
                    if not isinstance(error, DRIVER_ERRORS):
                        raise
                    if not classify(error).passes:
                        raise not_connected("a borrowed pool", error) from error
                    tried += 1
                    log_connecting_again(self.meter, "a borrowed pool", error, tried)
                else:
                    self.trouble = None
                    self.meter.note_taken(connection, time.perf_counter() - began)
                    return connection
                await back_off(tried)

    def put_back(self, connection: Any) -> asyncio.Future[Any]:
        if self.meter.taken:
            self.meter.note_returned(connection)
        # In its own task: the reset can fail, or be cancelled, after the statement has succeeded.
        releasing = self._run_in_background(self._pool.release(connection, timeout=SERVER_GRACE_SECONDS))
        releasing.add_done_callback(partial(_drop_unless_released, connection))
        return releasing

    def expire(self) -> None:
        self._run_in_background(self._pool.expire_connections())

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds what takes no timeout
        """Wait for connections that are being released; the pool stays open."""
        with suppress(RuntimeError, ValueError):
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=min(timeout, SERVER_GRACE_SECONDS))

    def terminate(self) -> None:
        """Do nothing: the owner closes the pool."""

    def _run_in_background(self, doing: Coroutine[Any, Any, None]) -> asyncio.Future[Any]:
        # The event loop itself holds tasks only weakly.
        task = asyncio.ensure_future(doing)
        self._tasks.add(task)
        task.add_done_callback(self._finish_task)
        return task

    def _finish_task(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()


def _drop_unless_released(connection: Any, releasing: asyncio.Future[Any]) -> None:
    if releasing.cancelled():
        # Possibly before its first step: the pool would wait for the connection for ever.
        terminate(connection)
