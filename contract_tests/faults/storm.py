"""A storm: 40 workers on one handle, with deadlines of 0.02, 0.2 and 4 s, while everything around the handle breaks.

    python contract_tests/faults/storm.py --engine postgres --seconds 3600 --seed 1

The workers add, pop, truncate, update conditionally, fork, create and delete. Calls are cancelled at random, adds are
retried with the same ids, and the store refuses some rows. On PostgreSQL, connections are reset, refused, silenced and
killed, replies are lost and rows locked; on SQLite, another process locks the file; on both, the event loop stalls.
Each round ends in a calm, in which `flux_memory.testkit.histories` checks its calls, and one round later nothing may
have changed. Prints a summary as JSON; the exit code is 1 if a promise was broken.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

import click
from fault_cluster import run_cluster
from fault_owner import Owner
from fault_storm import Summary, Workers
from fault_weather import Weather, postgres_weather, sqlite_weather

from flux_memory import Memory, deadline
from flux_memory.testkit.histories import History, Journal, Recorder, Stored, check

WORKERS: Final = 30
OWNERS: Final = 10
SESSIONS: Final = 12
ROUND_SECONDS: Final = 6.0


class Storm:
    """Workers on one handle, in bad weather.

    Args:
        memory: The handle.
        weather: Breaks the surroundings of the store.
        summary: Counts the outcomes.
        seed: Seed of every random choice.
        directory: Where the journals are written.
    """

    def __init__(self, memory: Memory, weather: Weather, summary: Summary, seed: int, directory: Path) -> None:
        self._memory = memory
        self._weather = weather
        self._summary = summary
        self._rng = random.Random(seed)
        self._directory = directory
        self._stopping = False

    async def run(self, seconds: float) -> None:
        """Let the storm blow for this long, in rounds."""
        end = time.monotonic() + seconds
        before = Stored({}, {})
        while (left := end - time.monotonic()) > 0:
            file = self._directory / f"{self._summary.rounds}.jsonl"
            journal = Journal(file)
            recorder = Recorder(self._memory, journal, "storm")
            workers = Workers(recorder, self._summary, f"r{self._summary.rounds}", SESSIONS)
            with deadline(20):
                for session in workers.sessions:
                    await recorder.create_session(session_id=session)
            await self._blow(recorder, workers, min(left, ROUND_SECONDS))
            stored = await self._rest(recorder, workers)
            journal.close()
            before = await self._judge(History.read(file), stored, before)
            file.unlink()
            self._summary.rounds += 1

    async def _judge(self, history: History, stored: Stored, before: Stored) -> Stored:
        """Check one round, and that the round before is as it was; return what the round has stored."""
        names = before.sessions.keys()
        for name, session in before.sessions.items():
            # A difference means that the store was not at rest.
            if stored.sessions.get(name) != session:
                self._summary.add_broken("changed at rest", f"{session!r} is now {stored.sessions.get(name)!r}")
        new = Stored(
            {name: session for name, session in stored.sessions.items() if name not in names},
            {name: numbers for name, numbers in (stored.numbers or {}).items() if name not in names},
        )
        for violation in check(history, new, resends=self._summary.engine == "postgres"):
            self._summary.add_broken(violation.kind, violation.sentence)
        await self._weather.forget([*names])
        return new

    async def _blow(self, recorder: Recorder, workers: Workers, seconds: float) -> None:
        self._stopping = False
        breaking = [asyncio.ensure_future(work) for work in (self._strike(workers), self._hold(workers), self._stall())]
        owners = [Owner(recorder, workers, self._summary).work for _ in range(OWNERS)]
        working = [
            asyncio.ensure_future(work(random.Random(self._rng.random()))) for work in [workers.work] * WORKERS + owners
        ]
        try:
            done, _ = await asyncio.wait([*breaking, *working], timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            self._stopping = workers.stopping = True
            await asyncio.gather(*done, *breaking, *working)
        finally:
            for task in (*breaking, *working):
                task.cancel()

    async def _rest(self, recorder: Recorder, workers: Workers) -> Stored:
        with deadline(30):
            # These adds queue behind all earlier calls of their sessions.
            outcomes = await asyncio.gather(
                *(recorder.add_message(session, "user", "afterwards") for session in workers.sessions),
                return_exceptions=True,
            )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                self._summary.add_broken("failed at rest", repr(outcome))
        return await self._weather.at_rest(self._memory)

    async def _strike(self, workers: Workers) -> None:
        while not self._stopping:
            await self._weather.strike(self._rng, workers.sessions)
            await asyncio.sleep(self._rng.uniform(0, 0.4))

    async def _hold(self, workers: Workers) -> None:
        while not self._stopping:
            await self._weather.hold(self._rng, workers.sessions)
            await asyncio.sleep(self._rng.uniform(0, 0.2))

    async def _stall(self) -> None:
        while not self._stopping:
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))
            time.sleep(self._rng.choice((0.005, 0.03, 0.03, 0.25)))  # noqa: ASYNC251 - the stall under test


async def storm(weather: Weather, engine: str, seconds: float, seed: int) -> Summary:
    """Let a storm blow, and return its summary."""
    summary = Summary(engine, seed)
    async with weather.opened() as memory:
        await memory.count_sessions()
        await weather.refuse_bad_rows()
        with tempfile.TemporaryDirectory() as directory:
            await Storm(memory, weather, summary, seed, Path(directory)).run(seconds)
    return summary


async def on_postgres(dsn: str, seconds: float, seed: int, *, borrowed: bool = False) -> Summary:
    """Let a storm blow over a database; the handle has its own pool or a borrowed one."""
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
@click.option("--borrowed", is_flag=True, help="Use a borrowed asyncpg pool, on PostgreSQL.")
def main(engine: str, seconds: float, seed: int, borrowed: bool) -> None:
    """Run a storm, and print its summary."""
    if engine == "postgres":
        with run_cluster(durable=False) as own_server:
            summary = asyncio.run(on_postgres(own_server.dsn, seconds, seed, borrowed=borrowed))
    else:
        with tempfile.TemporaryDirectory() as directory:
            summary = asyncio.run(on_sqlite(Path(directory) / "chat.db", seconds, seed))
    click.echo(json.dumps(summary.shown(), indent=2))
    for example in summary.examples[:20]:
        click.echo(example, err=True)
    sys.exit(bool(summary.broken))


if __name__ == "__main__":
    main()
