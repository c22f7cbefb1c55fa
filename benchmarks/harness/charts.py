"""Draws a run as self-explanatory charts: PNG for viewing, SVG for pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from harness.contender_list import ALL, OURS, Entry
from harness.gates import POOL
from harness.markdown import ENGINES, WORKS, times
from harness.results import Case, Run

_COLOURS: Final = {"ours": "#1f6feb", "ceiling": "#6e7781", "peer": "#bf8700"}
_ROLES: Final = {"ours": "this library", "ceiling": "ceiling of the engine", "peer": "used today"}
_WIDTH_INCHES: Final = 9.0


def draw(run: Run, directory: Path) -> list[Path]:
    """Draw every chart that the run has figures for; return the files."""
    mpl.use("Agg")
    # Fixed ids: an unchanged chart gives the same file.
    mpl.rcParams.update({"svg.hashsalt": "flux-memory", "font.size": 9, "axes.spines.right": False})
    mpl.rcParams.update({"axes.spines.top": False, "font.family": "DejaVu Sans"})
    files = []
    for engine in ENGINES:
        for work in WORKS:
            if chart := _throughput(run, engine, work):
                files += _save(chart, directory / f"{engine}-{work}")
    if chart := _pool_sizes(run):
        files += _save(chart, directory / "postgres-pool-size")
    return files


def _throughput(run: Run, engine: str, work: str) -> Any:
    cases = sorted({case for case, _ in run.figures if case[:2] == (engine, work) and case.pool == POOL})
    entries = [
        each
        for each in ALL
        if each.engine == engine and work in each.works and any((case, each.name) in run.figures for case in cases)
    ]
    if not cases or len(entries) < 2:
        return None
    figure, axes = plt.subplots(
        1, len(cases), figsize=(max(_WIDTH_INCHES, 3.2 * len(cases)), 1.5 + 0.26 * len(entries)), sharey=True
    )
    for axis, case in zip([axes] if len(cases) == 1 else axes, cases, strict=True):
        _bars(axis, run, case, entries)
    figure.suptitle(f"{ENGINES[engine]}: {WORKS[work]}, calls a second; longer is better", x=0.01, ha="left")
    handles = [Patch(color=_COLOURS[role]) for role in _ROLES]
    figure.legend(handles, _ROLES.values(), loc="lower left", ncols=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure


def _bars(axis: Any, run: Run, case: Case, entries: Sequence[Entry]) -> None:
    values = [run.median(case, each.name, "ops") if (case, each.name) in run.figures else None for each in entries]
    most = max(value or 0 for value in values)
    for place, (each, value) in enumerate(zip(entries, values, strict=True)):
        axis.barh(place, value or 0, color=_COLOURS[each.role])
        label = "not measured" if value is None else f"{value:,.0f}"
        if ratio := None if each.name == OURS else run.ratio(case, each.name):
            label += f"  (ours {times(ratio.median)}x)"
        axis.text((value or 0) + most * 0.02, place, label, va="center", fontsize=7.5)
    axis.set_yticks(range(len(entries)), [each.name for each in entries])
    # Not invert_yaxis(): the axes share y, and each call would invert it again.
    axis.set_ylim(len(entries) - 0.5, -0.5)
    axis.set_xlim(0, most * 1.75)
    callers = "1 caller" if case.concurrency == 1 else f"{case.concurrency} callers at once"
    axis.set_title(callers, loc="left", fontsize=9)
    axis.xaxis.set_visible(False)
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _pool_sizes(run: Run) -> Any:
    cases = sorted(case for case, name in run.figures if name == OURS and case.engine == "postgres")
    works = [work for work in WORKS if len({case.pool for case in cases if case.work == work}) > 1]
    if not works:
        return None
    figure, axis = plt.subplots(figsize=(_WIDTH_INCHES * 0.7, 3.4))
    for work in works:
        busiest = max(case.concurrency for case in cases if case.work == work and case.pool != POOL)
        line = [case for case in cases if case.work == work and case.concurrency == busiest]
        heights = [run.median(case, OURS, "ops") or 0 for case in line]
        axis.plot([case.pool for case in line], heights, marker="o", label=work)
    axis.set_title(f"PostgreSQL: calls a second by pool size, {busiest} callers at once", loc="left")
    axis.set_xlabel("connections in the pool")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    figure.tight_layout()
    return figure


def _save(figure: Any, path: Path) -> list[Path]:
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"Date": None})
    plt.close(figure)
    return files
