"""Describes the machine of a run, and whether it was idle."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.contender_processes import BENCHMARKS


def about() -> dict[str, Any]:
    """Return the time, the machine and the state of the checkout."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(_memory_gb()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": load(),
    }


def load() -> float:
    """Return the load average of the last minute; a quiet machine has less than one."""
    return round(os.getloadavg()[0], 2)


def unrest(about: dict[str, Any]) -> str | None:
    """Return why the figures of a run are not reliable; None if the machine was quiet before it."""
    if about["load_before"] <= about["cores"] / 2:
        return None
    return (
        f"The machine was not quiet: load {about['load_before']} on {about['cores']} cores before the run. "
        "Contenders with more processes get more of the cores; measure again."
    )


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=BENCHMARKS, check=False
    )
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
