"""Fixtures of the tests of backups: filled stores of both engines, and empty ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from backup_stores import MakeStore, Store, fill


@pytest.fixture
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Return a function that makes an empty store of an engine."""
    made: list[Store] = []

    def make(engine: str) -> Store:
        number = len(made)
        if engine == "postgres":
            store = Store(None, request.getfixturevalue("flux_postgres_database")().dsn)
        else:
            (tmp_path / f"store-{number}").mkdir()
            store = Store(tmp_path / f"store-{number}" / "chat.db", None)
        made.append(store)
        return store

    return make


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> str:
    """The engine of a store."""
    return str(request.param)


@pytest.fixture
def store(engine: str, make_store: MakeStore) -> Store:
    """A filled store."""
    made = make_store(engine)
    made.use(fill)
    return made


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    """A directory for backups, which does not exist yet."""
    return tmp_path / "backups"
