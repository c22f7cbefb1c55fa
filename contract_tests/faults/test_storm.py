"""Tests a storm of a few seconds on each engine, which breaks no promise, and the judge, which finds broken ones."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pytest
from fault_report import Fault
from fault_storm import AFTERWARDS, Rest, Round, StormWrite, Verdict
from storm import Summary, on_postgres, on_sqlite

STORM_SECONDS: Final = 6.0


def assert_clean(summary: Summary, fault: Fault) -> None:
    """Assert that every promise held, and that the storm was one."""
    shown = json.dumps(summary.shown(), indent=2)
    assert summary.verdict.is_clean, "\n".join([shown, *summary.examples[:5]])
    assert min(summary.outcomes[name] for name in ("acknowledged", "refused", "cancelled")) > 0, shown
    fault.add(acknowledged=summary.outcomes["acknowledged"])


@pytest.mark.fault("storm", backend="postgres")
def test_a_storm_over_postgres_breaks_no_promise(flux_empty_database: str, fault: Fault) -> None:
    """Mixed deadlines on one handle, cancellations, lost connections and replies, locked rows, a stalling loop."""
    for seed in fault.rounds(1, 20):
        summary = asyncio.run(on_postgres(flux_empty_database, STORM_SECONDS, seed))
        assert summary.outcomes["unknown"] > 0
        assert_clean(summary, fault)


@pytest.mark.fault("storm", backend="sqlite")
def test_a_storm_over_sqlite_breaks_no_promise(path: Path, fault: Fault) -> None:
    """Mixed deadlines on one handle, cancellations, a file that another process locks, a stalling loop."""
    for seed in fault.rounds(1, 20):
        assert_clean(asyncio.run(on_sqlite(path, STORM_SECONDS, seed)), fault)


def judge_messages(
    messages: list[tuple[str, int, str]], *sent: StormWrite, count: int | None = None, title: str = ""
) -> set[str]:
    """Return the promises that a session's messages break."""
    told = len(messages) if count is None else count
    verdict = Round(["s"], messages=list(sent)).judge(Rest(messages, [("s", title, told, "")]))
    return {name for name, times in asdict(verdict).items() if times}


def acknowledged_write(*contents: str, began: float = 0.0, ended: float = 1.0) -> StormWrite:
    """Return an acknowledged write."""
    return StormWrite("s", contents, began, acknowledged_at=ended)


def test_the_judge_of_the_storm_finds_each_broken_promise() -> None:
    """A judge without findings would call every storm clean."""
    one, two = ("s", 1, "a"), ("s", 2, "b")
    assert judge_messages([one, two, ("s", 3, AFTERWARDS)], acknowledged_write("a"), acknowledged_write("b")) == set()
    assert judge_messages([one], acknowledged_write("a"), acknowledged_write("b")) == {"lost"}
    assert judge_messages([one], acknowledged_write("a"), StormWrite("s", ["b"], 0.0)) == set()
    assert judge_messages([one, two], acknowledged_write("a"), StormWrite("s", ["b"], 0.0)) == {"refused_but_stored"}
    assert judge_messages([one, two], acknowledged_write("a"), StormWrite("s", ["b"], 0.0, open=True)) == set()
    assert judge_messages([one, ("s", 2, "a")], acknowledged_write("a")) == {"doubled"}
    assert judge_messages([one], StormWrite("s", ["a", "b"], 0.0, open=True)) == {"half_stored"}
    assert judge_messages([one, two], acknowledged_write("a")) == {"from_nowhere"}
    assert judge_messages([one, two], acknowledged_write("a", began=2.0, ended=3.0), acknowledged_write("b")) == {
        "out_of_order"
    }
    assert judge_messages([one, two], acknowledged_write("b", "a")) == {"out_of_order"}
    assert judge_messages([one, ("s", 3, "b")], acknowledged_write("a", "b")) == {"counters_wrong"}
    assert judge_messages([one, two], acknowledged_write("a", "b"), count=3) == {"counters_wrong"}


def test_the_judge_of_the_storm_finds_sessions_and_titles_that_were_refused() -> None:
    """Refused creations and titles have no place in a history, but they are writes."""
    rest = Rest([], [("s", "new", 0, ""), ("id", "", 0, "made"), ("other", "", 0, "twice"), ("third", "", 0, "twice")])
    round_ = Round(
        ["s"],
        created=[
            StormWrite("", ["made"], 0.0),
            acknowledged_write("twice"),
            acknowledged_write("gone"),
            StormWrite("", ["refused"], 0.0),
        ],
        titles=[StormWrite("s", ["new"], 0.0)],
    )
    assert round_.judge(rest) == Verdict(lost=1, doubled=1, refused_but_stored=2)
