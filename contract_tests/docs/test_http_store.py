"""Tests the example of a store on a server, and that its page shows the code of the example."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from flux_memory.testkit import CLAUSES, Capability

PROJECT: Final = Path(__file__).parents[2]
EXAMPLE: Final = PROJECT / "examples/http-store"
PAGE: Final = PROJECT / "docs/a-store-on-a-server.md"
RUN_SECONDS: Final = 900
"""Seconds for a run; an idle machine needs a tenth of that."""
VERY_MANY: Final = "FM-AMT-001"
"""The clause on 10,001 sessions."""


@pytest.mark.parametrize(
    "chosen",
    [
        ("-k", f"not {VERY_MANY}"),
        # The fast profile leaves it out on a machine that is busy with other work.
        ("-k", VERY_MANY, "--flux-profile=thorough"),
    ],
    ids=["the others", VERY_MANY],
)
def test_the_example_holds_the_contract(chosen: tuple[str, ...]) -> None:
    """Every clause holds over HTTP, none is unverified: outages, broken networks and several processes included.

    The example has no feedback.
    """
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--flux-postgres=off"]
    done = subprocess.run(
        [*command, *chosen], cwd=EXAMPLE, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    assert "unverified" not in done.stdout, done.stdout[-6_000:]
    unclaimed = sum(Capability.FEEDBACK in each.needs for each in CLAUSES.values())
    assert re.findall(r"^not claimed +([0-9]+)$", done.stdout, re.MULTILINE) in ([], [str(unclaimed)])


def test_the_page_shows_the_code_of_the_example() -> None:
    """A reader finds each block of the page in the example, word for word."""
    code = "".join(path.read_text() for path in sorted(EXAMPLE.glob("*.py")))
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    for block in blocks:
        assert block in code, f"{PAGE.name} shows code that the example does not have:\n{block}"
