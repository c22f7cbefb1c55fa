"""Shows the progress of a run on the terminal, and its tables at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from harness.contender_list import OURS
from harness.gates import CONCURRENCY, POOL, outcomes
from harness.markdown import ENGINES, WORKS, number, parts, places, times
from harness.results import Case, Drift, Run


class Watch:
    """A progress bar with a description."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def expect(self, steps: int) -> None:
        """Set the total number of steps."""
        self._progress.update(self._task, total=steps)

    def say(self, what: str) -> None:
        """Show the current preparation."""
        self._progress.update(self._task, description=what)

    def step(self, what: str) -> None:
        """Advance by one step, and show its description."""
        self._progress.update(self._task, advance=1, description=what)


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Show a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Watch(progress)


def show_figures(console: Console, run: Run) -> None:
    """Print a table for each work on each engine."""
    for engine, work in parts(run):
        table = Table(title=f"{ENGINES[engine]}: {WORKS[work]}", title_justify="left")
        table.add_column("contender", min_width=20)
        for name in ("c", "calls/s", "p50 us", "p99 us", "CPU us", "MB", "ours/it", "+-"):
            table.add_column(name, justify="right", no_wrap=True)
        last = None
        for case, name in places(run, engine, work):
            if last not in {None, case}:
                table.add_section()
            last = case
            table.add_row(
                f"[bold]{name}[/bold]" if name == OURS else name,
                f"{case.concurrency}" + (f", pool {case.pool}" if case.pool != POOL else ""),
                *_cells(run, case, name),
            )
        console.print(table)


def _cells(run: Run, case: Case, name: str) -> list[str]:
    cells = [number(run.median(case, name, each)) for each in ("ops", "p50_us", "p99_us", "cpu_us", "rss_mb")]
    if failed := sum(each["errors"] for each in run.figures[case, name]):
        cells[0] += f" [red]({failed} failed)[/red]"
    ratio = None if name == OURS else run.ratio(case, name)
    return [*cells, times(ratio.median), f"{ratio.error:.0%}" if math.isfinite(ratio.error) else ""] if ratio else cells


def show_gates(console: Console, run: Run) -> bool:
    """Print the targets and the reached ratios; return whether all were reached."""
    table = Table(title="Targets: ours / theirs, calls a second", title_justify="left")
    table.add_column("work")
    for concurrency in CONCURRENCY:
        table.add_column(f"c={concurrency}", justify="right", no_wrap=True)
    found = {(each.gate, each.concurrency): each for each in outcomes(run)}
    for gate in dict.fromkeys(gate for gate, _ in found):
        cells = []
        for concurrency in CONCURRENCY:
            each = found[gate, concurrency]
            colour, sign = ("green", ">=") if each.passed else ("red", "<")
            cells.append(f"[{colour}]{times(each.reached)} {sign} {each.target:g}[/{colour}]")
        table.add_row(f"{ENGINES[gate.engine]} {gate.work} / {gate.base}", *cells)
    console.print(table)
    return all(each.passed for each in found.values())


def show_changes(console: Console, changes: Sequence[Drift]) -> bool:
    """Print how ratios changed; return whether none got worse."""
    table = Table(title="Against the older run", title_justify="left")
    for name in ("case", "against"):
        table.add_column(name)
    for name in ("then", "now", "change"):
        table.add_column(name, justify="right")
    for change in changes:
        colour = "red" if change.worse else "white"
        moved = f"[{colour}]{change.new.median / change.old.median - 1:+.0%}[/{colour}]"
        table.add_row(str(change.case), change.base, times(change.old.median), times(change.new.median), moved)
    console.print(table)
    worse = [change for change in changes if change.worse]
    for change in worse:
        console.print(f"[red]worse by more than the noise: {change.case} against {change.base}[/red]")
    return not worse
