"""Measures what telemetry costs: off, with metrics, with metrics and spans, and beside a release without it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
from rich.console import Console

from flux_memory.testkit.servers import start_server
from harness import machine
from harness.markdown import ENGINES, number, table, times
from harness.publishing import publish
from harness.ratios import summary

BENCHMARKS: Final = Path(__file__).parent
RESULTS: Final = BENCHMARKS / "results"
CASES: Final = (("add_message", 1), ("add_message", 10), ("add_message", 64), ("get_history", 10))
"""The calls that are measured, and the callers at once."""
WAYS: Final = ("off", "metrics", "metrics and spans")
BASELINE: Final = "release without telemetry"
OFF_AT_MOST: Final = 1.03
"""Ratio of the CPU time of calls with telemetry off to that of a release without it: more can be told from noise."""
METRICS_AT_MOST: Final = 1.1
"""Ratio of the CPU time of calls with metrics to that of calls without telemetry: an operator need not choose."""


class ObservedMemory:
    """A process with a memory; see `harness.observed_memory`.

    Args:
        engine: `postgres` or `sqlite`.
        target: The DSN, or the file.
        library: The directory with the package `flux_memory` to measure.
    """

    def __init__(self, engine: str, target: str, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.observed_memory", engine, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=BENCHMARKS,
            env={**os.environ, "PYTHONPATH": str(library)},
        )
        if self._read() != "ready":
            raise click.ClickException(f"the process that measures {engine} did not start; its error is above")

    def measure(self, order: dict[str, Any]) -> dict[str, float]:
        """Run calls for a fixed time, and return their figures."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._read())
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def open_each(engine: str, targets: list[str], baseline: Path | None) -> Iterator[dict[str, ObservedMemory]]:
    """Open the memory to measure, and that of the release without telemetry; each on a store of its own."""
    with ExitStack() as stack:
        opened = {"": ObservedMemory(engine, targets[0], BENCHMARKS.parent)}
        stack.callback(opened[""].close)
        if baseline is not None:
            opened[BASELINE] = ObservedMemory(engine, targets[1], baseline)
            stack.callback(opened[BASELINE].close)
        yield opened


def measure(
    memories: dict[str, ObservedMemory], ways: list[str], rounds: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Return the figures of each case, by way, round by round; the order within a round is random."""
    chance = random.Random(seed)
    found: dict[str, Any] = {}
    for round_ in range(rounds + 1):
        for work, callers in CASES:
            figures = found.setdefault(f"{work}, {callers} at once", {way: [] for way in ways})
            for way in chance.sample(ways, len(ways)):
                order = {"way": way, "work": work, "callers": callers, "seconds": seconds}
                figure = memories.get(way, memories[""]).measure(order)
                # The first round warms up.
                if round_:
                    figures[way].append(figure)
    return found


def ratio_of(case: dict[str, Any], way: str, base: str, figure: str) -> float:
    """Return the median, over the rounds, of the ratio of a figure to that of a base in the same round."""
    return summary([ours[figure] / theirs[figure] for ours, theirs in zip(case[way], case[base], strict=True)]).median


def tables(result: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return the tables by title, each with a head."""
    found = {}
    for engine, cases in result["engines"].items():
        rows = [["calls", "way", "calls/s", "to off", "CPU, us", "to off"]]
        for name, case in cases.items():
            for way, rounds in case.items():
                medians = {key: median(each[key] for each in rounds) for key in ("ops", "cpu_us")}
                ratios = {key: times(ratio_of(case, way, "off", key)) for key in medians}
                rows.append(
                    [name, way, number(medians["ops"]), ratios["ops"], number(medians["cpu_us"]), ratios["cpu_us"]]
                )
        found[ENGINES[engine]] = rows
    return found


def missed(result: dict[str, Any]) -> list[str]:
    """Return a sentence for each engine whose calls pay for telemetry that is off, or too much for metrics."""
    bad = []
    for engine, cases in result["engines"].items():
        ratios = [ratio_of(case, "off", BASELINE, "cpu_us") for case in cases.values() if BASELINE in case]
        if ratios and median(ratios) > OFF_AT_MOST:
            bad.append(
                f"{ENGINES[engine]}: telemetry that is off takes {median(ratios):.2f} times the CPU of none; the "
                f"target is {OFF_AT_MOST:g}"
            )
        ratios = [ratio_of(case, "metrics", "off", "cpu_us") for case in cases.values() if "metrics" in case]
        if ratios and median(ratios) > METRICS_AT_MOST:
            bad.append(
                f"{ENGINES[engine]}: calls with metrics take {median(ratios):.2f} times the CPU of those without; the "
                f"target is {METRICS_AT_MOST:g}"
            )
    return bad


def document(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    about = result["about"]
    lines = [
        *("# Cost of telemetry", ""),
        (
            f"Measured {about['at']} at {about['commit']}, on {about['cores']} cores ({about['cpu']}), Python "
            f"{about['python']}, PostgreSQL {about['server']}; load {about['load_before']} before. Medians of "
            f"{about['rounds']} rounds, and of the ratios within each round. The CPU is that of the client; the "
            "metrics are exported each second; the exporters drop metrics and spans."
        ),
    ]
    if unrest := machine.unrest(about):
        lines += ["", unrest]
    for title, (head, *rows) in tables(result).items():
        lines += ["", f"## {title}", "", *table(head, rows)]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--quick", is_flag=True, help="One short round, as a smoke test; no target fails.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Seconds of each measurement.")
@click.option("--seed", type=int, default=2026, show_default=True)
@click.option("--only-off", is_flag=True, help="Measure telemetry that is off, beside a --baseline, and nothing else.")
@click.option("--engine", type=click.Choice(["postgres", "sqlite"]), help="Measure only this engine.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="A checkout of a release without telemetry, to measure beside this one.",
)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default="benchmarks/results")
def main(
    *,
    quick: bool,
    rounds: int,
    seconds: float,
    seed: int,
    only_off: bool,
    engine: str | None,
    baseline: Path | None,
    out: Path,
) -> None:
    """Measure, print, and write telemetry_cost.json and telemetry_cost.md; fail if a target is missed."""
    console = Console()
    rounds, seconds = (1, 0.1) if quick else (rounds, seconds)
    ways = [*WAYS[: 1 if only_off else None], *([] if baseline is None else [BASELINE])]
    about = machine.about() | {"rounds": rounds, "seed": seed}
    result: dict[str, Any] = {"about": about, "engines": {}}
    disk = "/var/tmp" if Path("/var/tmp").is_dir() else None
    with (
        start_server("local", durable=True) as server,
        tempfile.TemporaryDirectory(prefix="flux-memory-bench-", dir=disk) as name,
        console.status("") as status,
    ):
        about["server"] = server.version
        for each in ENGINES:
            if engine in {None, each}:
                status.update(ENGINES[each])
                targets = [
                    server.create_database() if each == "postgres" else str(Path(name) / f"{number_}.db")
                    for number_ in range(2)
                ]
                with open_each(each, targets, baseline) as memories:
                    result["engines"][each] = measure(memories, ways, rounds, seconds, seed)
    bad = missed(result)
    publish(out / "telemetry_cost", result, document(result), tables=tables(result), bad=bad)
    sys.exit(bool(bad) and not quick)


if __name__ == "__main__":
    main()
