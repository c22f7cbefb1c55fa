"""The contract, kept by a memory that shares no code with the library: a clause it fails promises too much."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import independent
import pytest
from bound_stores import Corrupt, damage_sqlite
from independent import IndependentMemory

import flux_memory
from flux_memory.testkit import ALL, Capability, MemoryContract


class TestIndependent(MemoryContract):
    backend = "Independent"
    # It knows no deadlines: it takes nothing of the library but its errors.
    capabilities = ALL & ~Capability.OUTAGES

    @pytest.fixture
    def memory_factory(self, tmp_path: Path) -> Callable[[], IndependentMemory]:
        return lambda: IndependentMemory(tmp_path / "store.db")

    @pytest.fixture
    def corrupt_message(self, tmp_path: Path) -> Corrupt:
        return damage_sqlite(tmp_path / "store.db", "UPDATE messages SET metadata = '{' WHERE session = ? AND id = ?")


@pytest.mark.parametrize("module", ["independent", "independent_values"])
def test_it_takes_nothing_of_the_library_but_its_errors(module: str) -> None:
    """What it proves of the clauses rests on its being written without the library."""
    tree = ast.parse(Path(independent.__file__).with_name(f"{module}.py").read_text())
    imported = [
        (node.module or "", name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    ]
    ours = [(place, name) for place, name in imported if place.startswith("flux_memory")]
    assert ours
    for place, name in ours:
        assert place == "flux_memory"
        assert issubclass(getattr(flux_memory, name), Exception)
