"""Tests that break real things: servers, networks, poolers, disks, processes. `nox -s faults` runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_pooler import Pooler, started_pooler
from fault_report import Fault
from fault_work import Store


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    """Where a test records what it saw of its fault: `fault.judge(history, stored)` once a round."""
    return Fault(request.node)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store, empty at first, on the backend that `on_each` says."""
    journals = tmp_path / "journals"
    journals.mkdir()
    if request.param == "sqlite":
        return Store("sqlite", str(tmp_path / "chat.db"), journals)
    return Store("postgres", request.getfixturevalue("flux_postgres_clean_dsn"), journals)


@pytest.fixture
def pooler(flux_empty_database: str) -> Iterator[Pooler]:
    """A PgBouncer before the run's server."""
    with started_pooler(flux_empty_database) as started:
        yield started
