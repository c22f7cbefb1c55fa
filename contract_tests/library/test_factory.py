"""Tests `create_memory()`: the settings choose the backend, and nothing is opened before first use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from flux_memory import ConversationMemory, PostgresConversationMemory, Settings, create_memory
from flux_memory.errors import InvalidInputError

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.asyncio
async def test_the_default_is_sqlite_in_the_settings_file(tmp_path: Path) -> None:
    """Without any configuration there is a memory; its file appears at first use, not before."""
    async with create_memory() as memory:
        assert isinstance(memory, ConversationMemory)
        assert memory.db_path == "./data/sqlite.db"
        assert os.listdir(tmp_path) == []  # noqa: PTH208 - no Path in async code
        await memory.create_session()
    assert (tmp_path / "data" / "sqlite.db").exists()


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment switches backends without a change in code."""
    monkeypatch.setenv("DATABASE_BACKEND", "postgres")
    monkeypatch.setenv("POSTGRES_DSN", "postgresql://u:secret@h/d")
    memory = create_memory()
    assert isinstance(memory, PostgresConversationMemory)
    assert repr(memory) == "PostgresConversationMemory('postgresql://u:***@h/d')"


def test_given_settings_are_used() -> None:
    """Settings that the application passes win over the environment."""
    memory = create_memory(Settings(database_backend="sqlite", database_url="sqlite:///own.db"))
    assert repr(memory) == "ConversationMemory('own.db')"
    dsn = SecretStr("postgresql://u:secret@h/d")
    assert isinstance(
        create_memory(Settings(database_backend="postgres", postgres_dsn=dsn)), PostgresConversationMemory
    )


def test_wrong_settings_are_refused_at_once() -> None:
    """A mistake shows when the memory is created, not at first use."""
    with pytest.raises(InvalidInputError, match="POSTGRES_DSN"):
        create_memory(Settings(database_backend="postgres"))
    with pytest.raises(InvalidInputError, match="remove '\\+asyncpg'"):
        create_memory(Settings(database_backend="postgres", postgres_dsn=SecretStr("postgresql+asyncpg://h/d")))
    with pytest.raises(InvalidInputError, match="DATABASE_URL"):
        create_memory(Settings(database_url="mysql://h/d"))


def test_other_objects_as_settings_are_refused() -> None:
    """A caller who passes a DSN or a path as settings learns where those go."""
    with pytest.raises(InvalidInputError, match="not str; a path is for ConversationMemory") as caught:
        create_memory("postgresql://u:secret@h/d")  # type: ignore[arg-type]
    assert "secret" not in str(caught.traceback[-1].frame.f_locals)


def test_the_classes_read_the_settings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class without an argument takes its own setting, even if the settings choose the other backend."""
    monkeypatch.setenv("POSTGRES_DSN", "postgresql://h/d")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///own.db")
    monkeypatch.setenv("POSTGRES_REPLICA_DSN", "nonsense")
    assert ConversationMemory().db_path == "own.db"
    for makes in (PostgresConversationMemory, lambda: create_memory(Settings(database_backend="postgres"))):
        with pytest.raises(InvalidInputError, match="replica_dsn: the DSN is not a URL"):
            makes()
    # The setting belongs to the setting POSTGRES_DSN.
    assert (
        repr(PostgresConversationMemory("postgresql://other/d")) == "PostgresConversationMemory('postgresql://other/d')"
    )
    monkeypatch.setenv("POSTGRES_REPLICA_DSN", "postgresql://one,two/d")
    assert repr(PostgresConversationMemory()) == "PostgresConversationMemory('postgresql://h/d')"
