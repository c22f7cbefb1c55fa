"""Measures migrations from SQLite to PostgreSQL, against the server's own limit and the tools that people use today."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from flux_memory.testkit.servers import start_server
from harness import machine, memories, movers
from harness.migration_page import draw, page

RESULTS: Final = Path(__file__).parent / "results"
LIMIT: Final = movers.LIMIT
OURS: Final = movers.OURS
GATES: Final = (
    ("load, of the limit", ">=", 0.9),
    ("preflight and verification, of the load", "<=", 0.5),
    ("populated target, of the limit", ">=", 0.4),
    ("replaced target, of the empty target", ">=", 0.9),
    ("times the original's way", ">=", 5.0),
    ("times pgloader", ">=", 2.5),
    ("MB of memory, large file", "<=", 80.0),
)


@click.command()
@click.option("--messages", default=1_000_000, show_default=True, help="Messages of about 780 bytes.")
@click.option("--rounds", default=3, show_default=True, help="Number of rounds.")
@click.option(
    "--many", default=5_000_000, show_default=True, help="Small messages for the measurement of memory; 0 skips it."
)
@click.option("--seed", default=2026, show_default=True)
@click.option("--without", multiple=True, metavar="NAME", help="Skip a contender.")
@click.option("--write/--no-write", default=True, show_default=True, help="Write to results/.")
def main(*, messages: int, rounds: int, many: int, seed: int, without: tuple[str, ...], write: bool) -> None:
    """Measure, print a table, write JSON and a chart."""
    console = Console()
    about = machine.about()
    result: dict[str, Any] = {"machine": about, "messages": messages, "rounds": [], "seed": seed}
    if unrest := machine.unrest(about):
        console.print(unrest)
    disk = "/var/tmp" if Path("/var/tmp").is_dir() else None
    with (
        start_server("local", durable=True) as server,
        tempfile.TemporaryDirectory(prefix="flux-memory-bench-", dir=disk) as place,
    ):
        directory = Path(place)
        directory.chmod(0o777)
        about["server"] = f"{server.version} ({server.origin})"
        source = directory / "source.db"
        console.print(f"generating {messages:,} messages")
        memories.make(source, messages=messages, sessions=max(messages // 100, 1), seed=seed)
        result["bytes"] = source.stat().st_size
        # Not counted: it makes the server create its log files, which it reuses afterwards.
        movers.ALL[OURS].run(server, source, directory)
        contenders = {name: mover for name, mover in movers.ALL.items() if name not in without and mover.there()}
        for number in range(rounds):
            console.print(f"round {number + 1}")
            taken: dict[str, Any] = {}
            for name, mover in contenders.items():
                movers.settle(server)
                taken[name] = {**mover.run(server, source, directory), "machine_load": machine.load()}
                console.print(f"  {name}: {taken[name]}")
            result["rounds"].append(taken)
        result["memory"] = _memory(server, directory, (100_000, many) if many else (), console)
    result["medians"] = _medians(result["rounds"])
    result["ratios"] = _ratios(result)
    result["targets"] = _targets(result["ratios"])
    _show(console, result)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "migration_speed.md").write_text(page(result), encoding="utf-8")
        (RESULTS / "migration_speed.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        draw(result["medians"], messages, RESULTS / "migration_speed.png")


def _memory(server: Any, directory: Path, sizes: tuple[int, ...], console: Console) -> dict[str, float]:
    found = {}
    for size in sizes:
        path = directory / "small.db"
        console.print(f"generating {size:,} small messages")
        memories.make_small(path, messages=size, sessions=max(size // 100, 1))
        movers.settle(server)
        taken = movers.ALL[OURS].run(server, path, directory)
        console.print(f"  {taken}")
        found[str(size)] = taken["mb"]
        path.unlink()
    return found


def _targets(ratios: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "target": name,
            "wanted": f"{sign} {bound:g}",
            "measured": ratios[name],
            "met": ratios[name] >= bound if sign == ">=" else ratios[name] <= bound,
        }
        for name, sign, bound in GATES
        if name in ratios
    ]


def _medians(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: statistics.median(taken[name][key] for taken in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }


def _ratios(result: dict[str, Any]) -> dict[str, float]:
    """Return the medians of the ratios within each round: load on the machine slows both sides alike."""

    def over(part: Any, whole: Any) -> float:
        return float(statistics.median(part(taken) / whole(taken) for taken in result["rounds"]))

    def seconds(name: str) -> Any:
        return lambda taken: taken[name]["seconds"]

    there = result["rounds"][0]
    ratios = {}
    if LIMIT in there:
        ratios["load, of the limit"] = over(seconds(LIMIT), seconds(OURS))
    ratios["preflight and verification, of the load"] = over(
        lambda taken: taken[OURS]["preflight"] + taken[OURS]["verify"], seconds(OURS)
    )
    if LIMIT in there and movers.POPULATED in there:
        ratios["populated target, of the limit"] = over(seconds(LIMIT), seconds(movers.POPULATED))
    if movers.REPLACED in there:
        ratios["replaced target, of the empty target"] = over(seconds(OURS), seconds(movers.REPLACED))
    for label, name in (("times the original's way", movers.ORIGINAL), ("times pgloader", movers.PGLOADER)):
        if name in there:
            ratios[label] = over(seconds(name), seconds(OURS))
    if result["memory"]:
        ratios["MB of memory, large file"] = max(result["memory"].values())
    return ratios


def _show(console: Console, result: dict[str, Any]) -> None:
    table = Table("way", "load, s", "preflight", "verify", "all, s", "MB")
    for name, taken in result["medians"].items():
        table.add_row(name, *(f"{taken[key]:.1f}" if key in taken else "" for key in movers.FIGURES))
    console.print(table)
    for target in result["targets"]:
        met = "met   " if target["met"] else "MISSED"
        console.print(f"{met} {target['target']}: {target['measured']:.2f} (wanted {target['wanted']})")


if __name__ == "__main__":
    if shutil.which("pgloader") is None:
        click.echo("pgloader is not installed and is skipped: apt-get install pgloader", err=True)
    main()
