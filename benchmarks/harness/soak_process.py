"""Starts one process of a soak, reads its samples, and finds leaks and growth in them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final

from harness.contender_processes import BENCHMARKS
from harness.soaking import Orders

GROWTH: Final = (1.05, 8.0)
"""Allowed memory of a process in its last third of the time against the second: a factor, plus megabytes."""


def leaks(name: str, before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Return a sentence for each kind of resource that a process leaked."""
    return [
        f"{name} leaks {kind}: {before[kind]} before, {after[kind]} after close()"
        for kind in before
        if after[kind] > before[kind]
    ]


def growth(name: str, used: list[float]) -> list[str]:
    """Return a sentence if memory, sampled in megabytes, still grows in the last third of a run of 15 s or more."""
    third = len(used) // 3
    if third < 5:
        return []
    middle, end = median(used[third : 2 * third]), median(used[2 * third :])
    if end <= middle * GROWTH[0] + GROWTH[1]:
        return []
    return [f"{name} grows: {middle:.0f} MB in the second third of its time, {end:.0f} MB in the last"]


class Process:
    """A process with users; a thread reads its samples."""

    def __init__(self, orders: Orders, log: Path) -> None:
        self.orders = orders
        self.samples: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {}
        self.killed = False
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "harness.soaking"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=BENCHMARKS,
            )
        assert self._process.stdin is not None
        # Not on the command line: the target contains a password.
        self._process.stdin.write(json.dumps(asdict(orders)))
        self._process.stdin.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def kill(self) -> None:
        """Kill the process."""
        self.killed = True
        self._process.send_signal(signal.SIGKILL)

    def finish(self, seconds: float) -> list[str]:
        """Wait for the process to end; return its problems."""
        name = self.orders.name
        try:
            code = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return [f"{name} did not end"]
        self._reader.join(timeout=5)
        if self.killed:
            return []
        if code != 0 or not self.last:
            return [f"{name} ended with {code}; see the log"]
        return [
            *leaks(name, self.last["before"], self.last["after"]),
            *growth(name, [sample["rss_mb"] for sample in self.samples]),
        ]

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                # The last line of a killed process may be torn.
                if line.endswith("\n"):
                    told = json.loads(line)
                    if "after" in told:
                        self.last = told
                    else:
                        self.samples.append(told)
