"""Stores that a test can make unreachable: a switched reference model, a locked file, a server behind a proxy."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext
from pathlib import Path
from typing import Any, Final

from raw_postgres import connect

from flux_memory import BackendUnavailableError, ConversationMemory, Memory, PostgresConversationMemory
from flux_memory.backends.deadlines import seconds_for
from flux_memory.testkit import ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.outages import Outage
from flux_memory.testkit.reference.memory import READS, WRITES

TIMEOUT_SECONDS: Final = 30.0
LOCK_SESSIONS: Final = "SELECT FROM sessions FOR UPDATE"
"""Lets readers through and blocks writers of existing sessions."""


class SwitchedMemory(ReferenceMemory):
    """The reference model as a remote store: while it is unreachable, calls wait until their deadline."""

    def __init__(self, store: ReferenceStore, switch: Switch) -> None:
        super().__init__(store)
        self._switch = switch


class Switch:
    """Makes a store unreachable; a silent outage also loses the calls in flight, as a dead connection does."""

    def __init__(self) -> None:
        self._away = False
        self._silent = False

    async def reach(self) -> None:
        """Return once the store is reachable.

        Raises:
            BackendUnavailableError: the store stayed unreachable until the deadline.
        """
        lost = self._away and self._silent
        try:
            async with asyncio.timeout(seconds_for(TIMEOUT_SECONDS)):
                while self._away or lost:  # noqa: ASYNC110 - an event belongs to one loop, the store to all
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise BackendUnavailableError("the store was out of reach; nothing was stored") from None

    def outages(self, open_memory: Callable[[], Memory]) -> tuple[Outage, ...]:
        """Return the outages of handles that use this switch."""
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


def _when_reachable(name: str) -> Callable[..., Any]:
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_open()
        await self._switch.reach()
        return await getattr(ReferenceMemory, name)(self, *args, **kwargs)

    return call


for _name in (*WRITES, *READS):
    setattr(SwitchedMemory, _name, _when_reachable(_name))


def make_no_outage(open_memory: Callable[[], Memory]) -> tuple[Outage, ...]:
    """Return an outage during which the store stays reachable."""

    def away() -> AbstractAsyncContextManager[None]:
        return nullcontext()

    return (Outage("none", open_memory, away),)


def make_lock_outages(path: Path) -> tuple[Outage, ...]:
    """Return the outage of a file that another client has locked."""

    @asynccontextmanager
    async def locked() -> AsyncIterator[None]:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            yield
            db.execute("ROLLBACK")

    return (Outage("file locked", lambda: ConversationMemory(path), locked),)


def make_postgres_outages(dsn: str) -> tuple[Outage, ...]:
    """Return the outage of sessions that another client has locked."""

    @asynccontextmanager
    async def locked() -> AsyncIterator[None]:
        async with connect(dsn) as connection, connection.transaction():
            await connection.execute(LOCK_SESSIONS)
            yield

    return (Outage("sessions locked", lambda: PostgresConversationMemory(dsn), locked),)
