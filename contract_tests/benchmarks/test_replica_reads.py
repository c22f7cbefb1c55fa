"""Tests that the benchmark of reads on replicas runs, and measures the primary apart from its replicas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

BENCHMARK: Final = Path(__file__).parents[2] / "benchmarks/replica_reads.py"
RUN_SECONDS: Final = 300
"""Seconds for a run; an idle machine needs a thirtieth of that."""


def test_reads_are_measured_with_each_number_of_replicas() -> None:
    """Two kinds of reads, by one caller and by ten, with 0, 1 and 2 replicas."""
    command = [sys.executable, str(BENCHMARK), "--rounds=1", "--seconds=0.05"]
    wide = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=wide, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row.split("│")[3].strip() for row in rows] == ["0", "1", "2"] * (len(rows) // 3)
    assert len(rows) >= 6
