"""Runs the contract on the reference model: a clause that the simplest correct code fails is wrong."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from bound_stores import ReadRaw, make_reference_reader
from outage_stores import Switch, SwitchedMemory

from flux_memory.testkit import MemoryContract, Proxied, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.hooks import HoldLocks
from flux_memory.testkit.reference.networked import NetworkedMemory, ReferenceServer

LARGE: Final = frozenset({"FM-AMT-001", "FM-DEL-013", "FM-LIM-010", "FM-LIM-030", "FM-LIM-031"})
"""Clauses whose store is not in a file: each call writes the file anew, which takes minutes with many sessions."""


class TestReference(MemoryContract):
    backend = "Reference"

    @pytest.fixture
    def switch(self) -> Switch:
        return Switch()

    @pytest.fixture
    def memory_factory(self, tmp_path: Path, flux_clause: str, switch: Switch) -> Callable[[], ReferenceMemory]:
        store = ReferenceStore(None if flux_clause in LARGE else tmp_path / "reference.json")
        return lambda: SwitchedMemory(store, switch)

    @pytest.fixture
    def hold_locks(self, switch: Switch) -> HoldLocks:
        return switch.hold

    @pytest.fixture
    def proxied_memory_factory(self, tmp_path: Path) -> Iterator[Proxied]:
        with ReferenceServer(ReferenceStore(tmp_path / "reference.json")) as server:
            yield Proxied(server.address, NetworkedMemory)

    @pytest.fixture
    def corrupt_message(self, tmp_path: Path) -> Callable[[str, str], Awaitable[None]]:
        async def corrupt(session_id: str, message_id: str) -> None:
            path = tmp_path / "reference.json"
            sessions = json.loads(path.read_bytes())
            for message in sessions[session_id]["messages"]:
                if message["id"] == message_id:
                    message["metadata"] = "not an object"
            path.write_text(json.dumps(sessions))

        return corrupt

    @pytest.fixture
    def read_raw(self, tmp_path: Path) -> ReadRaw:
        return make_reference_reader(tmp_path / "reference.json")
