"""Tests the soak: a short run keeps all promises, and leaks are found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported from its own directory."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import soak  # noqa: PLC0415 - a program, not a package

    yield soak
    for name in [name for name in sys.modules if name == "soak" or name.partition(".")[0] == "harness"]:
        del sys.modules[name]


@pytest.fixture
def soak_process(soak: Any) -> Any:
    """The module of the soak's processes."""
    return sys.modules[soak.Process.__module__]


def test_a_short_soak_keeps_every_promise(soak: Any, tmp_path: Path) -> None:
    """256 users on four processes, a foreign lock, one killed process of users: nothing is lost or leaked."""
    phase = soak.soak("sqlite", 4, 9.0, 1, tmp_path / "log")
    assert phase.problems == []
    assert phase.faults
    assert phase.calls["ok"] > soak.USERS
    assert phase.messages > 0
    json.dumps(soak.asdict(phase))


def test_leaks_are_named(soak_process: Any) -> None:
    """An additional descriptor, thread or task is a problem, and so is memory that keeps growing."""
    before = {"files": 7, "threads": 1, "tasks": 1}
    assert soak_process.leaks("one", before, before) == []
    assert soak_process.leaks("one", before, {**before, "threads": 2}) == [
        "one leaks threads: 1 before, 2 after close()"
    ]
    flat = [50.0 + (second % 3) for second in range(60)]
    assert soak_process.growth("one", flat) == []
    assert "grows" in soak_process.growth("one", [50.0 + second for second in range(60)])[0]
