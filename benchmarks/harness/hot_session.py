"""Many writers of one session in several processes, beside pgbench on the same row."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from harness.contender_processes import Worker
from harness.field import OURS_ON_POSTGRES
from harness.pgbench import Pgbench

PROCESSES: Final = 4
WRITERS: Final = 64
_CONNECTIONS: Final = 10


class HotSession:
    """Four processes of the library on one session, and pgbench on another store.

    Args:
        dsn: An empty database for the library.
        other_dsn: An empty database for pgbench.
        directory: For logs and scripts.
        seed: The seed of the messages.
        stack: Ends the processes.
    """

    def __init__(self, dsn: str, other_dsn: str, directory: Path, seed: int, stack: ExitStack) -> None:
        self._seed = seed
        self._workers = []
        log = directory / "log"
        for number in range(PROCESSES):
            worker = stack.enter_context(Worker(OURS_ON_POSTGRES, sys.executable, log))
            worker.open(dsn, engine="postgres", connections=_CONNECTIONS, seed=seed, long=False, fills=number == 0)
            self._workers.append(worker)
        with Worker(OURS_ON_POSTGRES, sys.executable, log) as worker:
            worker.open(other_dsn, engine="postgres", connections=2, seed=seed, long=False)
        self._pgbench = Pgbench(other_dsn, directory)

    def measure_round(self, number: int, seconds: float) -> dict[str, float]:
        """Measure both, one after the other.

        Returns:
            Calls a second of the library and of pgbench; the library's 99th percentile, in the slowest process; the
            calls of the writer with the fewest over those of the writer with the most, and the same for processes.
        """
        task = {
            "engine": "postgres",
            "work": "hot",
            "seconds": seconds,
            "warmup": 0.3,
            "seed": f"{self._seed}-{number}",
        }

        def measure(worker: Worker) -> dict[str, Any]:
            return worker.measure({**task, "concurrency": WRITERS // PROCESSES})

        def ours() -> list[dict[str, Any]]:
            with ThreadPoolExecutor(PROCESSES) as threads:
                return list(threads.map(measure, self._workers))

        def theirs() -> float:
            return float(self._pgbench.measure({**task, "concurrency": WRITERS})["ops"])

        if number % 2:
            pgbench, figures = theirs(), ours()
        else:
            figures, pgbench = ours(), theirs()
        errors = [each["first_error"] for each in figures if each["errors"]]
        if errors:
            raise RuntimeError(f"an add to the hot session failed: {errors[0]}")
        calls = [each["calls"] for each in figures]
        return {
            "ops": sum(each["ops"] for each in figures),
            "pgbench_ops": pgbench,
            "p99_us": max(each["p99_us"] or seconds * 1e6 for each in figures),
            "fewest_to_most_of_a_writer": min(each["fewest_calls"] for each in figures)
            / max(each["most_calls"] for each in figures),
            "fewest_to_most_of_a_process": min(calls) / max(calls),
        }
