"""The connections behind a PostgreSQL memory: a pool of its own, or a borrowed one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final, Protocol

import asyncpg

from flux_memory.backends.postgres_errors import ROLLED_BACK_FOR_ANOTHER
from flux_memory.errors import InvalidInputError, SchemaError
from flux_memory.schema import postgres as schema

_ATTEMPTS: Final = 5
"""How often a statement runs that the server rolled back for the sake of another one."""
_IDLE_SECONDS: Final = 60.0
"""How long connections beyond `min_size` stay checked out with nothing to do."""


class Connections(Protocol):
    """Runs statements, each on a connection of its own, each atomic by itself."""

    async def fetch(self, sql: str, *values: object) -> list[Any]:
        """Run one statement and return its rows; run it again where the server undid it for another one."""
        ...

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds what takes no timeout
        """Close what is owned, by force after `timeout` seconds."""
        ...

    def terminate(self) -> None:
        """Drop what is owned without a word to the server."""
        ...


class OwnConnections:
    """A pool whose connections stay checked out between calls.

    Acquiring from asyncpg's pool costs more than a statement's own client time, and nobody else uses this pool. The
    one used last is taken first; those that nobody needs go back to the pool, which closes them.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._slots = asyncio.Semaphore(pool.get_max_size())
        self._free: list[Any] = []
        self._fewest_free = 0
        self._trimming: asyncio.TimerHandle | None = None
        self._closing = False

    async def fetch(self, sql: str, *values: object) -> list[Any]:
        for attempt in range(1, _ATTEMPTS + 1):
            async with self._slots:
                connection = await self._take()
                try:
                    return list(await connection.fetch(sql, *values))
                except ROLLED_BACK_FOR_ANOTHER:
                    if attempt == _ATTEMPTS:
                        raise
                finally:
                    self._put_back(connection)
        raise AssertionError("unreachable")

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds what takes no timeout
        self._closing = True
        self._stop_trimming()
        try:
            async with asyncio.timeout(timeout):
                while self._free:
                    await self._pool.release(self._free.pop())
                await self._pool.close()
        except (TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError, OSError, RuntimeError):
            # RuntimeError: the event loop on which the connections live is closed.
            self.terminate()

    def terminate(self) -> None:
        self._stop_trimming()
        # The connections of a closed event loop cannot be closed any more; they go with their sockets.
        with suppress(Exception):
            self._pool.terminate()

    async def _take(self) -> Any:
        while self._free:
            connection = self._free.pop()
            if _is_usable(connection):
                self._fewest_free = min(self._fewest_free, len(self._free))
                return connection
            await self._pool.release(connection)
        # A task of its own: asyncpg does not clean up after a connection whose opening is cancelled.
        opening = asyncio.ensure_future(self._pool.acquire())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._give_back)
            raise

    def _give_back(self, opening: asyncio.Future[Any]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._release(opening.result())

    def _release(self, connection: Any) -> None:
        releasing = asyncio.ensure_future(self._pool.release(connection))
        releasing.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _put_back(self, connection: Any) -> None:
        if self._closing:
            # A statement whose callers were cancelled ends after them; the pool waits for its connection.
            self._release(connection)
            return
        self._free.append(connection)
        if self._trimming is None and len(self._free) > self._pool.get_min_size():
            self._fewest_free = len(self._free)
            self._trimming = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._trim)

    def _trim(self) -> None:
        """Give back what has not been needed since the last time."""
        self._trimming = None
        surplus = min(self._fewest_free, len(self._free) - self._pool.get_min_size())
        for connection in self._free[: max(surplus, 0)]:
            self._free.remove(connection)
            self._release(connection)
        if len(self._free) > self._pool.get_min_size():
            self._fewest_free = len(self._free)
            self._trimming = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._trim)

    def _stop_trimming(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None


def _is_usable(connection: Any) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        # It died while idle, and the pool took it back.
        return False


class BorrowedConnections:
    """Somebody's pool: each connection goes back after each statement, and nothing is ever closed."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def fetch(self, sql: str, *values: object) -> list[Any]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._pool.acquire() as connection:
                    return list(await connection.fetch(sql, *values))
            except ROLLED_BACK_FOR_ANOTHER:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds what takes no timeout
        """Leave the pool to its owner."""

    def terminate(self) -> None:
        """Leave the pool to its owner."""


async def open_pool(url: str, arguments: dict[str, Any]) -> Any:
    """Open a pool and change nothing in the database."""
    pool = asyncpg.create_pool(url, reset=_keep_state, **arguments)
    try:
        await pool
    except UnicodeError as error:
        raise InvalidInputError(f"the DSN has a host that cannot be one: {error}; mend its name") from error
    except BaseException:
        # A half-open pool keeps the connections it got.
        pool.terminate()
        raise
    return pool


async def prepare(pool: Any) -> None:
    """Make sure that the database can hold every text, and bring its schema up to date."""
    async with pool.acquire() as connection:
        await check_encoding(connection)
        await schema.bring_up_to_date(connection)


async def check_encoding(connection: Any) -> None:
    """Raise `SchemaError` unless the database can hold every text."""
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise SchemaError(
            f"the database's encoding is {encoding}, which cannot hold every text; create it with ENCODING 'UTF8'"
        )


async def _keep_state(connection: Any) -> None:
    """Reset nothing on release: no statement of ours changes a session's state, and RESET is a round trip."""
