"""Fixtures of the tests of the operator's commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from plain_stores import PlainStore

from flux_memory import ConversationMemory, PostgresConversationMemory


@pytest.fixture(params=["sqlite", "postgres"])
def plain_store(request: pytest.FixtureRequest, path: Path) -> PlainStore:
    """A store of either engine that has no tables yet, or no rows."""
    if request.param == "sqlite":
        return PlainStore(str(path))
    return PlainStore(request.getfixturevalue("flux_memory_postgres_dsn"))


@pytest.fixture(params=["sqlite", "postgres"])
def open_memory(
    request: pytest.FixtureRequest, path: Path
) -> Callable[[], ConversationMemory | PostgresConversationMemory]:
    """Opens a handle of either engine."""
    if request.param == "sqlite":
        return lambda: ConversationMemory(path)
    dsn: str = request.getfixturevalue("flux_memory_postgres_dsn")
    return lambda: PostgresConversationMemory(dsn)
