"""Runs the contract on the reference model: a clause that the simplest correct code fails is wrong."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from bound_stores import ReadRaw, make_reference_reader
from outage_stores import Switch, SwitchedMemory

from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.outages import Outage


class TestReference(MemoryContract):
    backend = "Reference"

    @pytest.fixture
    def memory_factory(self, tmp_path: Path) -> Callable[[], ReferenceMemory]:
        store = ReferenceStore(tmp_path / "reference.json")
        return lambda: ReferenceMemory(store)

    @pytest.fixture
    def outages(self, tmp_path: Path) -> Sequence[Outage]:
        store, switch = ReferenceStore(tmp_path / "reference.json"), Switch()
        return switch.outages(lambda: SwitchedMemory(store, switch))

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
