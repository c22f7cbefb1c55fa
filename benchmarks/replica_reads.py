"""Measures history reads with 0, 1 and 2 replicas: calls a second, and the CPU time that each takes of each server.

`python benchmarks/replica_reads.py`, about 30 s. All servers and the client share one machine, so the calls a second
say what a read costs in all; the CPU time of the primary says what replicas relieve it of.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

BENCHMARKS: Final = Path(__file__).parent
sys.path[:0] = [str(BENCHMARKS.parent / "contract_tests" / "support")]

import click  # noqa: E402
from fault_cluster import Cluster, wait_for_replica  # noqa: E402
from replicated_cluster import Replicated, run_replicated, wait_for_use  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from flux_memory import Memory, PostgresConversationMemory  # noqa: E402
from harness import machine  # noqa: E402

SESSIONS: Final = 50
MESSAGES: Final = 200
PAGE: Final = 50
CONTENT: Final = "x" * 500
REPLICAS: Final = (0, 1, 2)


class Figure(NamedTuple):
    """One round of one way."""

    calls_per_second: float
    client_us: float
    primary_us: float
    replica_us: float


def cpu_seconds(clusters: Sequence[Cluster]) -> float:
    """Return the CPU time that the processes of servers have taken."""
    total = 0
    for cluster in clusters:
        for pid in cluster.list_processes():
            total += int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


async def measure(
    call: Callable[[], Awaitable[object]], replicated: Replicated, callers: int, seconds: float
) -> Figure:
    """Run calls for a while and return the figures of one call."""
    calls = 0
    ends = time.monotonic() + seconds

    async def repeat() -> None:
        nonlocal calls
        while time.monotonic() < ends:
            await call()
            calls += 1

    servers = ([replicated.primary], replicated.replicas)
    began, client = time.monotonic(), time.process_time()
    before = [cpu_seconds(each) for each in servers]
    await asyncio.gather(*(repeat() for _ in range(callers)))
    primary, replicas = (cpu_seconds(each) - earlier for each, earlier in zip(servers, before, strict=True))
    took, client = time.monotonic() - began, time.process_time() - client
    return Figure(calls / took, *(1e6 * cpu / calls for cpu in (client, primary, replicas)))


def works(memory: Memory, chance: random.Random) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return the calls to measure."""

    async def read() -> None:
        await memory.get_history(f"s{chance.randrange(SESSIONS)}", PAGE)

    async def add_and_read() -> None:
        session = f"s{chance.randrange(SESSIONS)}"
        await memory.add_message(session, "user", CONTENT)
        await memory.get_history(session, PAGE)

    return {f"read {PAGE}": read, f"add, read {PAGE}": add_and_read}


async def run(rounds: int, seconds: float, seed: int) -> dict[tuple[str, int, int], list[Figure]]:
    """Return the figures by work, callers and number of replicas; the ways alternate in each round."""
    chance, found = random.Random(seed), dict[tuple[str, int, int], list[Figure]]()
    with run_replicated(max(REPLICAS)) as replicated:
        primary = replicated.primary.dsn
        async with PostgresConversationMemory(primary) as memory:
            for session in range(SESSIONS):
                await memory.create_session(session_id=f"s{session}")
                await memory.add_messages(f"s{session}", [{"role": "user", "content": CONTENT}] * MESSAGES)
        for replica in replicated.replicas:
            await wait_for_replica(replicated.primary, replica)
        for _ in range(rounds):
            for number in chance.sample(REPLICAS, len(REPLICAS)):
                used = Replicated(replicated.primary, replicated.replicas[:number])
                arguments = {"replica_dsn": used.replica_dsn} if number else {}
                async with PostgresConversationMemory(primary, **arguments) as memory:
                    await memory.count_sessions()
                    if number:
                        await wait_for_use(memory, number)
                    for callers in (1, 10):
                        for name, call in works(memory, chance).items():
                            await measure(call, replicated, callers, seconds / 4)
                            figure = await measure(call, replicated, callers, seconds)
                            found.setdefault((name, callers, number), []).append(figure)
    return found


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=0.6, show_default=True, type=click.FloatRange(min=0.05), help="Of each measurement.")
@click.option("--seed", default=1, show_default=True)
def main(*, rounds: int, seconds: float, seed: int) -> None:
    """Measure, and print a table of medians."""
    about = machine.about()
    found = asyncio.run(run(rounds, seconds, seed))
    columns = ("calls", "callers", "replicas", "calls/s", "client, us", "primary, us", "replicas, us")
    table = Table(*columns, title=f"{about['cores']} cores for the client and all servers")
    for (name, callers, number), figures in sorted(found.items()):
        middle = [median(values) for values in zip(*figures, strict=True)]
        table.add_row(name, str(callers), str(number), *(f"{value:,.0f}" for value in middle))
    console = Console()
    console.print(table)
    if (unrest := machine.unrest(about)) is not None:
        console.print(unrest)


if __name__ == "__main__":
    main()
