"""Tests that break real things: servers, networks, poolers, disks, processes. `nox -s faults` runs them."""

from __future__ import annotations

import pytest
from fault_report import Fault


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    """Where a test records what it saw of its fault: `fault.judge(history, stored)` once a round."""
    return Fault(request.node)
