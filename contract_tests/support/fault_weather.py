"""The weather of a storm: faults around a store on each engine, and reads of the store without the library."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import asyncpg
from fault_outcomes import open_postgres
from postgres_proxy import PostgresProxy
from raw_postgres import BUSY, CONNECTIONS, with_application_name
from waiting import wait_until

from flux_memory import ConversationMemory, Memory, deadline
from flux_memory.testkit.histories import Stored, read_stored

NUMBERS: Final = "SELECT session_id, seq, id FROM messages"
TERMINATE: Final = f"SELECT pg_terminate_backend(pid) {CONNECTIONS} AND random() < 0.4"
POSTGRES_CHECK: Final = "ALTER TABLE messages ADD CONSTRAINT good CHECK (content NOT LIKE 'bad%')"
SQLITE_CHECK: Final = """
CREATE TRIGGER good BEFORE INSERT ON messages WHEN new.content LIKE 'bad%'
BEGIN SELECT raise(ABORT, 'the content is bad'); END
"""
LOCKER: Final = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
for line in sys.stdin:
    begin, seconds = line.split()
    try:
        db.execute("BEGIN " + begin)
        if begin == "DEFERRED":
            db.execute("SELECT count(*) FROM messages").fetchone()
        time.sleep(float(seconds))
        db.execute("ROLLBACK")
    except sqlite3.OperationalError:
        pass
    print("done", flush=True)
"""


class Weather(Protocol):
    """Breaks the surroundings of a store, and reads it without the library."""

    def opened(self) -> AbstractAsyncContextManager[Memory]:
        """Open the handle that the workers share."""
        ...

    async def strike(self, rng: random.Random, sessions: list[str]) -> None:
        """Break something for a moment, and repair it."""
        ...

    async def hold(self, rng: random.Random, sessions: list[str]) -> None:
        """Hold locks for a moment."""
        ...

    async def refuse_bad_rows(self) -> None:
        """Make the store refuse contents that begin with `bad`."""
        ...

    async def at_rest(self, memory: Memory) -> Stored:
        """Wait until no call is in flight in the store, and read everything."""
        ...

    async def forget(self, sessions: list[str]) -> None:
        """Delete these sessions."""
        ...


class PostgresWeather:
    """A proxy in front of a database, and a direct connection."""

    def __init__(self, dsn: str, direct: Any, holder: Any, proxy: PostgresProxy, *, borrowed: bool) -> None:
        self._dsn = dsn
        self._borrowed = borrowed
        self._direct = direct
        self._holder = holder
        self._proxy = proxy

    def opened(self) -> AbstractAsyncContextManager[Memory]:
        return open_postgres(self._proxy.dsn, borrowed=self._borrowed)

    async def strike(self, rng: random.Random, sessions: list[str]) -> None:
        seconds = rng.uniform(0.05, 0.5)
        kind = rng.choices(
            ("reset", "lose", "terminate", "refuse", "silence", "forget", "slow"), (4, 4, 3, 2, 2, 1, 1)
        )[0]
        if kind == "reset":
            self._proxy.reset()
        elif kind == "lose":
            self._proxy.lose_reply_to("sync", times=rng.randrange(1, 6))
        elif kind == "terminate":
            await self._direct.execute(TERMINATE)
        elif kind == "forget":
            self._proxy.forget()
        elif kind == "slow":
            self._proxy.slow(rng.choice((20_000, 200_000)))
        elif kind == "silence":
            self._proxy.silence_at(rng.choice((None, "bind", "execute", "sync")))
        else:
            self._proxy.refuse()
            self._proxy.reset()
            # Until the callers with short deadlines have left, and a little longer.
            seconds = rng.uniform(0.1, 1.5)
        await asyncio.sleep(seconds)
        self._proxy.heal()

    async def hold(self, rng: random.Random, sessions: list[str]) -> None:
        # The server may find a deadlock between the rows of this transaction and those of a statement.
        with suppress(asyncpg.DeadlockDetectedError):
            await self._hold(rng, sessions)

    async def _hold(self, rng: random.Random, sessions: list[str]) -> None:
        async with self._holder.transaction():
            for session in rng.sample(sessions, rng.randrange(1, len(sessions))):
                await self._holder.execute("SELECT FROM sessions WHERE id = $1 FOR UPDATE", session)
            await asyncio.sleep(rng.uniform(0.05, 0.5))

    async def refuse_bad_rows(self) -> None:
        await self._direct.execute(POSTGRES_CHECK)

    async def at_rest(self, memory: Memory) -> Stored:
        async def quiet() -> bool:
            return not await self._direct.fetchval(BUSY)

        await wait_until(quiet)
        async with open_postgres(self._dsn) as reader:
            return await read_stored(reader, _by_session(await self._direct.fetch(NUMBERS)))

    async def forget(self, sessions: list[str]) -> None:
        await self._direct.execute("DELETE FROM sessions WHERE id = ANY ($1::text[])", sessions)


class SqliteWeather:
    """Another process that locks the file."""

    def __init__(self, path: Path, locker: asyncio.subprocess.Process) -> None:
        self._path = path
        self._locker = locker

    def opened(self) -> AbstractAsyncContextManager[Memory]:
        return ConversationMemory(self._path)

    async def strike(self, rng: random.Random, sessions: list[str]) -> None:
        await asyncio.sleep(rng.uniform(0.1, 1.0))

    async def hold(self, rng: random.Random, sessions: list[str]) -> None:
        kind = rng.choice(("EXCLUSIVE", "EXCLUSIVE", "IMMEDIATE", "DEFERRED"))
        assert self._locker.stdin is not None
        assert self._locker.stdout is not None
        self._locker.stdin.write(f"{kind} {rng.choice((0.01, 0.05, 0.3, 1.0))}\n".encode())
        await self._locker.stdout.readline()
        await asyncio.sleep(rng.uniform(0, 0.3))

    async def refuse_bad_rows(self) -> None:
        with closing(sqlite3.connect(self._path)) as db:
            db.execute(SQLITE_CHECK)

    async def at_rest(self, memory: Memory) -> Stored:
        with closing(sqlite3.connect(self._path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            numbers = _by_session(db.execute(NUMBERS).fetchall())
        # A new handle would refuse the trigger of `refuse_bad_rows`.
        with deadline(30):
            return await read_stored(memory, numbers)

    async def forget(self, sessions: list[str]) -> None:
        with closing(sqlite3.connect(self._path, timeout=20)) as db, db:
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("DELETE FROM sessions WHERE id IN (SELECT value FROM json_each(?))", [json.dumps(sessions)])


def _by_session(rows: Iterable[Sequence[Any]]) -> dict[str, list[tuple[int, str]]]:
    numbers: dict[str, list[tuple[int, str]]] = {}
    for session, number, message in rows:
        numbers.setdefault(session, []).append((number, message))
    return numbers


@asynccontextmanager
async def postgres_weather(dsn: str, *, borrowed: bool = False) -> AsyncIterator[Weather]:
    """Break the connections between a handle and a database."""
    direct, holder = [await asyncpg.connect(dsn) for _ in range(2)]
    try:
        with PostgresProxy(with_application_name(dsn)) as proxy:
            yield PostgresWeather(dsn, direct, holder, proxy, borrowed=borrowed)
    finally:
        await direct.close()
        await holder.close()


@asynccontextmanager
async def sqlite_weather(path: Path) -> AsyncIterator[Weather]:
    """Lock a file from another process."""
    locker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOCKER, str(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield SqliteWeather(path, locker)
    finally:
        assert locker.stdin is not None
        locker.stdin.close()
        await locker.wait()
