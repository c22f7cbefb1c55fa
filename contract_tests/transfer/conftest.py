"""Fixtures of the tests of transfers: an empty target, an idle file, and a file in random order."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from original_application import make_file_with_data
from transfer_memories import make_old, make_random_file, move

from flux_memory import PostgresConversationMemory
from flux_memory.transfer import Status
from flux_memory.transfer.source import snapshot


@pytest.fixture
def target(flux_empty_database: str) -> str:
    """The DSN of an empty database."""
    return flux_empty_database


@pytest.fixture(scope="session")
def is_long(pytestconfig: pytest.Config) -> bool:
    """Whether the run has `--long`, for all rounds of what happens at a random moment."""
    return bool(pytestconfig.option.long)


@pytest.fixture(scope="session")
def kills(is_long: bool) -> int:
    """Kills or interrupts of one test, at random moments."""
    return 20 if is_long else 3


@pytest.fixture(params=["DELETE", "WAL"])
def idle_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with 20 sessions and 5,000 messages whose application stopped some time ago."""
    path = tmp_path / "data" / "chat.db"
    path.parent.mkdir()
    make_random_file(path, sessions=20, messages=5000)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {request.param}")
    make_old(path)
    return path


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads files of any size with and without the helper process."""
    monkeypatch.setattr(snapshot, "_HELPER_MIN_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: request.param)


@pytest.fixture(scope="module")
def random_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with 40 sessions and 3,000 messages, in random order of ids and times."""
    path = tmp_path_factory.mktemp("random") / "chat.db"
    make_random_file(path, sessions=40, messages=3000)
    return path


@pytest.fixture
def deleted(path: Path, target: str) -> Path:
    """A file that was moved, and whose session `two` was deleted in PostgreSQL since."""
    make_file_with_data(path)
    assert move(path, target).status is Status.IDENTICAL

    async def delete() -> None:
        async with PostgresConversationMemory(target, min_size=1) as memory:
            await memory.delete_session("two")

    asyncio.run(delete())
    return path
