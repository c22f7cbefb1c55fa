"""Tests that distance is not a fault: a correct store that is far away, or has a coarse clock, keeps the contract."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest
from bound_stores import run_clause
from distant_stores import (
    Distance,
    DistantMemory,
    choose,
    is_small,
    is_sociable,
    make_distant_store,
    run_at_the_same_time,
)

from flux_memory.testkit import ALL, ReferenceStore
from flux_memory.testkit.contract.model.exploration import Profile, explore
from flux_memory.testkit.contract.preflight import Preflight

FAR: Final = Distance(0.15, clock_seconds=1.0)
NEARER: Final = Distance(0.03, clock_seconds=1.0)
COLD: Final = Distance(0.05, first_seconds=3.0)

OPENING: Final = ("FM-CON-001", "FM-CON-002", "FM-LIF-001", "FM-LIF-005", "FM-CAN-011", "FM-DLN-004", "FM-DLN-005")
"""Clauses on the first calls of a handle, and on those after an outage."""


def test_a_distant_store_keeps_the_contract(tmp_path: Path) -> None:
    """Round trips of 150 ms, requests that arrive late and in any order, and times to the second break no promise."""
    chosen = choose(lambda each: is_small(each) and is_sociable(each))
    assert not run_at_the_same_time(chosen, tmp_path, FAR)


@pytest.mark.parametrize(
    "clause_id", choose(lambda each: is_small(each) and not is_sociable(each) and each.id != "FM-MOD-001")
)
def test_a_distant_store_keeps_the_clauses_that_need_a_process(clause_id: str, tmp_path: Path) -> None:
    """The same for clauses that cannot share a process with others, at a smaller distance."""
    assert run_clause(clause_id, make_distant_store(tmp_path / "reference.json", NEARER)) is None


def test_a_slow_start_is_not_a_fault(tmp_path: Path) -> None:
    """The first call on a handle may take seconds, as with a database that has to be woken up."""
    assert not run_at_the_same_time(OPENING, tmp_path, COLD)


def test_a_slow_start_is_not_a_fault_of_the_binding(tmp_path: Path) -> None:
    """The check before the first clause waits for a service that is far away and starts at the first call."""
    store = make_distant_store(tmp_path / "reference.json", COLD)
    asyncio.run(Preflight("TestDistant").check_store(store.factory, claimed=ALL))


def test_the_model_explores_a_distant_store_within_its_time() -> None:
    """On a store with slow calls the model makes fewer of them; cancelled ones may arrive later."""
    shared = ReferenceStore()
    assert explore(lambda: DistantMemory(shared, FAR), Profile(examples=1_000, steps=20, most_seconds=5.0)) is None
