"""Fixtures of the tests of settings, of the command line, and of the memory without `await`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flux_memory import ConversationMemory, PostgresConversationMemory, Settings
from flux_memory.sync import SyncMemory


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty working directory, and an environment without the library's variables; changes it for a test."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.upper().removeprefix("FLUX_MEMORY_").lower() in Settings.model_fields:
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture(params=["sqlite", "postgres"])
def open_sync_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], SyncMemory]:
    """Opens a handle on either backend."""
    if request.param == "sqlite":
        return lambda: SyncMemory(ConversationMemory(tmp_path / "chat.db"))
    dsn: str = request.getfixturevalue("flux_memory_postgres_dsn")
    return lambda: SyncMemory(PostgresConversationMemory(dsn))
