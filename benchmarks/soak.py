"""A soak: 256 users on one handle, then on four processes, on each backend, while something breaks every few seconds.

`nox -s soak`; `-- --minutes=30` for a long one. At the end it compares acknowledged writes with stored ones, and checks
each process for leaks of memory, connections, threads, tasks and file descriptors. Figures and a chart go to
`benchmarks/results/`. Fails if a promise was broken.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

BENCHMARKS: Final = Path(__file__).parent
sys.path[:0] = [str(BENCHMARKS.parent / "contract_tests" / "support")]

import asyncpg  # noqa: E402
import click  # noqa: E402
from fault_cluster import Cluster, run_cluster  # noqa: E402
from postgres_proxy import PostgresProxy  # noqa: E402
from waiting import becomes_true  # noqa: E402

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory  # noqa: E402
from flux_memory.testkit.histories import History, Journal, Numbers, Recorder, check, read_stored  # noqa: E402
from harness import machine  # noqa: E402
from harness.soak_process import Process  # noqa: E402
from harness.soaking import Orders  # noqa: E402

USERS: Final = 256
TIMEOUT_SECONDS: Final = 10.0
"""The deadline of a call, in seconds."""
LATENESS_SECONDS: Final = 1.0
"""Seconds that a call may exceed its deadline."""
PAUSE_SECONDS: Final = (2.0, 4.0)
"""Seconds between two faults, minimum and maximum."""
START_SECONDS: Final = 15.0
"""Seconds for the processes to start, before the first fault."""
QUIET_SECONDS: Final = 4.0
"""Seconds without a fault at the end."""

SELECT_NUMBERS: Final = "SELECT session_id, seq, id FROM messages"
SELECT_OPEN: Final = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'soak'"
TERMINATE: Final = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'soak'"
HOLD_LOCK: Final = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
db.execute("BEGIN EXCLUSIVE")
time.sleep(1)
db.execute("ROLLBACK")
"""
HOLD_SNAPSHOT: Final = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
db.execute("BEGIN")
db.execute("SELECT count(*) FROM messages").fetchone()
time.sleep(2)
"""

Faults = dict[str, Callable[[], object]]


@dataclass
class Store:
    """The store of a phase."""

    engine: str
    target: str
    """The DSN or path for the users."""
    direct: str
    """The DSN or path that no fault affects."""
    faults: Faults

    def open(self) -> Memory:
        """Open a handle that no fault affects."""
        return PostgresConversationMemory(self.direct) if self.engine == "postgres" else ConversationMemory(self.direct)

    async def numbers(self) -> Numbers:
        """Read every message's number, bypassing the library."""
        found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        if self.engine == "postgres":
            connection = await asyncpg.connect(self.direct)
            rows = [tuple(row) for row in await connection.fetch(SELECT_NUMBERS)]
            await connection.close()
        else:
            with closing(sqlite3.connect(self.direct)) as db:
                rows = db.execute(SELECT_NUMBERS).fetchall()
        for session, number, message in rows:
            found[session].append((number, message))
        return found

    async def connections(self) -> int:
        """Return how many of the users' connections remain on the server, after at most 5 s to notice their end."""
        if self.engine != "postgres":
            return 0
        connection = await asyncpg.connect(self.direct)
        until = time.monotonic() + 5
        while (count := await connection.fetchval(SELECT_OPEN)) and time.monotonic() < until:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.1)
        await connection.close()
        return int(count)


@dataclass
class Phase:
    """The faults and figures of one phase."""

    title: str
    engine: str
    processes: int
    seconds: float
    began: float = field(default_factory=time.monotonic)
    faults: list[tuple[float, str]] = field(default_factory=list)
    """Seconds since the beginning, and the name of the fault."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    """Calls by outcome."""
    longest_call: float = 0.0
    longest_outage: float = 0.0
    messages: int = 0
    problems: list[str] = field(default_factory=list)


@contextmanager
def postgres(directory: Path) -> Iterator[Store]:
    """Start a server behind a proxy."""
    with run_cluster() as own, PostgresProxy(own.dsn) as proxy:
        separator = "&" if "?" in proxy.dsn else "?"
        yield Store("postgres", f"{proxy.dsn}{separator}application_name=soak", own.dsn, _postgres_faults(own, proxy))


def _postgres_faults(own: Cluster, proxy: PostgresProxy) -> Faults:
    async def terminate() -> None:
        connection = await asyncpg.connect(own.dsn)
        await connection.fetchval(TERMINATE)
        await connection.close()

    def through_proxy(breaking: Callable[[], None], seconds: float) -> Callable[[], None]:
        def act() -> None:
            breaking()
            time.sleep(seconds)
            proxy.heal()

        return act

    return {
        "backends terminated": lambda: asyncio.run(terminate()),
        "server restarted": lambda: own.restart(signal.SIGINT),
        "server killed": lambda: own.restart(signal.SIGKILL),
        "black hole, 2 s": through_proxy(proxy.silence, 2),
        "connections reset": proxy.reset,
        "connections refused, 1 s": through_proxy(proxy.refuse, 1),
        "replies lost": through_proxy(lambda: proxy.lose_reply_to("sync", times=20), 1),
    }


@contextmanager
def sqlite(directory: Path) -> Iterator[Store]:
    """Yield a store in a new file."""
    path = str(directory / "soak.db")

    def run(program: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", program, path], check=True, timeout=30)

    yield Store(
        "sqlite", path, path, {"EXCLUSIVE lock, 1 s": run(HOLD_LOCK), "a reader keeps the log, 2 s": run(HOLD_SNAPSHOT)}
    )


def soak(engine: str, processes: int, seconds: float, seed: int, log: Path) -> Phase:
    """Run one phase and judge it."""
    title = f"{engine}, {USERS} users on {'one handle' if processes == 1 else f'{processes} processes'}"
    phase = Phase(title, engine, processes, seconds)
    make = postgres if engine == "postgres" else sqlite
    with tempfile.TemporaryDirectory(prefix="flux-memory-soak-") as directory, make(Path(directory)) as store:
        journals = Path(directory) / "journals"
        journals.mkdir()
        shared = asyncio.run(_begin(store, journals))
        phase.began = time.monotonic()
        until = phase.began + seconds

        def start(name: str) -> Process:
            left = max(until - time.monotonic(), 1.0)
            users = USERS // processes
            return Process(Orders(engine, store.target, shared, users, left, TIMEOUT_SECONDS, str(journals), name), log)

        running = [start(f"process {number}") for number in range(1, processes + 1)]
        ended: list[Process] = []
        faults = dict(store.faults)
        if processes > 1:

            def replace() -> None:
                victim = running.pop(0)
                victim.kill()
                ended.append(victim)
                running.append(start(f"process {len(running) + len(ended) + 1}"))

            faults["a process killed"] = replace
        # A new handle waits less for a server that is down, so let each connect first.
        becomes_true(lambda: all(process.samples for process in running), seconds=START_SECONDS)
        _break(phase, faults, until - QUIET_SECONDS, random.Random(seed))
        for process in [*ended, *running]:
            phase.problems += process.finish(max(until - time.monotonic(), 0) + 3 * TIMEOUT_SECONDS)
            phase.samples += process.samples
        asyncio.run(_judge(phase, store, journals))
    return phase


def _break(phase: Phase, faults: Faults, until: float, chance: random.Random) -> None:
    """Inject a fault every few seconds, each once per cycle in random order."""
    waiting: list[str] = []
    while time.monotonic() < until:
        time.sleep(chance.uniform(*PAUSE_SECONDS))
        waiting = waiting or chance.sample(sorted(faults), len(faults))
        name = waiting.pop()
        phase.faults.append((round(time.monotonic() - phase.began, 1), name))
        faults[name]()


async def _begin(store: Store, journals: Path) -> str:
    with closing(Journal(journals / "begin.jsonl")) as journal:
        async with Recorder(store.open(), journal, "begin") as memory:
            return await memory.create_session("shared")


async def _judge(phase: Phase, store: Store, journals: Path) -> None:
    history = History.read(journals)
    phase.longest_call = round(history.longest_call(), 2)
    phase.longest_outage = round(history.longest_outage(), 2)
    for sample in phase.samples:
        for name, count in sample["ended"].items():
            phase.calls[name] = phase.calls.get(name, 0) + count
        sample["at"] = round(sample["at"] - phase.began, 2)
    async with store.open() as memory:
        stored = await read_stored(memory, await store.numbers())
    phase.messages = sum(len(session.history) for session in stored.sessions.values())
    phase.problems += [str(violation) for violation in check(history, stored)]
    if phase.longest_call > TIMEOUT_SECONDS + LATENESS_SECONDS:
        phase.problems.append(f"a call took {phase.longest_call} s, and its deadline was {TIMEOUT_SECONDS} s")
    if left := await store.connections():
        phase.problems.append(f"{left} connections are left on the server")
    if not phase.faults:
        phase.problems.append("nothing was broken: give it more time")


@click.command()
@click.option("--minutes", default=2.0, show_default=True, help="Total duration; each backend gets half.")
@click.option("--backend", type=click.Choice(["sqlite", "postgres"]), multiple=True, help="Soak only this backend.")
@click.option("--seed", type=int, default=None, help="Seed of the faults' order; by default random.")
@click.option("--out", type=click.Path(path_type=Path), default=BENCHMARKS / "results", show_default=True)
def main(minutes: float, backend: tuple[str, ...], seed: int | None, out: Path) -> None:
    """Soak the backends, print and write the results, and fail if a promise was broken."""
    seed = random.randrange(1_000_000) if seed is None else seed
    engines = backend or ("postgres", "sqlite")
    seconds = minutes * 60 / len(engines) / 2
    out.mkdir(parents=True, exist_ok=True)
    log = out / "soak.log"
    log.unlink(missing_ok=True)
    about = {**machine.about(), "minutes": minutes, "seed": seed, "users": USERS, "timeout": TIMEOUT_SECONDS}
    phases = []
    for engine in engines:
        for processes in (1, 4):
            phase = soak(engine, processes, seconds, seed, log)
            phases.append(phase)
            click.echo(
                f"{phase.title}: {phase.calls.get('ok', 0):,} calls answered, {phase.messages:,} messages stored, "
                f"{len(phase.faults)} faults; longest call {phase.longest_call} s, outage {phase.longest_outage} s; "
                + (f"{len(phase.problems)} PROBLEMS" if phase.problems else "all kept")
            )
            others = {name: count for name, count in sorted(phase.calls.items()) if name != "ok"}
            click.echo("  " + ", ".join(f"{name} {count:,}" for name, count in others.items()))
            for problem in phase.problems[:20]:
                click.echo(f"  {problem}")
    if not log.stat().st_size:
        log.unlink()
    result = {"about": about, "phases": [asdict(phase) for phase in phases]}
    (out / "soak.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    from harness import soak_chart  # noqa: PLC0415 - matplotlib is slow to load

    soak_chart.draw(result, out / "soak.png")
    click.echo(f"Written: {out / 'soak.json'}, soak.png")
    sys.exit(1 if any(phase.problems for phase in phases) else 0)


if __name__ == "__main__":
    main()
