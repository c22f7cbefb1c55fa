"""Draws a soak: calls answered and failed a second, faults as lines, and the memory of each process below."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

_ANSWERED, _FAILED, _FAULT = "#1f6feb", "#cf222e", "#8c959f"
_MAX_NAMED = 30
"""Number of faults up to which each is named."""


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw all phases, one below the other."""
    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.spines.right": False, "axes.spines.top": False})
    phases = result["phases"]
    figure, axes = plt.subplots(
        2 * len(phases),
        1,
        figsize=(11, 4.2 * len(phases)),
        height_ratios=[3, 1] * len(phases),
        squeeze=False,
        layout="constrained",
    )
    for place, phase in enumerate(phases):
        _calls(axes[2 * place][0], phase)
        _memory(axes[2 * place + 1][0], phase)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _calls(axis: Any, phase: dict[str, Any]) -> None:
    answered: defaultdict[int, int] = defaultdict(int)
    failed: defaultdict[int, int] = defaultdict(int)
    for sample in phase["samples"]:
        second = round(sample["at"] - 1)  # a sample covers the second before it
        for name, count in sample["ended"].items():
            if name == "ok":
                answered[second] += count
            elif name not in {"refused", "left"}:
                failed[second] += count
    seconds = range(int(phase["seconds"]) + 1)
    most = max([*answered.values(), 1])
    axis.step(
        seconds, [answered[each] for each in seconds], where="post", color=_ANSWERED, label="calls answered a second"
    )
    axis.bar(
        seconds,
        [failed[each] for each in seconds],
        color=_FAILED,
        align="edge",
        label="calls failed, with an error of the library",
    )
    named = len(phase["faults"]) <= _MAX_NAMED
    for at, name in phase["faults"]:
        axis.axvline(at, color=_FAULT, linewidth=0.8, linestyle=":")
        if named:
            axis.text(at, most * 1.05, name, rotation=30, fontsize=6.5, color=_FAULT, ha="left", va="bottom")
    verdict = f"{len(phase['problems'])} problems" if phase["problems"] else "all promises kept"
    axis.set_title(
        f"{phase['title']}: {verdict}; longest call {phase['longest_call']} s, outage {phase['longest_outage']} s",
        loc="left",
        pad=62 if named else 8,
    )
    axis.set_ylim(0, most * 1.05)
    axis.set_xlim(0, phase["seconds"])
    axis.legend(loc="lower right", fontsize=8, framealpha=0.9)


def _memory(axis: Any, phase: dict[str, Any]) -> None:
    lines: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for sample in phase["samples"]:
        lines[sample["name"]].append((sample["at"], sample["rss_mb"]))
    for points in lines.values():
        axis.plot(*zip(*points, strict=True), linewidth=1)
    axis.set_ylim(0, None)
    axis.set_xlim(0, phase["seconds"])
    axis.set_ylabel("MB")
    axis.set_xlabel("seconds; memory of each process", fontsize=8)
