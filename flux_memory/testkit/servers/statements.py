"""Runs statements from synchronous code: one thread, one event loop, one kept connection per database."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import asyncpg

from flux_memory.testkit.servers.running import NotAnswered

_T = TypeVar("_T")
_STATEMENT_SECONDS: Final = 30.0
_LOST: Final = (
    ConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""The errors that asyncpg raises if a connection is lost."""
ESCAPE: Final = "if the password contains '/', '@', ':', '#' or '?', write them as %2F, %40, %3A, %23, %3F"


class UnfinishedTransaction(Exception):  # noqa: N818 - a state
    """A script left a transaction open, so its changes are lost."""


class Statements:
    """Runs statements on its own event loop, so that nothing is bound to the loop of a test.

    Args:
        own_server: The server was started for the run: its DSN is complete, and `PG*` variables have no effect.
    """

    def __init__(self, *, own_server: bool = False) -> None:
        self._own_server = own_server
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flux-postgres-statements", daemon=True)
        self._thread.start()
        self._connections: dict[str, Any] = {}
        self._greetings: dict[str, tuple[str, tuple[object, ...]]] = {}

    def greet(self, dsn: str, query: str, *arguments: object) -> None:
        """Connect, and run the query now and after every reconnect."""
        self._greetings[dsn] = (query, arguments)
        self._run(self._connection(dsn))

    def execute(self, dsn: str, statement: str) -> None:
        """Run one or more statements without parameters."""
        self._run(self._call(dsn, "execute", statement))

    def run_script(self, dsn: str, script: str, seconds: float) -> None:
        """Run statements on a connection of their own, once: settings of the session end with them.

        Args:
            dsn: The database.
            script: The statements.
            seconds: The time limit.

        Raises:
            UnfinishedTransaction: The statements end within a transaction.
        """
        self._run(self._run_script(dsn, script, seconds))

    def fetch_value(self, dsn: str, query: str, *arguments: object) -> Any:
        """Return the first value of the first row."""
        return self._run(self._call(dsn, "fetchval", query, *arguments))

    def fetch_column(self, dsn: str, query: str, *arguments: object) -> list[Any]:
        """Return the first value of every row."""
        return [row[0] for row in self._run(self._call(dsn, "fetch", query, *arguments))]

    def forget(self, dsn: str) -> None:
        """Close the connection to a database, so that it can be dropped."""
        self._run(self._forget(dsn))

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child of the process that made the object: the thread was not forked with it."""
        return os.getpid() != self._process

    def close(self) -> None:
        """Close every connection and end the thread. Closing twice is not an error; a forked child closes nothing."""
        if self._loop.is_closed() or self.is_inherited:
            return
        for dsn in list(self._connections):
            self.forget(dsn)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self.is_inherited:
            work.close()
            raise RuntimeError(
                "this server object was made before the process forked, and belongs to the parent; pass the DSN of a "
                "database to the child, or call start_server(dsn) in it"
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _call(self, dsn: str, method: str, *arguments: object) -> Any:
        try:
            return await getattr(await self._connection(dsn), method)(*arguments, timeout=_STATEMENT_SECONDS)
        except _LOST:
            # A test may have terminated all connections, including this one.
            await self._forget(dsn)
        try:
            return await getattr(await self._connection(dsn), method)(*arguments, timeout=_STATEMENT_SECONDS)
        except _LOST as error:
            raise NotAnswered(f"the connection was lost twice: {error}") from error

    async def _run_script(self, dsn: str, script: str, seconds: float) -> None:
        connection = await _connect(dsn, _taken_from(dsn) if self._own_server else {})
        try:
            await connection.execute(script, timeout=seconds)
            if connection.is_in_transaction():
                raise UnfinishedTransaction("it ends within a transaction, which is rolled back: add COMMIT")
        finally:
            connection.terminate()

    async def _forget(self, dsn: str) -> None:
        connection = self._connections.pop(dsn, None)
        if connection is not None:
            try:
                await connection.close(timeout=1)
            except Exception:  # noqa: BLE001 - the server may be gone, and with it the connection
                connection.terminate()

    async def _connection(self, dsn: str) -> Any:
        connection = self._connections.get(dsn)
        if connection is None or connection.is_closed():
            connection = await _connect(dsn, _taken_from(dsn) if self._own_server else {})
            self._connections[dsn] = connection
            if dsn in self._greetings:
                query, arguments = self._greetings[dsn]
                await connection.fetchval(query, *arguments, timeout=_STATEMENT_SECONDS)
        return connection


def _taken_from(dsn: str) -> dict[str, Any]:
    """Return the arguments with which asyncpg reads no variable of the environment."""
    no_tls = {"ssl": False, "direct_tls": False}
    return {"port": urlsplit(dsn).port, **no_tls, "target_session_attrs": "any", "gsslib": "gssapi"}


async def _connect(dsn: str, arguments: dict[str, Any]) -> Any:
    try:
        async with asyncio.timeout(_STATEMENT_SECONDS):
            return await asyncpg.connect(dsn, **arguments)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # A timeout is an OSError.
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise NotAnswered(said[0]) from error
    except Exception as error:  # noqa: BLE001 - asyncpg raises many kinds of errors from a malformed DSN or variable
        # Their messages quote part of the DSN, possibly part of the password.
        kind = type(error).__name__
        raise NotAnswered(f"the DSN or a PG* variable cannot be parsed ({kind}); {ESCAPE}") from None
