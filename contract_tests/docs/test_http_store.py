"""Tests the example of a store on a server, and that its page shows the code of the example."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from flux_memory.testkit import CLAUSES, Capability, MemoryContract

PROJECT: Final = Path(__file__).parents[2]
EXAMPLE: Final = PROJECT / "examples/http-store"
PAGE: Final = PROJECT / "docs/a-store-on-a-server.md"
RUN_SECONDS: Final = 900
"""Seconds for a run; an idle machine needs a tenth of that."""
ALL_OF: Final = frozenset({"Network", "Deadlines", "Durability, processes", "Claims"})
"""Groups on what a server adds to a store: each of their clauses runs."""
OF_OTHERS: Final = 2
"""Clauses of each other group, and of all with `--long`: the operations are SQL of a few lines behind one route."""


def choose_clauses() -> str:
    """Return pytest's expression for the clauses of a usual run."""
    chosen: list[str] = []
    seen: Counter[str] = Counter()
    for clause in CLAUSES.values():
        is_ours = clause.home.startswith(MemoryContract.__module__)
        if clause.thorough or not is_ours or Capability.FEEDBACK in clause.needs:
            continue
        seen[clause.group] += 1
        if clause.group in ALL_OF or seen[clause.group] <= OF_OTHERS:
            chosen.append(clause.id)
    return " or ".join(chosen)


def run_contract(*chosen: str) -> str:
    """Run the example's own test, and return its output; fails if a clause does not hold."""
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--flux-postgres=off"]
    done = subprocess.run(
        [*command, *chosen], cwd=EXAMPLE, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    return done.stdout


def test_the_example_holds_the_contract(pytestconfig: pytest.Config) -> None:
    """The clauses hold over HTTP, none is unverified: outages, broken networks and several processes included.

    The example has no feedback.
    """
    runs = [("-k", choose_clauses())]
    if pytestconfig.option.long:
        runs = [(), ("-k", "FM-AMT", "--flux-profile=thorough")]
    unclaimed = sum(Capability.FEEDBACK in each.needs for each in CLAUSES.values())
    for chosen in runs:
        printed = run_contract(*chosen)
        assert "unverified" not in printed, printed[-6_000:]
        assert re.findall(r"^not claimed +([0-9]+)$", printed, re.MULTILINE) in ([], [str(unclaimed)])


def test_the_page_shows_the_code_of_the_example() -> None:
    """A reader finds each block of the page in the example, word for word."""
    code = "".join(path.read_text() for path in sorted(EXAMPLE.glob("*.py")))
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    for block in blocks:
        assert block in code, f"{PAGE.name} shows code that the example does not have:\n{block}"
