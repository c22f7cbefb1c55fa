"""Runs the contract on a memory that shares no code with the library; a clause that fails here promises too much."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import independent
import pytest
from bound_stores import Corrupt, ReadRaw, make_sqlite_corrupter, make_sqlite_reader
from independent import IndependentMemory

import flux_memory
from flux_memory.testkit import ALL, Capability, MemoryContract


class TestIndependent(MemoryContract):
    backend = "Independent"
    # It supports no deadlines, because it uses nothing of the library but its errors.
    capabilities = ALL & ~(Capability.OUTAGES | Capability.NETWORKED)

    @pytest.fixture
    def memory_factory(self, tmp_path: Path) -> Callable[[], IndependentMemory]:
        return lambda: IndependentMemory(tmp_path / "store.db")

    @pytest.fixture
    def corrupt_message(self, tmp_path: Path) -> Corrupt:
        return make_sqlite_corrupter(
            tmp_path / "store.db", "UPDATE messages SET metadata = '{' WHERE session = ? AND id = ?"
        )

    @pytest.fixture
    def read_raw(self, tmp_path: Path) -> ReadRaw:
        return make_sqlite_reader(tmp_path / "store.db", session="session")


@pytest.mark.parametrize("module", ["independent", "independent_feedback", "independent_rows", "independent_values"])
def test_it_takes_nothing_of_the_library_but_its_errors(module: str) -> None:
    """The independent memory proves the clauses only if it is written without the library."""
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
