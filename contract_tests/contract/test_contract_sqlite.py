"""Runs the contract on SQLite, and tests damage that only raw access to the file can cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest
from bound_stores import Corrupt, make_sqlite_corrupter, run_async_clause
from outage_stores import make_lock_outages

from flux_memory import ConversationMemory
from flux_memory.testkit import ALL, Capability, MemoryContract
from flux_memory.testkit.contract.outages import Outage
from flux_memory.testkit.contract.under_test import StoreUnderTest, gather_outcomes

DAMAGES: Final = {
    "bad JSON": "UPDATE messages SET metadata = '{' WHERE session_id = ? AND id = ?",
    "JSON of another kind": "UPDATE messages SET metadata = '[]' WHERE session_id = ? AND id = ?",
    "bad UTF-8 in JSON": "UPDATE messages SET metadata = CAST(x'7bff7d' AS TEXT) WHERE session_id = ? AND id = ?",
    "bad UTF-8 in a role": "UPDATE messages SET role = CAST(x'c3' AS TEXT) WHERE session_id = ? AND id = ?",
    "bad UTF-8": "UPDATE messages SET content = CAST(x'ff80' AS TEXT) WHERE session_id = ? AND id = ?",
    "a blob": "UPDATE messages SET content = x'00' WHERE session_id = ? AND id = ?",
    "no time": "UPDATE messages SET created_at = 'soon' WHERE session_id = ? AND id = ?",
    "a time out of range": "UPDATE messages SET created_at = '99999-01-01T00:00:00' WHERE session_id = ? AND id = ?",
}


class TestSQLite(MemoryContract):
    backend = "SQLite"
    backend_version = f"flux-memory {version('flux-memory')}"
    capabilities = ALL & ~Capability.NETWORKED

    @pytest.fixture
    def memory_factory(self, path: Path) -> Callable[[], ConversationMemory]:
        return lambda: ConversationMemory(path)

    @pytest.fixture
    def outages(self, path: Path) -> Sequence[Outage]:
        return make_lock_outages(path)

    @pytest.fixture
    def corrupt_message(self, path: Path) -> Corrupt:
        return make_sqlite_corrupter(path, DAMAGES["bad JSON"])


@pytest.mark.asyncio
@pytest.mark.parametrize("sql", DAMAGES.values(), ids=DAMAGES)
async def test_every_kind_of_damage_stays_in_its_row(tmp_path: Path, sql: str) -> None:
    """A damaged row of any kind raises an error that names it, and the others stay readable."""
    path = tmp_path / "chat.db"
    store = StoreUnderTest(lambda: ConversationMemory(path), corrupt_message=make_sqlite_corrupter(path, sql))
    await run_async_clause("FM-LIF-011", store)


@pytest.mark.asyncio
async def test_first_use_races_on_many_files(tmp_path: Path) -> None:
    """Handles that race to create a file always wait for its lock."""
    for number in range(60):
        handles = [ConversationMemory(tmp_path / f"{number}.db") for _ in range(8)]
        outcomes = await gather_outcomes(*(handle.create_session() for handle in handles))
        for handle in handles:
            await handle.close()
        assert all(isinstance(outcome, str) for outcome in outcomes), outcomes
