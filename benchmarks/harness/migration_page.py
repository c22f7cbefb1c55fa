"""Writes a migration run as a page of Markdown and as a chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine
from harness.movers import FIGURES


def page(result: dict[str, Any]) -> str:
    """Return the whole result as Markdown."""
    about = result["machine"]
    conditions = (
        f"{result['messages']:,} messages, {result['bytes'] / 1e6:,.0f} MB of SQLite, seed {result['seed']}. Measured "
        f"{about['at']} at {about['commit']}, on {about['cores']} cores ({about['cpu']}, {about['memory_gb']} GB), "
        f"{about['system']}, Python {about['python']}, PostgreSQL {about['server']}, default durability; load "
        f"{about['load_before']} before. Medians of {len(result['rounds'])} rounds. In each round every way ran "
        "once, after the disk and the server had finished the pending work of the one before (sync, CHECKPOINT). An "
        "uncounted move before the first round made the server create its log files, which it reuses. Ratios are "
        "medians of the ratios within the rounds."
    )
    lines = [
        "# SQLite to PostgreSQL",
        "",
        conditions,
        "",
        "| way | load, s | preflight, s | verification, s | all, s | MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, taken in result["medians"].items():
        figures = (f"{taken[key]:.1f}" if key in taken else "" for key in FIGURES)
        lines.append(f"| {name} | {' | '.join(figures)} |")
    lines += ["", "| target | wanted | measured | |", "|---|---|---|---|"]
    for target in result["targets"]:
        met = "met" if target["met"] else "**missed**"
        lines.append(f"| {target['target']} | {target['wanted']} | {target['measured']:.2f} | {met} |")
    lines += ["", "Memory is the sum of the peaks of the process and of its helper process for reading."]
    lines += [f"- {int(size):,} messages: {megabytes:.0f} MB" for size, megabytes in result["memory"].items()]
    if unrest := machine.unrest(about):
        lines += ["", unrest]
    return "\n".join(lines) + "\n"


def draw(medians: dict[str, dict[str, Any]], messages: int, path: Path) -> None:
    """Draw the seconds of each way, the load apart from preflight and verification."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only for drawing

    names = list(medians)[::-1]
    figure = Figure(figsize=(9, 0.6 * len(names) + 1.6), layout="constrained")
    axis = figure.add_subplot()
    load = [medians[name]["seconds"] for name in names]
    proof = [medians[name].get("preflight", 0) + medians[name].get("verify", 0) for name in names]
    axis.barh(names, load, color="#2a6f97", label="load")
    axis.barh(names, proof, left=load, color="#a9d6e5", label="preflight and verification")
    for at, (seconds, more) in enumerate(zip(load, proof, strict=True)):
        label = f" {seconds:.1f} + {more:.1f} s" if more else f" {seconds:.1f} s"
        axis.text(seconds + more, at, label, va="center")
    axis.set_xlabel(f"seconds for {messages:,} messages (shorter is better)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=120)
