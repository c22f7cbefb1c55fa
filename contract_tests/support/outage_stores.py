"""Stores that a test can make unreachable or lock: a switched reference model, a locked file, locked rows."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

from raw_postgres import connect

from flux_memory import BackendUnavailableError, ConversationMemory, Memory, PostgresConversationMemory
from flux_memory.backends.deadlines import seconds_for
from flux_memory.testkit import ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.hooks import HoldLocks, Record
from flux_memory.testkit.contract.outages import Outage
from flux_memory.testkit.reference.memory import READS, WRITES

TIMEOUT_SECONDS: Final = 30.0
LOCK_SESSIONS: Final = "SELECT FROM sessions FOR UPDATE"
"""Lets readers through and blocks writers of existing sessions."""
LOCK_SESSION: Final = "SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE"
LOCK_MESSAGE: Final = "SELECT 1 FROM messages WHERE session_id = $1 AND id = $2 FOR UPDATE"


class SwitchedMemory(ReferenceMemory):
    """The reference model as a remote store: while it is unreachable, calls wait until their deadline."""

    def __init__(self, store: ReferenceStore, switch: Switch) -> None:
        super().__init__(store)
        self._switch = switch


class Switch:
    """Makes a store unreachable, or locks records; a silent outage also loses the calls in flight."""

    def __init__(self) -> None:
        self._away = False
        self._silent = False
        self._held: Sequence[Record] = ()

    async def reach(self, needs: Callable[[Record], bool] = lambda _: False) -> None:
        """Return once the store is reachable, and no other client holds a lock that the call needs.

        Raises:
            BackendUnavailableError: the store stayed unreachable, or a record locked, until the deadline.
        """
        lost = self._away and self._silent
        try:
            async with asyncio.timeout(seconds_for(TIMEOUT_SECONDS)):
                # An event would belong to one loop, and the store to all.
                while self._away or lost or any(map(needs, self._held)):  # noqa: ASYNC110 - see above
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise BackendUnavailableError("the store was out of reach or locked; nothing was stored") from None

    def outages(self, open_memory: Callable[[], Memory]) -> tuple[Outage, ...]:
        """Return the outages of handles that use this switch."""
        return (
            Outage("down", open_memory, lambda: self._turned(silent=False)),
            Outage("silent", open_memory, lambda: self._turned(silent=True), loses_connections=True),
        )

    @asynccontextmanager
    async def hold(self, records: Sequence[Record]) -> AsyncIterator[None]:
        """Hold the locks of these records: of a session against every write to it, of a message against its own."""
        self._held = records
        try:
            yield
        finally:
            self._held = ()

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
        await self._switch.reach(partial(needs_lock, name, args, kwargs))
        return await getattr(ReferenceMemory, name)(self, *args, **kwargs)

    return call


def needs_lock(name: str, given: Sequence[Any], named: dict[str, Any], record: Record) -> bool:
    """Return whether a call needs the lock of a record: a bulk deletion any, an add not that of every message."""
    session, message = record
    if name in {"delete_sessions", "clear_all"}:
        return True
    if name not in WRITES or name in {"create_session", "add_feedback"} or session not in given[:1]:
        return False
    if message is None or name not in {"add_message", "add_messages"}:
        return True
    added = [named] if name == "add_message" else given[1]
    return message in [one.get("message_id") for one in added]


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


def make_sqlite_locks(path: Path) -> HoldLocks:
    """Return a context in which another client holds the lock of a file: SQLite locks no less."""

    @asynccontextmanager
    async def hold(records: Sequence[Record]) -> AsyncIterator[None]:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")

    return hold


def make_postgres_locks(dsn: str) -> HoldLocks:
    """Return a context in which another client holds the locks of the rows of some records."""

    @asynccontextmanager
    async def hold(records: Sequence[Record]) -> AsyncIterator[None]:
        async with connect(dsn) as connection, connection.transaction():
            for session_id, message_id in records:
                if message_id is None:
                    await connection.execute(LOCK_SESSION, session_id)
                else:
                    await connection.execute(LOCK_MESSAGE, session_id, message_id)
            yield

    return hold
