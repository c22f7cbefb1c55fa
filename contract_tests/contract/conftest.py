"""Chooses the clauses that the memory without `await` runs: a sample of groups, and all of them with `--long`."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

import pytest

GROUPS: Final = frozenset({"ORD", "LST", "SES", "MSG", "BAT", "LIF", "UPD", "REV", "CRE", "POP", "FRK", "GET", "DEL"})
"""Groups that make every call; the others look at the memory behind the calls."""
OF_A_GROUP: Final = 2
"""Clauses of a group. What runs behind the calls is tested without the threads."""
CLAUSE: Final = re.compile(r"\[FM-([A-Z]+)-\d+\]$")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is not in the sample: the first clauses of each group for each engine."""
    if config.getoption("long"):
        return
    chosen: Counter[tuple[object, str]] = Counter()
    left_out: set[pytest.Item] = set()
    for item in items:
        found = CLAUSE.search(item.name) if item.path.name == "test_contract_sync.py" else None
        if found is None:
            continue
        key = (item.parent, found[1])
        chosen[key] += 1
        if found[1] not in GROUPS or chosen[key] > OF_A_GROUP:
            left_out.add(item)
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
