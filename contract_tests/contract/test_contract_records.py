"""Runs the contract on a memory that is a dict and `flux_memory.records`: these names are all that an author needs."""

from __future__ import annotations

import ast
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType

import plain_memory
import plain_sessions
import pytest
from plain_memory import PlainMemory, Store

import flux_memory
from flux_memory import records
from flux_memory.testkit import ALL, Capability, MemoryContract


class TestRecords(MemoryContract):
    backend = "Records"
    # The store is a dict of this process, without a network, so it cannot be out of reach.
    capabilities = ALL & ~(
        Capability.DURABLE
        | Capability.SEVERAL_PROCESSES
        | Capability.OUTAGES
        | Capability.NETWORKED
        | Capability.FEEDBACK
    )

    @pytest.fixture
    def dicts(self) -> Store:
        return {}

    @pytest.fixture
    def memory_factory(self, dicts: Store) -> Callable[[], PlainMemory]:
        return lambda: PlainMemory(dicts)

    @pytest.fixture
    def corrupt_message(self, dicts: Store) -> Callable[[str, str], Awaitable[None]]:
        async def corrupt(session_id: str, message_id: str) -> None:
            row, created_at = dicts[session_id].messages[message_id]
            dicts[session_id].messages[message_id] = row._replace(metadata="{"), created_at

        return corrupt


@pytest.mark.parametrize("module", [plain_memory, plain_sessions])
def test_it_takes_only_public_names(module: ModuleType) -> None:
    """An author who imports the public names needs no others."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "flux" in (node.module or "")]
    assert "flux_memory.records" in {node.module for node in imported} <= {"flux_memory", "flux_memory.records"}
    for node in imported:
        assert {name.name for name in node.names} <= {*flux_memory.__all__, *records.__all__}
