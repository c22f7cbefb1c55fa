"""Measures calls a second on both backends, against the engines' ceilings and the stores that people use today."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from harness import charts, machine, markdown, peers, terminal
from harness.contender_list import OURS, Entry, chosen
from harness.contender_processes import Runner
from harness.field import Field, open_all, prepared
from harness.gates import CONCURRENCY, GATES, LIMITS, POOL
from harness.results import Case, Run, compare, from_json
from harness.rounds import WARM_UP_SECONDS, Turn, measure

RESULTS: Final = Path(__file__).parent / "results"
FULL_CONCURRENCY: Final = (1, 10, 64, 256)
POOL_SIZES: Final = (1, 2, 4, 10, 20, 40)
BUSY: Final = 64


def short_turns(runners: dict[tuple[str, str], Runner]) -> list[Turn]:
    """Return only the turns that the gates and their bounds need."""
    wanted = {(gate.engine, gate.work, name) for gate in GATES for name in (gate.base, OURS)}
    wanted |= {(limit.engine, limit.work, limit.name) for limit in LIMITS}
    return [
        Turn(name, Case(engine, work, concurrency, POOL), runners[name, engine])
        for engine, work, name in sorted(wanted)
        for concurrency in CONCURRENCY
        if (name, engine) in runners
    ]


def full_turns(entries: list[Entry], runners: dict[tuple[str, str], Runner]) -> list[Turn]:
    """Return a turn for every contender, work and concurrency."""
    return [
        Turn(entry.name, Case(entry.engine, work, concurrency, POOL), runners[entry.name, entry.engine])
        for entry in entries
        for work in entry.works
        for concurrency in FULL_CONCURRENCY
        # pgbench needs a connection for each client.
        if entry.load or concurrency <= BUSY
    ]


def pool_turns(field: Field, ours: Entry) -> list[Turn]:
    """Return turns of the library with other pool sizes."""
    return [
        Turn(ours.name, Case("postgres", work, BUSY, size), runner)
        for size in POOL_SIZES
        if size != POOL
        for runner in [field.open(ours, size)]
        for work in ("add", "history", "mix")
    ]


def write(run: Run, directory: Path, name: str) -> None:
    """Write the JSON, the Markdown and the charts."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(run.as_json(), indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown.document(run), encoding="utf-8")
    charts.draw(run, directory)


@click.command()
@click.option("--quick", is_flag=True, help="One round of half a second, as a smoke test.")
@click.option("--full", is_flag=True, help="Every contender, work, concurrency and pool size; about forty minutes.")
@click.option("--rounds", type=click.IntRange(1), help="Number of rounds; by default 5.")
@click.option("--seconds", type=float, help="Duration of each measurement; by default 0.8, with --full 2.")
@click.option("--seed", type=int, default=2026, show_default=True)
@click.option("--engine", type=click.Choice(["postgres", "sqlite"]), help="Measure only this engine.")
@click.option("--peers/--no-peers", "with_peers", default=True, help="Also measure the stores that people use today.")
@click.option("--peers-python", help="An interpreter with the packages of peers.txt; by default a cached environment.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default="benchmarks/results")
@click.option("--compare", "older", type=click.Path(exists=True, path_type=Path), help="Fail if a ratio got worse.")
@click.option("--gates/--no-gates", default=True, help="Fail if a target is missed.")
def main(
    *,
    quick: bool,
    full: bool,
    rounds: int | None,
    seconds: float | None,
    seed: int,
    engine: str | None,
    with_peers: bool,
    peers_python: str | None,
    out: Path,
    older: Path | None,
    gates: bool,
) -> None:
    """Measure calls a second, and compare within each round."""
    console = Console()
    rounds = rounds or (1 if quick else 5)
    seconds = seconds or (0.5 if quick else 2.0 if full else 0.8)
    entries = [each for each in chosen(everything=full, peers=with_peers) if engine in {None, each.engine}]
    python = peers_python or (peers.python() if any(each.own_environment for each in entries) else sys.executable)
    run = Run(machine.about() | {"rounds": rounds, "seconds": seconds, "warmup": WARM_UP_SECONDS, "seed": seed})
    run.about["engine"] = engine
    with prepared(python, seed) as field, terminal.watching(console) as watch:
        run.about["server"] = field.server.version
        runners = open_all(field, entries, POOL, watch.say)
        turns = full_turns(entries, runners) if full else short_turns(runners)
        if full and entries[0].engine == "postgres":
            turns += pool_turns(field, entries[0])
        watch.expect(rounds * len(turns))
        measure(
            run,
            turns,
            rounds=rounds,
            seconds=seconds,
            seed=seed,
            progress=lambda turn: watch.step(f"{turn.contender}: {turn.case}"),
        )
        for entry in entries:
            name = f"{entry.name} ({markdown.ENGINES[entry.engine]})"
            run.versions[name] = runners[entry.name, entry.engine].versions()
            if entry.lacks:
                run.lacks[name] = entry.lacks
    run.about["load_after"] = machine.load()
    write(run, out, "quick" if quick else "pool_throughput")
    terminal.show_figures(console, run)
    if unrest := machine.unrest(run.about):
        console.print(f"[yellow]{unrest}[/yellow]")
    good = terminal.show_gates(console, run) or not gates
    if older:
        old = from_json(json.loads(older.read_text(encoding="utf-8")))
        good &= terminal.show_changes(console, compare(old, run))
    sys.exit(not good)


if __name__ == "__main__":
    main()
