"""The chart of a migration run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(medians: dict[str, dict[str, Any]], messages: int, path: Path) -> None:
    """Draw how long each way took; preflight and verification are shown apart."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only who draws needs it

    names = list(medians)[::-1]
    figure = Figure(figsize=(9, 0.6 * len(names) + 1.6), layout="constrained")
    axis = figure.add_subplot()
    load = [medians[name]["seconds"] for name in names]
    proof = [medians[name].get("preflight", 0) + medians[name].get("verify", 0) for name in names]
    axis.barh(names, load, color="#2a6f97", label="load")
    axis.barh(names, proof, left=load, color="#a9d6e5", label="preflight and verification")
    for at, (seconds, more) in enumerate(zip(load, proof, strict=True)):
        axis.text(seconds + more, at, f" {seconds:.1f} s", va="center")
    axis.set_xlabel(f"seconds for {messages:,} messages (shorter is better)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
