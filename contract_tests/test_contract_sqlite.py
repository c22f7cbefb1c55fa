"""The contract, kept by SQLite, and damage that only raw access to the file can do."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from flux_memory import ConversationMemory
from flux_memory.testkit import CLAUSES, MemoryContract
from flux_memory.testkit.contract.under_test import StoreUnderTest

DAMAGES: Final = {
    "bad JSON": "UPDATE messages SET metadata = '{' WHERE session_id = ? AND id = ?",
    "JSON of another kind": "UPDATE messages SET metadata = '[]' WHERE session_id = ? AND id = ?",
    "bad UTF-8": "UPDATE messages SET content = CAST(x'ff80' AS TEXT) WHERE session_id = ? AND id = ?",
    "a blob": "UPDATE messages SET content = x'00' WHERE session_id = ? AND id = ?",
    "no time": "UPDATE messages SET created_at = 'soon' WHERE session_id = ? AND id = ?",
    "a time out of range": "UPDATE messages SET created_at = '99999-01-01T00:00:00' WHERE session_id = ? AND id = ?",
}


def damage(path: Path, sql: str) -> Callable[[str, str], Awaitable[None]]:
    async def corrupt(session_id: str, message_id: str) -> None:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute(sql, (session_id, message_id)).rowcount == 1
            connection.commit()

    return corrupt


class TestSQLite(MemoryContract):
    backend = "SQLite"

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "chat.db"

    @pytest.fixture
    def memory_factory(self, path: Path) -> Callable[[], ConversationMemory]:
        return lambda: ConversationMemory(path)

    @pytest.fixture
    def corrupt_message(self, path: Path) -> Callable[[str, str], Awaitable[None]]:
        return damage(path, DAMAGES["bad JSON"])


@pytest.mark.asyncio
@pytest.mark.parametrize("sql", DAMAGES.values(), ids=DAMAGES)
async def test_every_kind_of_damage_stays_in_its_row(tmp_path: Path, sql: str) -> None:
    """One damaged row raises an error that names it, whatever is wrong with it."""
    path = tmp_path / "chat.db"
    store = StoreUnderTest(lambda: ConversationMemory(path), corrupt_message=damage(path, sql))
    checked = CLAUSES["FM-LIF-011"].test(MemoryContract(), store)
    assert checked is not None
    await checked
