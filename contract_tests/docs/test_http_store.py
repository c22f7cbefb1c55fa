"""Tests the example of a store on a server, and that its page shows the code of the example."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2]
EXAMPLE: Final = PROJECT / "examples/http-store"
PAGE: Final = PROJECT / "docs/a-store-on-a-server.md"
RUN_SECONDS: Final = 600
"""Seconds for a run of all clauses; an idle machine needs a tenth of that."""


def test_the_example_holds_the_contract() -> None:
    """Every clause holds over HTTP, none is unverified: outages, broken networks and several processes included."""
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--flux-postgres=off"]
    done = subprocess.run(
        [*command, "--flux-strict"], cwd=EXAMPLE, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    assert "unverified" not in done.stdout
    assert "not claimed" not in done.stdout


def test_the_page_shows_the_code_of_the_example() -> None:
    """A reader finds each block of the page in the example, word for word."""
    code = "".join(path.read_text() for path in sorted(EXAMPLE.glob("*.py")))
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    for block in blocks:
        assert block in code, f"{PAGE.name} shows code that the example does not have:\n{block}"
