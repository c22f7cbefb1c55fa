"""Runs the contract on the reference model: a clause that the simplest correct code fails is wrong."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from bound_stores import ReadRaw, make_reference_reader

from flux_memory.testkit import MemoryContract, Proxied, ReferenceMemory, ReferenceStore
from flux_memory.testkit.reference.networked import NetworkedMemory, ReferenceServer


class TestReference(MemoryContract):
    backend = "Reference"

    @pytest.fixture
    def memory_factory(self, tmp_path: Path, flux_clause: str) -> Callable[[], ReferenceMemory]:
        # The file is written anew by each call, so it would take hours to hold thousands of sessions.
        large = flux_clause in {"FM-LIM-010", "FM-AMT-001"}
        store = ReferenceStore(None if large else tmp_path / "reference.json")
        return lambda: ReferenceMemory(store)

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
