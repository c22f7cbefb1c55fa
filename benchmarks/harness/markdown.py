"""Writes a run as a page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from harness import machine
from harness.contender_list import OURS
from harness.gates import CONCURRENCY, LIMITS, POOL, GateResult, outcomes
from harness.ratios import typical_error
from harness.results import Case, Run

WORKS: Final = {
    "add": "add_message",
    "history": "get_history(50) of 1,000 messages",
    "mix": "mix: four get_history(50), one add_message",
    "list": "get_sessions(50)",
}
ENGINES: Final = {"postgres": "PostgreSQL", "sqlite": "SQLite"}
_BETWEEN: Final = (
    "Bounds of the targets: the bare driver or a bare thread, one statement per call, against the same bases. A call "
    "that shares nothing cannot exceed them."
)


def document(run: Run) -> str:
    """Return the whole result."""
    about = run.about
    lines = [
        "# Throughput",
        "",
        _conditions(about),
        "",
        "## Targets",
        "",
        *_gate_table(outcomes(run)),
        "",
        _trust(run),
        "",
        _BETWEEN,
        "",
        *_limit_table(run),
    ]
    for engine, work in parts(run):
        lines += ["", f"## {ENGINES[engine]}: {WORKS[work]}", "", *_figure_table(run, engine, work)]
    lines += ["", "## Features that the others lack", ""]
    lines += [f"- {name}: {lacks}." for name, lacks in run.lacks.items()]
    lines += ["", "## Versions", ""]
    for name, versions in run.versions.items():
        lines.append(f"- {name}: {', '.join(f'{package} {version}' for package, version in versions.items())}")
    return "\n".join(lines) + "\n"


def _conditions(about: dict[str, Any]) -> str:
    return (
        f"Measured {about['at']} at {about['commit']}, on {about['cores']} cores ({about['cpu']}, "
        f"{about['memory_gb']} GB), {about['system']}, Python {about['python']}, PostgreSQL {about['server']}; load "
        f"{about['load_before']} before. {about['rounds']} rounds of {about['seconds']} s after {about['warmup']} s of "
        f"warm-up, seed {about['seed']}. In each round the contenders of a case follow one another in a random order. "
        f"A process for each client, a pool of {POOL} unless said otherwise, default durability. Figures are medians "
        "of the rounds, ratios medians of the ratios within the rounds."
    )


def _trust(run: Run) -> str:
    if unrest := machine.unrest(run.about):
        return unrest
    noise = typical_error([ratio for _, _, ratio in run.ratios()])
    if not math.isfinite(noise):
        return "One round: the ratios are not reliable."
    return f"Half of the ratios are known to {noise:.0%} or better (one standard error)."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table with right-aligned figures."""
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def number(value: float | None) -> str:
    """Return a figure, or a dash."""
    return "-" if value is None else f"{value:,.0f}"


def times(value: float | None) -> str:
    """Return a ratio with two decimals below 10, none above."""
    if value is None:
        return "not measured"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _gate_table(found: Sequence[GateResult]) -> Iterator[str]:
    by_place = {(each.gate, each.concurrency): each for each in found}
    rows = []
    for gate in dict.fromkeys(each.gate for each in found):
        cells = [by_place[gate, concurrency] for concurrency in CONCURRENCY]
        rows.append(
            [
                f"{ENGINES[gate.engine]} {gate.work} / {gate.base}",
                *(f"{times(cell.reached)} {'>=' if cell.passed else '**<**'} {cell.target:g}" for cell in cells),
            ]
        )
    yield from table(["ours / theirs, calls a second", *(f"c={each}" for each in CONCURRENCY)], rows)


def _limit_table(run: Run) -> Iterator[str]:
    rows = []
    for limit in LIMITS:
        cases = [Case(limit.engine, limit.work, concurrency, POOL) for concurrency in CONCURRENCY]
        ratios = [run.ratio(case, limit.base, of=limit.name) for case in cases]
        if any(ratios):
            cells = [times(ratio.median if ratio else None) for ratio in ratios]
            rows.append([f"{ENGINES[limit.engine]} {limit.work}: {limit.name} / {limit.base}", *cells])
    yield from table(["calls a second", *(f"c={each}" for each in CONCURRENCY)], rows)


def parts(run: Run) -> list[tuple[str, str]]:
    there = {(case.engine, case.work) for case, _ in run.figures}
    return [(engine, work) for engine in ENGINES for work in WORKS if (engine, work) in there]


def places(run: Run, engine: str, work: str) -> list[tuple[Case, str]]:
    """Return the measured pairs of case and contender, ours first in each case."""
    found = [place for place in run.figures if place[0][:2] == (engine, work)]
    return sorted(found, key=lambda place: (place[0], place[1] != OURS))


def _figure_table(run: Run, engine: str, work: str) -> Iterator[str]:
    head = ["contender", "c", "pool", "calls/s", "p50 us", "p95 us", "p99 us", "client CPU us", "MB", "ours / it"]
    rows = []
    for case, name in places(run, engine, work):
        rows.append([name, f"{case.concurrency}", f"{case.pool}", *_cells(run, case, name)])
    yield from table(head, rows)


def _cells(run: Run, case: Case, name: str) -> list[str]:
    ratio = None if name == OURS else run.ratio(case, name)
    failed = sum(each["errors"] for each in run.figures[case, name])
    cells = [number(run.median(case, name, each)) for each in ("ops", "p50_us", "p95_us", "p99_us", "cpu_us", "rss_mb")]
    if failed:
        cells[0] += f" ({failed} failed)"
    return [*cells, times(ratio.median) if ratio else ""]
