"""Tests the benchmark of telemetry: it measures each way in a process, and names telemetry that costs too much."""

# ruff: noqa: PLC0415 - the harness is importable only within the fixture
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the benchmarks importable."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")


def make_result(off_us: float, metrics_us: float = 100.0) -> dict[str, Any]:
    """Return a result of one case: the CPU of a call with telemetry off and with metrics, and 100 us without any."""
    import telemetry_cost

    rounds = {way: [{"ops": 1_000.0, "cpu_us": off_us}] * 3 for way in telemetry_cost.WAYS}
    rounds["metrics"] = [{"ops": 1_000.0, "cpu_us": metrics_us}] * 3
    rounds[telemetry_cost.BASELINE] = [{"ops": 1_000.0, "cpu_us": 100.0}] * 3
    about = {"at": "now", "commit": "c", "cores": 2, "cpu": "x", "python": "3", "load_before": 0.1, "rounds": 3}
    return {"about": {**about, "server": "16"}, "engines": {"sqlite": {"add_message, 1 at once": rounds}}}


def test_telemetry_that_costs_while_off_is_named() -> None:
    """Three per cent cannot be told from noise; more is a missed target."""
    import telemetry_cost

    assert telemetry_cost.missed(make_result(102.0)) == []
    (line,) = telemetry_cost.missed(make_result(110.0))
    assert line == "SQLite: telemetry that is off takes 1.10 times the CPU of none; the target is 1.03"
    assert "| add_message, 1 at once | off | 1,000 | 1.00 | 110 | 1.00 |" in telemetry_cost.document(make_result(110.0))


def test_metrics_that_cost_too_much_are_named() -> None:
    """Metrics are for production: up to ten per cent need no decision."""
    import telemetry_cost

    assert telemetry_cost.missed(make_result(100.0, 104.0)) == []
    (line,) = telemetry_cost.missed(make_result(100.0, 130.0))
    assert line == "SQLite: calls with metrics take 1.30 times the CPU of those without; the target is 1.1"


def test_each_way_is_measured_in_a_process(tmp_path: Path) -> None:
    """The process answers with calls and their CPU time, for telemetry that is off and on, and for a baseline."""
    import telemetry_cost

    targets = [str(tmp_path / f"{number}.db") for number in range(2)]
    with telemetry_cost.open_each("sqlite", targets, PROJECT) as memories:
        ways = [*telemetry_cost.WAYS, telemetry_cost.BASELINE]
        found = telemetry_cost.measure(memories, ways, rounds=1, seconds=0.05, seed=1)
    for case in found.values():
        assert list(case) == ways
        for (figure,) in case.values():
            assert figure["ops"] > 0
            assert figure["cpu_us"] > 0
