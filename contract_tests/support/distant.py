"""Stores that can be out of reach: the reference model behind a switch, a locked file, PostgreSQL behind a proxy."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from raw_postgres import connected

from flux_memory import BackendUnavailableError, ConversationMemory, Memory, PostgresConversationMemory
from flux_memory.backends.deadlines import seconds_for
from flux_memory.testkit import Proxy, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.lifecycle import EVERY_CALL
from flux_memory.testkit.contract.outages import Outage, network_outages

TIMEOUT_SECONDS: Final = 30.0
LOCK_SESSIONS: Final = "SELECT FROM sessions FOR UPDATE"
"""Lets reads through, and no write to a session that is there."""


class DistantMemory(ReferenceMemory):
    """The reference model in a place that can be out of reach; a call waits for it until its deadline."""

    def __init__(self, store: ReferenceStore, switch: Switch) -> None:
        super().__init__(store)
        self._switch = switch


class Switch:
    """Whether the store is out of reach now, and whether calls made meanwhile hear when it is back."""

    def __init__(self) -> None:
        self._away = False
        self._silent = False

    async def reach(self) -> None:
        """Return once the store can be reached.

        Raises:
            BackendUnavailableError: It could not until the deadline.
        """
        lost = self._away and self._silent
        try:
            async with asyncio.timeout(seconds_for(TIMEOUT_SECONDS)):
                while self._away or lost:  # noqa: ASYNC110 - an event belongs to one loop, the store to all
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise BackendUnavailableError("the store was out of reach; nothing was stored") from None

    def outages(self, open_memory: Callable[[], Memory]) -> tuple[Outage, ...]:
        """Return the outages of handles behind the switch."""
        return (
            Outage("down", open_memory, lambda: self._turned(silent=False)),
            Outage("silent", open_memory, lambda: self._turned(silent=True), loses_connections=True),
        )

    @asynccontextmanager
    async def _turned(self, *, silent: bool) -> AsyncIterator[None]:
        self._away, self._silent = True, silent
        try:
            yield
        finally:
            self._away = False


def _reaching(name: str) -> Callable[..., Any]:
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_open()
        await self._switch.reach()
        return await getattr(ReferenceMemory, name)(self, *args, **kwargs)

    return call


for _name in EVERY_CALL:
    setattr(DistantMemory, _name, _reaching(_name))


def never_away(open_memory: Callable[[], Memory]) -> tuple[Outage, ...]:
    """Return an outage in which nothing happens."""

    def away() -> AbstractAsyncContextManager[None]:
        return nullcontext()

    return (Outage("none", open_memory, away),)


def locked_sqlite(path: Path) -> tuple[Outage, ...]:
    """Return the outage of a file that another client has locked."""

    @asynccontextmanager
    async def locked() -> AsyncIterator[None]:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            yield
            db.execute("ROLLBACK")

    return (Outage("file locked", lambda: ConversationMemory(path), locked),)


@contextmanager
def distant_postgres(dsn: str) -> Iterator[Sequence[Outage]]:
    """Give the outages of a server: its network, and a lock that another client holds."""

    @asynccontextmanager
    async def locked() -> AsyncIterator[None]:
        async with connected(dsn) as connection, connection.transaction():
            await connection.execute(LOCK_SESSIONS)
            yield

    with Proxy(dsn) as proxy:
        yield (
            *network_outages(proxy, lambda: PostgresConversationMemory(proxy.dsn)),
            Outage("sessions locked", lambda: PostgresConversationMemory(dsn), locked),
        )
