"""A storm: 40 workers on one handle, with deadlines of 0.02, 0.2 and 4 s, while everything around the handle breaks.

    python contract_tests/faults/storm.py --engine postgres --seconds 3600 --seed 1

Writes are cancelled at random and retried with the same ids, and the store refuses some. On PostgreSQL, connections
are reset, refused, silenced and killed, replies are lost and rows locked; on SQLite, another process locks the file;
on both, the event loop stalls. Each round ends in a calm, in which it is judged, and judged again one round later.
Prints a summary as JSON; the exit code is 1 if a promise was broken.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

import click
from fault_cluster import run_cluster
from fault_storm import AFTERWARDS, Rest, Round, StormWrite, Verdict
from fault_weather import Weather, postgres_weather, sqlite_weather

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    FluxMemoryError,
    Memory,
    OutcomeUnknownError,
    deadline,
)

WORKERS: Final = 40
SESSIONS: Final = 12
DEADLINE_SECONDS: Final = (0.02, 0.2, 4.0)
"""Deadlines of calls."""
ROUND_SECONDS: Final = 20.0
HANG_SECONDS: Final = 10.0
"""Seconds after its deadline or cancellation at which a call counts as hung; one second is the promise."""
ATTEMPTS: Final = 5


@dataclass
class Summary:
    """Counts of what happened, and of broken promises."""

    engine: str
    seed: int
    rounds: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    longest_overrun: float = 0.0
    """Seconds by which the slowest call outlived its deadline."""
    verdict: Verdict = field(default_factory=Verdict)
    examples: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """Return a flat dict for JSON."""
        told = {name: self.outcomes[name] for name in ("calls", "acknowledged", "refused", "unknown", "cancelled")}
        about = {"engine": self.engine, "seed": self.seed, "rounds": self.rounds}
        return about | told | asdict(self.verdict) | {"longest_overrun": round(self.longest_overrun, 2)}


class Storm:
    """Workers on one handle, in bad weather.

    Args:
        memory: The handle.
        weather: Breaks the surroundings of the store.
        summary: Counts the outcomes.
        seed: Seed of every random choice.
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
        """Let the storm blow for this long, in rounds."""
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
                # A difference since the last judgement means that the store was not at rest then.
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
            # These adds queue behind all earlier calls of their sessions.
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
            time.sleep(self._rng.choice((0.005, 0.03, 0.03, 0.25)))  # noqa: ASYNC251 - the stall under test

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
        sent = StormWrite(session, [content], time.monotonic(), message_id)
        self._round.messages.append(sent)
        await self._attempts(
            rng,
            sent,
            lambda: self._memory.add_message(session, "user", content, message_id=message_id),
            again=message_id is not None,
        )

    async def _add_refused(self, rng: random.Random) -> None:
        """Add a row that the store refuses; the other calls in its statement must not fail with it."""
        session, content = rng.choice(self._round.sessions), f"bad {self._content()}"
        taken = rng.choice([sent for sent in self._round.messages[:50] if sent.acknowledged] or [None])
        message_id = None
        if (kind := rng.randrange(3)) == 1:
            session = "none"
        elif kind == 2 and taken is not None and taken.message_id is not None:
            session, message_id = taken.session, taken.message_id
        self._round.messages.append(sent := StormWrite(session, [content], time.monotonic()))
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
        sent = StormWrite(session, contents, time.monotonic())
        self._round.messages.append(sent)
        batch: list[Any] = [
            {"role": "user", "content": one} | ({"message_id": one} if with_ids else {}) for one in contents
        ]
        await self._attempts(rng, sent, lambda: self._memory.add_messages(session, batch), again=with_ids)

    async def _create(self, rng: random.Random) -> None:
        name = self._content()
        session_id = f"new-{name}" if rng.random() < 0.5 else None
        sent = StormWrite(session_id or "", [name], time.monotonic())
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
        sent = StormWrite(session, [title], time.monotonic())
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
        await self._attempts(rng, StormWrite(session, [], time.monotonic()), call, again=False)

    def _content(self) -> str:
        self._calls += 1
        return f"{self._calls}"

    async def _attempts(
        self,
        rng: random.Random,
        sent: StormWrite,
        call: Callable[[], Awaitable[object]],
        *,
        again: bool,
        creates: bool = False,
        refusals: tuple[type[Exception], ...] = (BackendUnavailableError,),
    ) -> None:
        """Make a call, and retry it with the same ids while its outcome is unknown."""
        for attempt in range(ATTEMPTS):
            seconds = rng.choice(DEADLINE_SECONDS) if attempt < 2 else DEADLINE_SECONDS[-1]
            leaves_after = rng.random() * rng.choice((0.002, 0.02, 0.2)) if rng.random() < 0.1 else None
            outcome = await self._one(call, seconds, leaves_after)
            self._summary.outcomes["calls"] += 1
            told = self._told(outcome, refusals, exists=creates and sent.open)
            self._summary.outcomes[told] += 1
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
            # An earlier attempt with an unknown outcome created it.
            return "acknowledged"
        if isinstance(outcome, ConflictError):
            self._summary.verdict.false_conflicts += 1
        else:
            self._summary.verdict.foreign_errors += 1
        self._summary.examples.append(repr(outcome)[:300])
        return "unknown"

    async def _one(self, call: Callable[[], Awaitable[object]], seconds: float, leaves_after: float | None) -> object:
        """Make one call and return its result or its exception."""
        with deadline(seconds):
            task = asyncio.ensure_future(call())
        began = time.monotonic()
        await asyncio.wait([task], timeout=seconds + HANG_SECONDS if leaves_after is None else leaves_after)
        if not task.done():
            self._summary.verdict.hung += leaves_after is None
            task.cancel()
            began, seconds = time.monotonic(), 0.0
            await asyncio.wait([task], timeout=HANG_SECONDS)
        self._summary.longest_overrun = max(self._summary.longest_overrun, time.monotonic() - began - seconds)
        if not task.done():
            self._summary.verdict.hung += 1
            return asyncio.CancelledError()
        return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()


async def storm(weather: Weather, engine: str, seconds: float, seed: int) -> Summary:
    """Let a storm blow, and return its summary."""
    summary = Summary(engine, seed)
    async with weather.opened() as memory:
        await memory.count_sessions()
        await weather.refuse_bad_rows()
        await Storm(memory, weather, summary, seed).run(seconds)
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
    for example in summary.examples[:5]:
        click.echo(example, err=True)
    sys.exit(not summary.verdict.is_clean)


if __name__ == "__main__":
    main()
