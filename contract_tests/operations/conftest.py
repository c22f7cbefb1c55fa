"""Fixtures of the tests of the operator's commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from plain_stores import PlainStore


@pytest.fixture(params=["sqlite", "postgres"])
def plain_store(request: pytest.FixtureRequest, path: Path) -> PlainStore:
    """A store of either engine that has no tables yet, or no rows."""
    if request.param == "sqlite":
        return PlainStore(str(path))
    return PlainStore(request.getfixturevalue("flux_memory_postgres_dsn"))
