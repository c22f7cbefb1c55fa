"""Measures the calls of one conversation, and the sync face, against simpler calls; and a session with many writers."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
from rich.console import Console

from flux_memory.testkit.servers import Server, start_server
from harness import call_pairs, machine
from harness.alternation import MeasuredWork, Pair, measure_cpu, measure_round
from harness.hot_session import PROCESSES, WRITERS, HotSession
from harness.markdown import ENGINES, number, table, times
from harness.publishing import publish
from harness.ratios import summary

RESULTS: Final = Path(__file__).parent / "results"
HOT_AT_LEAST: Final = 1.0
"""Ratio of the library's calls a second on one session to pgbench's: its calls share statements."""
_MAX_CONNECTIONS: Final = "200"
_WARM_UP_ROUNDS: Final = 1
"""Rounds that do not count: connections prepare statements, and the server chooses its plans."""


async def measure_pairs(
    engine: str, server: Server, directory: Path, rounds: int, seed: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the figures of each pair by name, and the CPU time of the parts of a read."""
    chance = random.Random(seed)
    found: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        opened: tuple[list[Pair], dict[str, MeasuredWork]] = (
            await call_pairs.open_postgres(stack, server.create_database())
            if engine == "postgres"
            else await call_pairs.open_sqlite(stack, directory)
        )
        pairs, parts = opened
        for round_ in range(_WARM_UP_ROUNDS + rounds):
            for pair in chance.sample(pairs, len(pairs)):
                figure = await measure_round(pair, chance)
                each = found.setdefault(
                    pair.name, {"at_most": pair.at_most, "at_most_us": pair.at_most_us, "rounds": []}
                )
                if round_ >= _WARM_UP_ROUNDS:
                    each["rounds"].append(figure)
        cpu = await measure_cpu(parts, 10 * rounds)
    return found, cpu


def measure_hot(server: Server, directory: Path, rounds: int, seconds: float, seed: int) -> list[dict[str, float]]:
    """Return the figures of a session with many writers, by round."""
    with ExitStack() as stack:
        hot = HotSession(server.create_database(), server.create_database(), directory, seed, stack)
        return [hot.measure_round(each, seconds) for each in range(rounds)]


def judge(pair: dict[str, Any]) -> tuple[float, float, bool]:
    """Return the median ratio of a pair, its median difference in microseconds, and whether both meet their targets."""
    ratio = summary([each["us"] / each["base_us"] for each in pair["rounds"]]).median
    more = median(each["us"] - each["base_us"] for each in pair["rounds"])
    met = (pair["at_most"] is None or ratio <= pair["at_most"]) and (
        pair["at_most_us"] is None or more <= pair["at_most_us"]
    )
    return ratio, more, met


def missed(result: dict[str, Any]) -> list[str]:
    """Return a sentence for each target that is missed."""
    bad = []
    for engine, pairs in result["pairs"].items():
        for name, pair in pairs.items():
            ratio, more, met = judge(pair)
            if not met:
                target = f"{pair['at_most']:g} times" if pair["at_most"] else f"{pair['at_most_us']:g} us more"
                bad.append(f"{ENGINES[engine]} {name}: {ratio:.2f} times, {more:.0f} us more; the target is {target}")
    if hot := result["hot"]:
        ratio = median(each["ops"] / each["pgbench_ops"] for each in hot)
        if ratio < HOT_AT_LEAST:
            bad.append(f"hot session / pgbench: {ratio:.2f} times its calls a second; the target is {HOT_AT_LEAST:g}")
    return bad


def tables(result: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return the result as tables by title; the first row is the header."""
    found = {}
    for engine, pairs in result["pairs"].items():
        rows = [["call / base", "us", "base, us", "ratio", "target"]]
        for name, pair in pairs.items():
            ratio, more, met = judge(pair)
            target = "" if pair["at_most"] is None else f"{pair['at_most']:g}"
            if pair["at_most_us"] is not None:
                target = f"{more:+.0f} us of {pair['at_most_us']:g}"
            medians = [number(median(each[key] for each in pair["rounds"])) for key in ("us", "base_us")]
            rows.append([name, *medians, times(ratio), target + ("" if met else " **missed**")])
        found[ENGINES[engine]] = rows
    if cpu := result["cpu_us"]:
        found["PostgreSQL: CPU of the client"] = [["part", "us"], *([name, number(us)] for name, us in cpu.items())]
    if hot := result["hot"]:
        medians = {name: median(each[name] for each in hot) for name in hot[0]}
        ratio = median(each["ops"] / each["pgbench_ops"] for each in hot)
        found[f"PostgreSQL: {WRITERS} writers of one session in {PROCESSES} processes"] = [
            ["figure", ""],
            ["calls/s", number(medians["ops"])],
            ["pgbench on one row, calls/s", number(medians["pgbench_ops"])],
            ["ours / pgbench", times(ratio)],
            ["p99, us", number(medians["p99_us"])],
            ["the slowest writer's calls / the fastest's", times(medians["fewest_to_most_of_a_writer"])],
            ["the slowest process's calls / the fastest's", times(medians["fewest_to_most_of_a_process"])],
        ]
    return found


def document(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    about = result["about"]
    conditions = (
        f"Measured {about['at']} at {about['commit']}, on {about['cores']} cores ({about['cpu']}), Python "
        f"{about['python']}, PostgreSQL {about['server']}; load {about['load_before']} before. Medians of "
        f"{about['rounds']} rounds, one caller, default durability. A call and its base are made by turns, and the "
        "ratios are of the medians within a round."
    )
    lines = ["# Cost of calls", "", conditions]
    if unrest := machine.unrest(about):
        lines += ["", unrest]
    for title, (head, *rows) in tables(result).items():
        lines += ["", f"## {title}", "", *table(head, rows)]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--quick", is_flag=True, help="One round, as a smoke test; no target fails.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Seconds of a round of the hot session.")
@click.option("--seed", type=int, default=2026, show_default=True)
@click.option("--engine", type=click.Choice(["postgres", "sqlite"]), help="Measure only this engine.")
@click.option("--hot/--no-hot", "with_hot", default=True, help="Also measure a session with many writers.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default="benchmarks/results")
def main(*, quick: bool, rounds: int, seconds: float, seed: int, engine: str | None, with_hot: bool, out: Path) -> None:
    """Measure, print, and write call_costs.json and call_costs.md; fail if a target is missed."""
    console = Console()
    rounds, seconds = (1, 0.5) if quick else (rounds, seconds)
    about = machine.about() | {"rounds": rounds, "seed": seed}
    result: dict[str, Any] = {"about": about, "pairs": {}, "cpu_us": {}, "hot": []}
    disk = "/var/tmp" if Path("/var/tmp").is_dir() else None
    with (
        start_server("local", durable=True, settings={"max_connections": _MAX_CONNECTIONS}) as server,
        tempfile.TemporaryDirectory(prefix="flux-memory-bench-", dir=disk) as name,
        console.status("") as status,
    ):
        about["server"] = server.version
        for each in ENGINES:
            if engine in {None, each}:
                status.update(f"{ENGINES[each]}: calls by turns")
                pairs, cpu = asyncio.run(measure_pairs(each, server, Path(name), rounds, seed))
                result["pairs"][each] = pairs
                result["cpu_us"] |= cpu
        if with_hot and engine != "sqlite":
            status.update("a session with many writers")
            result["hot"] = measure_hot(server, Path(name), rounds, seconds, seed)
    bad = missed(result)
    publish(out / "call_costs", result, document(result), tables=tables(result), bad=bad)
    sys.exit(bool(bad) and not quick)


if __name__ == "__main__":
    main()
