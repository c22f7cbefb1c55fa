"""Chooses the clauses that the memory without `await` runs: a sample of groups, and all of them with `--long`."""

from __future__ import annotations

import re
from typing import Final

import pytest

SAMPLE: Final = re.compile(r"\[FM-(ORD|LST|SES|MSG|BAT|LIF|UPD|REV|CRE|POP|FRK|GET|DEL)-\d+\]$")
"""Groups that make every call, in seconds; the others take minutes, and look at the memory behind the calls."""
CLAUSE: Final = re.compile(r"\[FM-\w+-\d+\]$")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is not in the sample."""
    if config.getoption("long"):
        return
    sync = [item for item in items if item.path.name == "test_contract_sync.py" and CLAUSE.search(item.name)]
    left_out = {item for item in sync if not SAMPLE.search(item.name)}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
