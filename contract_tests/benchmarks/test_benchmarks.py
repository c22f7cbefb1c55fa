"""Tests the benchmarks' arithmetic: ratios within rounds, their error, the gates, and detected regressions."""

# ruff: noqa: PLC0415 - the harness is importable only within the fixture
from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def harness() -> Iterator[None]:
    """Make the benchmarks' package importable, which lies beside scripts and is not installed."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def make_figure(ops: float, **others: Any) -> dict[str, Any]:
    """Return a figure in the worker's format."""
    rest = {"calls": 1, "p50_us": 1.0, "p95_us": 1.0, "p99_us": 1.0, "cpu_us": 1.0, "rss_mb": None, "errors": 0}
    return {"ops": ops, **rest, "first_error": None, **others}


def make_run(ours: list[float], base: list[float], *, work: str = "add", concurrency: int = 1) -> Any:
    """Return a run of the library against pgbench."""
    from harness.results import Case, Run

    run = Run({"at": "now"})
    case = Case("postgres", work, concurrency, 10)
    for one, other in zip(ours, base, strict=True):
        run.add(case, "flux-memory", make_figure(one))
        run.add(case, "pgbench", make_figure(other))
    return run


def test_a_drifting_machine_does_not_move_the_ratio() -> None:
    """Ratios are taken within a round: a machine that becomes ten times slower changes neither ratio nor error."""
    (found,) = make_run([200.0, 100.0, 20.0, 10.0, 2.0], [100.0, 50.0, 10.0, 5.0, 1.0]).ratios()
    assert found[2].median == pytest.approx(2.0)
    assert found[2].error == pytest.approx(0.0)


def test_a_round_in_which_nothing_happened_is_left_out() -> None:
    """A contender that stalled for a round neither divides by zero nor counts as infinitely slow."""
    (found,) = make_run([2.0, 2.0, 2.0], [1.0, 0.0, 1.0]).ratios()
    assert found[2].median == pytest.approx(2.0)


def test_a_single_round_proves_nothing() -> None:
    """One round has no error estimate, so no change against it counts as a regression."""
    from harness.ratios import Ratio, got_worse, summary

    assert math.isinf(summary([2.0]).error)
    assert not got_worse(Ratio(0.1, 0.01), summary([2.0]))


def test_the_error_is_that_of_the_median() -> None:
    """The printed error is the scatter of repeated runs."""
    from harness.ratios import summary

    rng = random.Random(1)
    runs = [summary([rng.lognormvariate(0, 0.2) for _ in range(9)]) for _ in range(2_000)]
    medians = [math.log(each.median) for each in runs]
    scatter = math.sqrt(sum(each * each for each in medians) / len(medians))
    mean_error = sum(each.error for each in runs) / len(runs)
    assert mean_error == pytest.approx(scatter, rel=0.1)


@pytest.mark.parametrize(("fall", "worse"), [(0.9, False), (0.5, True)])
def test_a_fall_beyond_the_noise_is_worse(fall: float, *, worse: bool) -> None:
    """A ratio that fell within the noise of both runs passes; one that fell beyond it fails the comparison."""
    from harness.results import compare

    old = make_run([1.0, 1.1, 0.9, 1.05, 0.95], [1.0] * 5)
    new = make_run([fall * each for each in (1.0, 1.1, 0.9, 1.05, 0.95)], [1.0] * 5)
    (change,) = compare(old, new)
    assert change.worse is worse


def test_noise_alone_is_rarely_called_a_regression() -> None:
    """Comparing two equal runs raises a false alarm for less than one in forty ratios of five rounds."""
    from harness.ratios import got_worse, summary

    rng = random.Random(2)

    def one() -> Any:
        return summary([rng.lognormvariate(0, 0.15) for _ in range(5)])

    # The typical error of a run is the lower bound of each row's error.
    typical = sorted(one().error for _ in range(999))[499]
    alarms = sum(got_worse(one(), one(), new_noise=typical, old_noise=typical) for _ in range(4_000))
    assert alarms < 4_000 / 40


def test_a_missed_or_missing_figure_fails_its_gate() -> None:
    """A value below the target fails, and so does a missing measurement."""
    from harness.gates import outcomes

    found = {
        (each.gate.work, each.gate.base, each.concurrency): each.passed
        for each in outcomes(make_run([0.96] * 3, [1.0] * 3))
        if each.gate.engine == "postgres"
    }
    assert found["add", "pgbench", 1]
    assert not found["add", "pgbench", 10]
    missed = outcomes(make_run([0.94] * 3, [1.0] * 3))[0]
    assert missed.reached == pytest.approx(0.94)
    assert not missed.passed


def test_json_reads_back() -> None:
    """A stored run compares with a later one: JSON loses nothing."""
    from harness.results import from_json

    run = make_run([1.0, 2.0], [2.0, 2.0])
    again = from_json(json.loads(json.dumps(run.as_json())))
    assert again.figures == run.figures
    with pytest.raises(ValueError, match="format 0"):
        from_json({"format": 0})


def test_every_contender_makes_the_same_calls() -> None:
    """Calls depend on a seed: contenders of a case make the same calls, and each round makes others."""
    from harness import samples

    def first(seed: str, work: str) -> list[Any]:
        calls = samples.picks("postgres", work, seed)
        return [next(calls) for _ in range(1_000)]

    assert first("a", "add") == first("a", "add") != first("b", "add")
    assert not any(pick.read for pick in first("a", "add"))
    assert all(pick.read for pick in first("a", "history"))
    assert sum(pick.read for pick in first("a", "mix")) == pytest.approx(800, abs=50)


def test_contenders_of_a_case_follow_one_another() -> None:
    """Contenders of one ratio are measured side by side, in an order that changes from round to round."""
    from harness.results import Case, Run
    from harness.rounds import Turn, measure

    class FakeRunner:
        def versions(self) -> dict[str, str]:
            return {}

        def measure(self, task: dict[str, Any]) -> dict[str, Any]:
            return make_figure(1.0)

    cases = [Case("postgres", work, concurrency, 10) for work in ("add", "history") for concurrency in (1, 10)]
    turns = [Turn(name, case, FakeRunner()) for name in ("one", "two", "three") for case in cases]
    order: list[Turn] = []
    measure(Run({}), turns, rounds=20, seconds=0, seed=1, progress=order.append)
    triples = [order[at : at + 3] for at in range(0, len(order), 3)]
    assert all(len({turn.case for turn in triple}) == 1 for triple in triples)
    assert len({tuple(turn.contender for turn in triple) for triple in triples}) == 6


def test_pgbench_sends_the_librarys_own_statements() -> None:
    """The ceiling runs the same statement: every parameter is a variable, and no colon in a literal becomes one."""
    from harness import pgbench

    for work in ("add", "history", "list"):
        script = pgbench.script(work)
        assert "$" not in script
        assert "'HH24:" not in script
        assert script.rstrip().endswith(";")
    assert ":session" in pgbench.script("add")


def test_a_bound_that_is_broken_is_named() -> None:
    """The growth benchmark fails on a page that costs the table, on a lost add, and on an early import."""
    import growth

    good: dict[str, Any] = {
        "growth": {"postgres": {"get_sessions(50)": {"few_ms": 1.0, "many_ms": 1.9}}},
        "burst": {"sqlite": {"failed": 0, "stored": 10_000, "grown_mb": 30.0}},
        "import": {"milliseconds": 20.0, "loaded": []},
    }
    assert growth.within_bounds(good) == []
    bad = json.loads(json.dumps(good))
    bad["growth"]["postgres"]["get_sessions(50)"]["many_ms"] = 3.0
    bad["burst"]["sqlite"]["stored"] = 9_999
    bad["import"]["loaded"] = ["asyncpg"]
    assert len(growth.within_bounds(bad)) == 3


def test_a_peer_that_is_faster_is_named() -> None:
    """The page has the cost of each contender's throwaway server, and a figure that a peer beats fails the run."""
    import harness_cost

    cost = {each.name: {"cold": 3.0, "first": 2.0, "test": 0.05, "run": 4.0} for each in harness_cost.CONTENDERS}
    local, container = (
        [each.name for each in harness_cost.CONTENDERS if each.in_container is in_container]
        for in_container in (False, True)
    )
    own, *_, peer = local
    # Containers are compared with each other, not with local servers.
    cost |= {name: {"cold": 9.0, "first": 9.0, "test": 0.09, "run": 9.0} for name in container}
    cost[own] = {"cold": 2.0, "first": 1.0, "test": 0.01, "run": 2.0}
    assert harness_cost.slower_than_peers(cost) == []
    cost[container[0]] = cost[container[0]] | {"run": 9.5}
    assert [each.partition(":")[0] for each in harness_cost.slower_than_peers(cost)] == [container[0]] * 2
    cost[container[0]] = cost[container[1]]
    cost[peer]["test"] = 0.009
    (slower,) = harness_cost.slower_than_peers(cost)
    assert slower == f"{own}: test takes 0.010 s, and {peer} 0.009 s"
    about = {"at": "now", "commit": "c", "cores": 2, "cpu": "x", "python": "3", "load_before": 0.1}
    versions = {each.package: "1.2" for each in harness_cost.CONTENDERS}
    page = harness_cost.document(
        {"about": about, "server": "16", "image": "i", "tests": 5, "rounds": 3, "versions": versions, "cost": cost}
    )
    assert f"| {own} | 1.2 | 2.00 | 1.00 | 10.0 | 2.00 |" in page
    assert all(f"| {name} |" in page for name in cost)
