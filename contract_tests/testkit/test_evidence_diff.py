"""Tests `flux-memory contract diff`: the changes between two runs, and which of them are worse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flux_memory.cli.contract import contract
from flux_memory.testkit.evidence.diff import compare
from flux_memory.testkit.evidence.document import BackendEvidence, ClauseEvidence, Evidence, Outcome
from flux_memory.testkit.evidence.document import Result as Found

Backends = dict[str, Found | Outcome]


def make_evidence(**clauses: Backends) -> Evidence:
    """Return a run with these outcomes of clauses, such as ORD_001=..., by backend."""
    found = {
        name: {
            backend: each if isinstance(each, Found) else Found(each, reason="" if each == "held" else f"why {each}")
            for backend, each in backends.items()
        }
        for name, backends in clauses.items()
    }
    return Evidence(
        contract="1.0",
        pinned=None,
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        environment={},
        seeds={},
        mutants=None,
        backends=[BackendEvidence(name) for name in dict.fromkeys(name for each in found.values() for name in each)],
        clauses=[
            ClauseEvidence(f"FM-{name.replace('_', '-')}", "Order", "1.0", f"Promises {name}.", "Loses.", results)
            for name, results in found.items()
        ],
    )


@pytest.fixture
def diff(tmp_path: Path) -> Callable[..., Result]:
    """Run the command on two runs."""

    def run(old: Evidence, new: Evidence, *options: str) -> Result:
        for name, evidence in (("old", old), ("new", new)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "contract.json").write_text(evidence.to_json())
        return CliRunner().invoke(contract, ["diff", str(tmp_path / "old"), str(tmp_path / "new"), *options])

    return run


@pytest.mark.parametrize("after", ["failed", "advisory", "unverified", "not claimed", "thorough only", "not run"])
def test_a_clause_that_no_longer_holds_is_worse(diff: Callable[..., Result], after: Outcome) -> None:
    """The exit code is 1 if a clause that held is not seen to hold; missing evidence is not a pass."""
    result = diff(make_evidence(ORD_001={"A": "held"}), make_evidence(ORD_001={"A": after}))
    assert result.exit_code == 1, result.output
    title = "Newly failing" if after in {"failed", "advisory"} else "No longer seen to hold"
    assert f"{title}: 1\n  FM-ORD-001 on A: held -> {after}. Promises ORD_001.\n      why {after}\n" in result.output
    assert result.output.endswith("\n1 no longer hold\n")


def test_a_backend_that_is_gone_is_worse(diff: Callable[..., Result]) -> None:
    """A backend that is no longer tested is not seen to hold any clause."""
    result = diff(make_evidence(ORD_001={"A": "held", "B": "held"}), make_evidence(ORD_001={"A": "held"}))
    assert result.exit_code == 1
    assert "No longer seen to hold: 1\n  B, in one of the two reports only: 1\n" in result.output


def test_a_backend_that_is_new_or_never_held_is_one_line(diff: Callable[..., Result]) -> None:
    """A new backend, or a removed one that never held a clause, takes one line and does not fail the comparison."""
    clauses = ("ORD_001", "ORD_002")
    before = make_evidence(**{name: {"A": "held", "Gone": "failed"} for name in clauses})
    result = diff(before, make_evidence(**{name: {"A": "held", "New": "held"} for name in clauses}))
    assert result.exit_code == 0
    assert "Added: 2\n  New, in one of the two reports only: 2\n" in result.output
    assert "Removed: 2\n  Gone, in one of the two reports only: 2\n" in result.output


OTHER: dict[str, Backends] = {"ORD_009": {"A": "held"}}


@pytest.mark.parametrize(
    ("before", "after", "title"),
    [
        ({"ORD_001": {"A": "failed"}}, {"ORD_001": {"A": "held"}}, "Fixed: 1"),
        ({"ORD_001": {"A": "unverified"}}, {"ORD_001": {"A": "held"}}, "Fixed: 1"),
        ({"ORD_001": {"A": "failed"}}, {"ORD_001": {"A": "not run"}}, "Changed, and not held before either: 1"),
        (OTHER, {**OTHER, "ORD_001": {"A": "failed"}}, "Added: 1"),
        ({**OTHER, "ORD_001": {"A": "held"}}, OTHER, "Removed: 1"),
        ({"ORD_001": {"A": Found("held", 0.1)}}, {"ORD_001": {"A": Found("held", 0.5)}}, "Slower: 1"),
    ],
)
def test_changes_that_are_not_worse_are_listed(
    diff: Callable[..., Result], before: dict[str, Backends], after: dict[str, Backends], title: str
) -> None:
    """Clauses that were fixed, added, removed or became slower are listed, with exit code 0."""
    result = diff(make_evidence(**before), make_evidence(**after))
    assert result.exit_code == 0, result.output
    assert f"\n{title}\n  FM-ORD-001 on " in result.output
    assert result.output.endswith("\nall that held still holds\n")


@pytest.mark.parametrize(("before", "after"), [(0.001, 0.2), (1.0, 1.9), (2.0, 1.0), (0.3, 0.3)])
def test_noise_is_not_called_slower(before: float, after: float) -> None:
    """A clause is slower if it takes twice as long and noticeably so, not if a few milliseconds vary."""
    assert not compare(
        make_evidence(ORD_001={"A": Found("held", before)}), make_evidence(ORD_001={"A": Found("held", after)})
    ).slower


def test_nothing_changed(diff: Callable[..., Result]) -> None:
    """Two runs with the same outcomes say so, and list nothing."""
    same = make_evidence(ORD_001={"A": "held"}, ORD_002={"A": "failed"}, ORD_003={"A": "not claimed"})
    result = diff(same, same)
    assert result.exit_code == 0
    assert len(result.output.split("\n\n")) == 2


REASONS = {
    "short": "why",
    "of several lines": "first line\n  second    line\n" * 3,
    "cut": "some words of a very long reason " * 20,
    "in one word": "x" * 100,
    "a path": "see /a/very-long-path/with-hyphens/and_underscores/that-is-not-broken/at-any-of-them/in-the-output.txt",
}


@pytest.mark.parametrize("reason", REASONS.values(), ids=REASONS)
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_break_between_words(
    diff: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, columns: int, reason: str
) -> None:
    """The report fits the terminal, and no word, id or path is broken: each can be searched for and copied."""
    monkeypatch.setenv("COLUMNS", str(columns))
    name = "a.backend:with_a_long_name"
    before = make_evidence(ORD_001={name: "held"})
    after = make_evidence(ORD_001={name: Found("failed", reason=reason)})
    promise = "`message_count` is correct after adds, batches, retries and rejections: byte-for-byte, NFC or NFD."
    for evidence in (before, after):
        evidence.clauses[0] = replace(evidence.clauses[0], promise=promise)
    output = diff(before, after).output
    for line in output.splitlines():
        assert len(line) < columns or len(line.split()) == 1, line
    words = f"FM-ORD-001 on {name}: held -> failed. {promise} {reason}".split()
    shown = set(output.split())
    missing = [word for word in words if word not in shown]
    assert missing == []


def test_json(diff: Callable[..., Result]) -> None:
    """The JSON has every kind of change, and whether it is worse."""
    result = diff(make_evidence(ORD_001={"A": "held"}), make_evidence(ORD_001={"A": "failed"}), "--json")
    assert result.exit_code == 1
    data = json.loads(result.output)
    assert data["worse"] is True
    assert [each["clause"] for each in data["failing"]] == ["FM-ORD-001"]
    assert {"lost", "fixed", "other", "added", "removed", "slower"} <= data.keys()


def test_a_directory_without_a_report_says_what_to_give(tmp_path: Path) -> None:
    """The most common mistake is to name the parent of the report's directory."""
    result = CliRunner().invoke(contract, ["diff", str(tmp_path), str(tmp_path)])
    assert result.exit_code == 2
    assert "No such file or directory; give a directory that pytest --flux-report has written" in result.output


def test_a_file_that_is_not_a_report_is_named(tmp_path: Path) -> None:
    """The wrong file, or a directory without a report, gives exit code 2 and an error with its name."""
    (tmp_path / "wrong.json").write_text("{}")
    for path in (tmp_path / "wrong.json", tmp_path):
        result = CliRunner().invoke(contract, ["diff", str(path), str(path)])
        assert result.exit_code == 2
        assert str(path) in result.output


def test_reports_are_compared_without_the_testkit_installed() -> None:
    """The command needs nothing from the extra `testkit`."""
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "from flux_memory.cli.contract import contract\n"
        "contract(['diff', '--help'], standalone_mode=False)\n"
        "import flux_memory.testkit.evidence.diff"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
