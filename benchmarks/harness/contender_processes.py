"""Runs each contender in its own process, behind one call: `measure`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

BENCHMARKS: Final = Path(__file__).parents[1]


class Runner(Protocol):
    """A contender that can be measured."""

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that it measures."""
        ...

    def measure(self, task: dict[str, Any]) -> dict[str, Any]:
        """Run calls for a fixed time; see `rounds`."""
        ...


class WorkerFailed(Exception):  # noqa: N818 - named after the event
    """A contender's process ended or did not start; its stderr is in the log."""


class Worker:
    """The process of one contender.

    Args:
        load: `module:Class` below `harness.contenders`.
        python: The interpreter of the contender's environment.
        log: The file for the process's stderr.
    """

    def __init__(self, load: str, python: str, log: Path) -> None:
        self._load = load
        self._log = log
        self._versions: dict[str, str] = {}
        # The caller's environment must not configure a peer.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "POSTGRES_"))}
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "harness.contender_worker", load],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=BENCHMARKS,
                env={**environment, "PYTHONWARNINGS": "ignore"},
            )

    def open(self, target: str, *, engine: str, connections: int, seed: int, long: bool, fills: bool = True) -> None:
        """Open the contender's store, and fill it unless another process has."""
        order = {"target": target, "engine": engine, "connections": connections, "seed": seed, "long": long}
        reply = self._ask({"do": "open", "fill": fills, **order})
        self._versions = reply["versions"] | {"loop": reply["loop"].split(".")[0]}

    def versions(self) -> dict[str, str]:
        return self._versions

    def measure(self, task: dict[str, Any]) -> dict[str, Any]:
        return self._ask({"do": "measure", **task})

    def close(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            tail = self._log.read_text(encoding="utf-8", errors="replace").strip()[-1_000:]
            raise WorkerFailed(f"{self._load} ended: {tail}")
        reply: dict[str, Any] = json.loads(answer)
        return reply
