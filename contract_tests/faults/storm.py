"""A storm: 40 workers on one handle, deadlines of 0.02, 0.2 and 4 s mixed, while everything around it breaks.

    python contract_tests/faults/storm.py --engine postgres --seconds 3600 --seed 1

Writes are cancelled at random and tried again with the same ids, and some are refused by the store. On PostgreSQL
connections are reset, refused, silent and killed, replies are lost and rows held; on SQLite another process locks the
file; on both the event loop stalls. Each round ends at rest, and is judged there and once more a round later. Prints a
summary as JSON, and ends with 1 where a promise was broken.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

import asyncpg
import click
from fault_cluster import cluster
from fault_storm import AFTERWARDS, Rest, Round, Sent, Verdict
from fault_told import opened
from raw_postgres import BUSY, CONNECTIONS, named
from waiting import until

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    ConversationMemory,
    FluxMemoryError,
    Memory,
    OutcomeUnknownError,
    deadline,
)
from flux_memory.testkit import Proxy

WORKERS: Final = 40
SESSIONS: Final = 12
DEADLINES: Final = (0.02, 0.2, 4.0)
"""Seconds."""
ROUND_SECONDS: Final = 20.0
LATENESS: Final = 10.0
"""Seconds after its deadline, or its cancellation, at which a call is taken to hang; it should be one."""
ATTEMPTS: Final = 5

MESSAGES: Final = "SELECT session_id, seq, content FROM messages ORDER BY session_id, seq"
POSTGRES_SESSIONS: Final = "SELECT id, title, message_count, coalesce(metadata ->> 'made', '') FROM sessions"
SQLITE_SESSIONS: Final = "SELECT id, title, message_count, coalesce(metadata ->> '$.made', '') FROM sessions"
TERMINATE: Final = f"SELECT pg_terminate_backend(pid) {CONNECTIONS} AND random() < 0.4"
RENAME: Final = "UPDATE sessions SET title = 'renamed' WHERE metadata ? 'made' AND random() < 0.3"
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
    """What breaks things around a store, and reads it past the library."""

    def opened(self) -> AbstractAsyncContextManager[Memory]:
        """Open the handle that the workers share."""
        ...

    async def strike(self, rng: random.Random, sessions: list[str]) -> None:
        """Break something for a moment, and heal it."""
        ...

    async def hold(self, rng: random.Random, sessions: list[str]) -> None:
        """Hold locks for a moment."""
        ...

    async def refuse_bad_rows(self) -> None:
        """Let the store refuse contents that begin with `bad`."""
        ...

    async def at_rest(self) -> Rest:
        """Wait until no call is in flight in the store, and read everything."""
        ...

    async def forget(self, sessions: list[str]) -> None:
        """Remove what is not one of these sessions."""
        ...


class PostgresWeather:
    """A proxy before a database, and a connection past it."""

    def __init__(self, direct: Any, holder: Any, proxy: Proxy, *, borrowed: bool) -> None:
        self._borrowed = borrowed
        self._direct = direct
        self._holder = holder
        self._proxy = proxy

    def opened(self) -> AbstractAsyncContextManager[Memory]:
        return opened(self._proxy.dsn, borrowed=self._borrowed)

    async def strike(self, rng: random.Random, sessions: list[str]) -> None:
        seconds = rng.uniform(0.05, 0.5)
        kind = rng.choices(
            ("reset", "lose", "terminate", "refuse", "silence", "forget", "slow"), (4, 4, 3, 2, 2, 1, 1)
        )[0]
        if kind == "reset":
            self._proxy.reset()
        elif kind == "lose":
            self._proxy.lose_reply("sync", times=rng.randrange(1, 6))
        elif kind == "terminate":
            await self._direct.execute(TERMINATE)
        elif kind == "forget":
            self._proxy.forget()
        elif kind == "slow":
            self._proxy.slow(rng.choice((20_000, 200_000)))
        elif kind == "silence":
            self._proxy.silence(rng.choice((None, "bind", "execute", "sync")))
        else:
            self._proxy.refuse()
            self._proxy.reset()
            # Until the impatient have left, and a little longer.
            seconds = rng.uniform(0.1, 1.5)
        await asyncio.sleep(seconds)
        self._proxy.heal()

    async def hold(self, rng: random.Random, sessions: list[str]) -> None:
        # A session whose creation lost its answer may have changed when it is looked for.
        await self._holder.execute(RENAME)
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

    async def at_rest(self) -> Rest:
        async def quiet() -> bool:
            return not await self._direct.fetchval(BUSY)

        await until(quiet)
        return Rest(
            [tuple(row) for row in await self._direct.fetch(MESSAGES)],
            [tuple(row) for row in await self._direct.fetch(POSTGRES_SESSIONS)],
        )

    async def forget(self, sessions: list[str]) -> None:
        await self._direct.execute("DELETE FROM sessions WHERE id <> ALL ($1::text[])", sessions)


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

    async def at_rest(self) -> Rest:
        with closing(sqlite3.connect(self._path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return Rest(db.execute(MESSAGES).fetchall(), db.execute(SQLITE_SESSIONS).fetchall())

    async def forget(self, sessions: list[str]) -> None:
        with closing(sqlite3.connect(self._path, timeout=20)) as db, db:
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("DELETE FROM sessions WHERE id NOT IN (SELECT value FROM json_each(?))", [json.dumps(sessions)])


@asynccontextmanager
async def postgres_weather(dsn: str, *, borrowed: bool = False) -> AsyncIterator[Weather]:
    """Break what is between a handle and a database."""
    direct, holder = [await asyncpg.connect(dsn) for _ in range(2)]
    try:
        with Proxy(named(dsn)) as proxy:
            yield PostgresWeather(direct, holder, proxy, borrowed=borrowed)
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


@dataclass
class Summary:
    """What happened, and what was broken."""

    engine: str
    seed: int
    rounds: int = 0
    told: Counter[str] = field(default_factory=Counter)
    longest_overrun: float = 0.0
    """Seconds by which a call outlived its deadline."""
    verdict: Verdict = field(default_factory=Verdict)
    examples: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """Return it flat, for JSON."""
        told = {name: self.told[name] for name in ("calls", "acknowledged", "refused", "unknown", "cancelled")}
        about = {"engine": self.engine, "seed": self.seed, "rounds": self.rounds}
        return about | told | asdict(self.verdict) | {"longest_overrun": round(self.longest_overrun, 2)}


class Storm:
    """Workers on one handle, in bad weather.

    Args:
        memory: The handle.
        weather: Breaks what is around it.
        summary: Where the outcomes are counted.
        seed: Of everything that is random.
    """

    def __init__(self, memory: Memory, weather: Weather, summary: Summary, seed: int) -> None:
        self._memory = memory
        self._weather = weather
        self._summary = summary
        self._rng = random.Random(seed)
        self._round = Round([])
        self._stopping = False
        self._calls = 0

    async def run(self, seconds: float) -> None:
        """Let it blow for so long, in rounds."""
        end = time.monotonic() + seconds
        before: Round | None = None
        while (left := end - time.monotonic()) > 0:
            this = Round([f"{self._summary.rounds}-{number}" for number in range(SESSIONS)])
            with deadline(20):
                for session in this.sessions:
                    await self._memory.create_session(session_id=session)
            self._round = this
            await self._blow(min(left, ROUND_SECONDS))
            rest = await self._rest()
            self._summary.rounds += 1
            self._summary.verdict.add(this.judge(rest))
            if before is not None:
                # What was judged at rest, and has changed since then, was not at rest.
                again = before.judge(rest)
                self._summary.verdict.refused_but_stored += again.refused_but_stored
                self._summary.verdict.from_nowhere += again.from_nowhere
            before = None if self._had_violations() else this
            await self._weather.forget(this.sessions)

    def _had_violations(self) -> bool:
        return not self._summary.verdict.is_clean

    async def _blow(self, seconds: float) -> None:
        self._stopping = False
        breaking = [asyncio.ensure_future(work) for work in (self._strike(), self._hold(), self._stall())]
        workers = [asyncio.ensure_future(self._work(random.Random(self._rng.random()))) for _ in range(WORKERS)]
        try:
            done, _ = await asyncio.wait([*breaking, *workers], timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            self._stopping = True
            await asyncio.gather(*done, *breaking, *workers)
        finally:
            for task in (*breaking, *workers):
                task.cancel()

    async def _rest(self) -> Rest:
        with deadline(30):
            # Behind everything that still waits for a session.
            outcomes = await asyncio.gather(
                *(self._memory.add_message(session, "user", AFTERWARDS) for session in self._round.sessions),
                return_exceptions=True,
            )
        failed = [repr(outcome)[:300] for outcome in outcomes if isinstance(outcome, BaseException)]
        self._summary.verdict.failed_at_rest += len(failed)
        self._summary.examples += failed
        return await self._weather.at_rest()

    async def _strike(self) -> None:
        while not self._stopping:
            await self._weather.strike(self._rng, self._round.sessions)
            await asyncio.sleep(self._rng.uniform(0, 0.4))

    async def _hold(self) -> None:
        while not self._stopping:
            await self._weather.hold(self._rng, self._round.sessions)
            await asyncio.sleep(self._rng.uniform(0, 0.2))

    async def _stall(self) -> None:
        while not self._stopping:
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))
            time.sleep(self._rng.choice((0.005, 0.03, 0.03, 0.25)))  # noqa: ASYNC251 - the loop stands still

    async def _work(self, rng: random.Random) -> None:
        while not self._stopping:
            await rng.choices((self._add, self._add_batch, self._create, self._rename, self._read), (60, 20, 5, 5, 10))[
                0
            ](rng)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() / 50)

    async def _add(self, rng: random.Random) -> None:
        session, content = rng.choice(self._round.sessions), self._content()
        message_id = content if rng.random() < 0.5 else None
        sent = Sent(session, [content], time.monotonic(), message_id)
        self._round.messages.append(sent)
        await self._attempts(
            rng,
            sent,
            lambda: self._memory.add_message(session, "user", content, message_id=message_id),
            again=message_id is not None,
        )

    async def _add_refused(self, rng: random.Random) -> None:
        """Add what the store refuses, and what its neighbours in a statement must not suffer from."""
        session, content = rng.choice(self._round.sessions), f"bad {self._content()}"
        taken = rng.choice([sent for sent in self._round.messages[:50] if sent.acknowledged] or [None])
        message_id = None
        if (kind := rng.randrange(3)) == 1:
            session = "none"
        elif kind == 2 and taken is not None and taken.message_id is not None:
            session, message_id = taken.session, taken.message_id
        self._round.messages.append(sent := Sent(session, [content], time.monotonic()))
        await self._attempts(
            rng,
            sent,
            lambda: self._memory.add_message(session, "user", content, message_id=message_id),
            again=False,
            refusals=(FluxMemoryError,),
        )

    async def _add_batch(self, rng: random.Random) -> None:
        session, content = rng.choice(self._round.sessions), self._content()
        contents = [f"{content}.{number}" for number in range(rng.randrange(2, 6))]
        with_ids = rng.random() < 0.5
        sent = Sent(session, contents, time.monotonic())
        self._round.messages.append(sent)
        batch: list[Any] = [
            {"role": "user", "content": one} | ({"message_id": one} if with_ids else {}) for one in contents
        ]
        await self._attempts(rng, sent, lambda: self._memory.add_messages(session, batch), again=with_ids)

    async def _create(self, rng: random.Random) -> None:
        name = self._content()
        session_id = f"new-{name}" if rng.random() < 0.5 else None
        sent = Sent(session_id or "", [name], time.monotonic())
        self._round.created.append(sent)
        await self._attempts(
            rng,
            sent,
            lambda: self._memory.create_session(name, {"made": name}, session_id=session_id),
            again=session_id is not None,
            creates=True,
        )

    async def _rename(self, rng: random.Random) -> None:
        session, title = rng.choice(self._round.sessions), self._content()
        sent = Sent(session, [title], time.monotonic())
        self._round.titles.append(sent)
        await self._attempts(rng, sent, lambda: self._memory.update_session_title(session, title), again=False)

    async def _read(self, rng: random.Random) -> None:
        session = rng.choice(self._round.sessions)
        call = rng.choice(
            (
                lambda: self._memory.get_history(session, 10),
                lambda: self._memory.get_sessions(20),
                self._memory.count_sessions,
            )
        )
        await self._attempts(rng, Sent(session, [], time.monotonic()), call, again=False)

    def _content(self) -> str:
        self._calls += 1
        return f"{self._calls}"

    async def _attempts(
        self,
        rng: random.Random,
        sent: Sent,
        call: Callable[[], Awaitable[object]],
        *,
        again: bool,
        creates: bool = False,
        refusals: tuple[type[Exception], ...] = (BackendUnavailableError,),
    ) -> None:
        """Make a call, and make it again with the same ids where its outcome is open."""
        for attempt in range(ATTEMPTS):
            patience = rng.choice(DEADLINES) if attempt < 2 else DEADLINES[-1]
            leaves = rng.random() * rng.choice((0.002, 0.02, 0.2)) if rng.random() < 0.1 else None
            outcome = await self._one(call, patience, leaves)
            self._summary.told["calls"] += 1
            told = self._told(outcome, refusals, exists=creates and sent.open)
            self._summary.told[told] += 1
            if told == "acknowledged":
                sent.acknowledged_at = min(sent.acknowledged_at, time.monotonic())
                return
            if told != "refused":
                sent.open = True
            if not again or self._stopping or rng.random() < 0.2:
                return

    def _told(self, outcome: object, refusals: tuple[type[Exception], ...], *, exists: bool) -> str:
        if not isinstance(outcome, BaseException):
            return "acknowledged"
        if isinstance(outcome, asyncio.CancelledError):
            return "cancelled"
        if isinstance(outcome, OutcomeUnknownError):
            return "unknown"
        if isinstance(outcome, refusals):
            return "refused"
        if isinstance(outcome, ConflictError) and exists:
            # An earlier attempt, whose outcome was open, has made it.
            return "acknowledged"
        if isinstance(outcome, ConflictError):
            self._summary.verdict.false_conflicts += 1
        else:
            self._summary.verdict.foreign_errors += 1
        self._summary.examples.append(repr(outcome)[:300])
        return "unknown"

    async def _one(self, call: Callable[[], Awaitable[object]], patience: float, leaves: float | None) -> object:
        """Make one call and return its result or its exception."""
        with deadline(patience):
            task = asyncio.ensure_future(call())
        began = time.monotonic()
        await asyncio.wait([task], timeout=patience + LATENESS if leaves is None else leaves)
        if not task.done():
            self._summary.verdict.hung += leaves is None
            task.cancel()
            began, patience = time.monotonic(), 0.0
            await asyncio.wait([task], timeout=LATENESS)
        self._summary.longest_overrun = max(self._summary.longest_overrun, time.monotonic() - began - patience)
        if not task.done():
            self._summary.verdict.hung += 1
            return asyncio.CancelledError()
        return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()


async def storm(weather: Weather, engine: str, seconds: float, seed: int) -> Summary:
    """Let a storm blow, and return what it broke."""
    summary = Summary(engine, seed)
    async with weather.opened() as memory:
        await memory.count_sessions()
        await weather.refuse_bad_rows()
        await Storm(memory, weather, summary, seed).run(seconds)
    return summary


async def on_postgres(dsn: str, seconds: float, seed: int, *, borrowed: bool = False) -> Summary:
    """Let a storm blow over a database, whose handle has a pool of its own or a borrowed one."""
    async with postgres_weather(dsn, borrowed=borrowed) as weather:
        return await storm(weather, "postgres", seconds, seed)


async def on_sqlite(path: Path, seconds: float, seed: int) -> Summary:
    """Let a storm blow over a file."""
    async with sqlite_weather(path) as weather:
        return await storm(weather, "sqlite", seconds, seed)


@click.command(help=__doc__)
@click.option("--engine", type=click.Choice(["postgres", "sqlite"]), required=True)
@click.option("--seconds", type=float, default=60.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--borrowed", is_flag=True, help="Borrow a pool of asyncpg's, on PostgreSQL.")
def main(engine: str, seconds: float, seed: int, borrowed: bool) -> None:
    """Run it, and print what it saw."""
    if engine == "postgres":
        with cluster(durable=False) as own:
            summary = asyncio.run(on_postgres(own.dsn, seconds, seed, borrowed=borrowed))
    else:
        with tempfile.TemporaryDirectory() as directory:
            summary = asyncio.run(on_sqlite(Path(directory) / "chat.db", seconds, seed))
    click.echo(json.dumps(summary.shown(), indent=2))
    for example in summary.examples[:5]:
        click.echo(example, err=True)
    sys.exit(not summary.verdict.is_clean)


if __name__ == "__main__":
    main()
