"""Measures how pages grow with rows and memory with a burst, and the cost of a handle and of the import."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory
from flux_memory.testkit.servers import Server, start_server
from harness import footprint, large, machine
from harness.markdown import ENGINES, table

RESULTS: Final = Path(__file__).parent / "results"
FEW_MESSAGES: Final = 1_000
MAX_GROWTH_FACTOR: Final = 2.0
"""Ratio: a page among many rows may take this many times as long as among few."""
NEGLIGIBLE_MS: Final = 0.2
"""Milliseconds: smaller differences cannot be measured on a shared machine."""
MAX_GROWTH_MB: Final = 100.0
MAX_IMPORT_MS: Final = 30.0
PAGE_ROWS: Final = 50
TURNS: Final = 15
TURN_SECONDS: Final = 0.05

LISTINGS: Final[dict[str, dict[str, Any]]] = {
    "get_sessions(50)": {},
    "... of a user": {"user_id": "user-7"},
    "... by metadata, one matches": {"metadata": {"number": 500}},
    "... by metadata, a hundred match": {"metadata": {"tenant": 7}},
    "... by metadata, half match": {"metadata": {"lang": "en"}},
    "... by metadata, none matches": {"metadata": {"lang": "xx"}},
    "... of a user by metadata, all of his match": {"user_id": "user-7", "metadata": {"lang": "ko"}},
    "... of a user by metadata, none of his matches": {"user_id": "user-7", "metadata": {"lang": "en"}},
}
Call = Callable[[], Awaitable[object]]


def calls_of(memory: Memory, rows: int) -> dict[str, Call]:
    """Return the measured calls by name."""

    def listing(options: dict[str, Any]) -> Call:
        return lambda: memory.get_sessions(PAGE_ROWS, **options)

    middle = large.message_id(rows // 2)
    return {
        **{name: listing(options) for name, options in LISTINGS.items()},
        "get_session": lambda: memory.get_session(large.LONG),
        "get_history(50)": lambda: memory.get_history(large.LONG, PAGE_ROWS),
        "... before the middle": lambda: memory.get_history(large.LONG, PAGE_ROWS, before=middle),
    }


async def open_filled(engine: str, rows: int, server: Server, directory: Path) -> Memory:
    """Return a handle on a store with `rows` sessions, and one more session with `rows` messages."""
    memory: Memory
    if engine == "postgres":
        dsn = server.create_database()
        memory = PostgresConversationMemory(dsn)
        await memory.count_sessions()
        await large.fill_postgres(dsn, sessions=rows, messages=rows)
    else:
        path = directory / f"{rows}.db"
        memory = ConversationMemory(path)
        await memory.count_sessions()
        await asyncio.to_thread(large.fill_sqlite, path, sessions=rows, messages=rows)
    return memory


async def measure_growth(engine: str, many: int, server: Server, directory: Path) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each call among few rows and among many, measured alternately."""
    stores = {rows: await open_filled(engine, rows, server, directory) for rows in (FEW_MESSAGES, many)}
    calls = {rows: calls_of(memory, rows) for rows, memory in stores.items()}
    found = {}
    for name in calls[FEW_MESSAGES]:
        taken: dict[int, list[float]] = {FEW_MESSAGES: [], many: []}
        for _ in range(TURNS):
            for rows in (FEW_MESSAGES, many):
                taken[rows].append(await _turn(calls[rows][name]))
        found[name] = {"few_ms": median(taken[FEW_MESSAGES]), "many_ms": median(taken[many])}
    for memory in stores.values():
        await memory.close()
    return found


async def _turn(call: Call) -> float:
    taken: list[float] = []
    end = time.perf_counter() + TURN_SECONDS
    while not taken or time.perf_counter() < end:
        began = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - began) * 1000)
    return median(taken)


def within_bounds(result: dict[str, Any]) -> list[str]:
    """Return a sentence for each figure that is out of bounds."""
    bad = []
    for engine, calls in result["growth"].items():
        for name, each in calls.items():
            if each["many_ms"] > MAX_GROWTH_FACTOR * each["few_ms"] + NEGLIGIBLE_MS:
                bad.append(f"{ENGINES[engine]} {name}: {each['many_ms']:.2f} ms after {each['few_ms']:.2f} ms")
    for engine, burst in result["burst"].items():
        if burst["failed"] or burst["stored"] != footprint.BURST_CALLS or burst["grown_mb"] > MAX_GROWTH_MB:
            bad.append(f"{ENGINES[engine]} burst: {burst}")
    if result["import"]["milliseconds"] > MAX_IMPORT_MS or result["import"]["loaded"]:
        bad.append(f"import: {result['import']}")
    return bad


def tables(result: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return the result as tables by title; the first row is the header."""
    many = f"{result['rows']:,}"
    growth = [
        [
            "call, milliseconds",
            *(f"{ENGINES[engine]}: {rows}" for engine in result["growth"] for rows in (f"{FEW_MESSAGES:,}", many)),
        ]
    ]
    for name in next(iter(result["growth"].values())):
        cells = [f"{calls[name][key]:.2f}" for calls in result["growth"].values() for key in ("few_ms", "many_ms")]
        growth.append([name, *cells])
    burst = [["burst of 10,000 adds", "seconds", "failed", "stored", "memory grown by, MB"]]
    for engine, each in result["burst"].items():
        cells = [f"{each['seconds']:.2f}", f"{each['failed']}", f"{each['stored']:,}", f"{each['grown_mb']:.0f}"]
        burst.append([ENGINES[engine], *cells])
    costs = [["cost", ""], ["import flux_memory, ms", f"{result['import']['milliseconds']:.1f}"]]
    costs += [[f"idle handle, {ENGINES[engine]}, MB", f"{mb:.2f}"] for engine, mb in result["idle_mb"].items()]
    return {"Rows: sessions, and messages of the session that is read": growth, "Burst": burst, "Footprint": costs}


def document(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    about = result["about"]
    conditions = (
        f"Measured {about['at']} at {about['commit']}, on {about['cores']} cores ({about['cpu']}), Python "
        f"{about['python']}, PostgreSQL {about['server']}; load {about['load_before']} before. Medians of {TURNS} "
        "turns, few rows and many rows by turns."
    )
    lines = ["# Growth", "", conditions]
    for title, (head, *rows) in tables(result).items():
        lines += ["", f"## {title}", "", *table(head, rows)]
    return "\n".join(lines) + "\n"


@click.command()
@click.option(
    "--rows", type=click.IntRange(FEW_MESSAGES), default=1_000_000, show_default=True, help="Rows of the large stores."
)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default="benchmarks/results")
def main(*, rows: int, out: Path) -> None:
    """Measure, print, and write growth.json and growth.md; fail if a figure is out of bounds."""
    console = Console()
    result: dict[str, Any] = {"about": machine.about(), "rows": rows, "growth": {}, "burst": {}, "idle_mb": {}}
    result["import"] = footprint.import_time()
    disk = "/var/tmp" if Path("/var/tmp").is_dir() else None
    with (
        start_server("local", durable=True) as server,
        tempfile.TemporaryDirectory(prefix="flux-memory-bench-", dir=disk) as name,
        console.status("") as status,
    ):
        result["about"]["server"] = server.version
        for engine in ENGINES:
            status.update(f"{ENGINES[engine]}: idle handles, a burst of adds")
            target = server.create_database() if engine == "postgres" else f"{name}/burst.db"
            result["idle_mb"][engine] = footprint.idle_handle(engine, target)
            result["burst"][engine] = footprint.burst(engine, target)
            status.update(f"{ENGINES[engine]}: {rows:,} rows")
            result["growth"][engine] = asyncio.run(measure_growth(engine, rows, server, Path(name)))
    out.mkdir(parents=True, exist_ok=True)
    (out / "growth.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "growth.md").write_text(document(result), encoding="utf-8")
    for title, (head, *cells) in tables(result).items():
        shown = Table(*head, title=title, title_justify="left")
        for row in cells:
            shown.add_row(*row)
        console.print(shown)
    bad = within_bounds(result)
    for each in bad:
        console.print(f"[red]out of bounds: {each}[/red]")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
