"""Tests that the contract finds bugs: each mutant fails the clause named for its bug, and the original passes it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bound_stores import (
    make_postgres_clock,
    make_reference_corrupter,
    make_reference_reader,
    run_clause,
    run_over_network,
)
from outage_stores import Switch, SwitchedMemory

from flux_memory import ConversationMemory, PostgresConversationMemory
from flux_memory.testkit import CLAUSES, MemoryContract, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.lifecycle import HANDLES
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.evidence.properties import MUTANT
from flux_memory.testkit.mutants import MUTANTS, broken
from flux_memory.testkit.mutants.network import Chatty
from flux_memory.testkit.reference.networked import NetworkedMemory

Record = Callable[[str, object], None]

# A broken memory may leave handles open and calls without an await.
pytestmark = pytest.mark.filterwarnings("ignore")

REFERENCE_CLAUSES = {"FM-LIF-011", "FM-LIF-013", "FM-ORD-002", "FM-LST-002", "FM-MOD-001", "FM-AMT-001"}
"""Clauses that need a clock or a damaged row, which only the reference model's store always supports, or minutes.

FM-AMT-001 creates 10,001 sessions, which is proven on the reference model.
"""


CLIENTS = [name for name, mutant in MUTANTS.items() if CLAUSES[mutant.caught_by].group == "Network"]
"""Mutants of the networked reference model."""

LOCKED = "FM-CON-050"
"""The clause whose handles meet the locks of other clients."""

FILED = ("FM-DUR", "FM-LIF", "FM-CAP-003", "FM-TXT-03")
"""Beginnings of the ids of clauses that need a store in a file."""

MODEL_SEEDS = (None, 1, 2, 3)
"""Seeds of the model, its own first: Hypothesis's examples depend on the loaded modules, and one seed in ten misses."""


def choose_sample() -> list[str]:
    """Return the first mutant of each group of clauses that runs on any memory.

    The reference model proves every clause, and a clause is the same code for every memory, so the engines need a
    sample only. `test_mutants_engines` breaks the engines' own SQL.
    """
    chosen: dict[str, str] = {}
    for name, mutant in MUTANTS.items():
        clause = CLAUSES[mutant.caught_by]
        if not (mutant.reference_only or clause.away or clause.id in REFERENCE_CLAUSES):
            chosen.setdefault(clause.group, name)
    return list(chosen.values())


def test_every_clause_catches_a_break() -> None:
    """A clause that no mutant fails proves nothing."""
    ours = {each.id for each in CLAUSES.values() if each.home.startswith(MemoryContract.__module__)}
    assert {mutant.caught_by for mutant in MUTANTS.values()} == ours


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in CLIENTS])
def test_a_broken_reference_is_caught(name: str, tmp_path: Path, record_property: Record) -> None:
    """The named clause fails on the mutant of the reference model, and holds on the model itself."""
    record_property(MUTANT, f"{name} on the reference")
    clause_id = MUTANTS[name].caught_by
    memory, distant = broken(name, ReferenceMemory), broken(name, SwitchedMemory)

    def make_store(seed: int | None) -> StoreUnderTest:
        path, switch = tmp_path / f"reference {seed}.json", Switch()
        shared = ReferenceStore(path if clause_id.startswith(FILED) else None)
        return StoreUnderTest(
            (lambda: distant(shared, switch)) if clause_id == LOCKED else (lambda: memory(shared)),
            corrupt_message=make_reference_corrupter(path),
            read_raw=make_reference_reader(path),
            hold_locks=switch.hold,
            outages=switch.outages(lambda: distant(shared, switch)),
            seed=seed,
        )

    seeds = MODEL_SEEDS if clause_id == "FM-MOD-001" else (None,)
    assert any(run_clause(clause_id, make_store(seed)) is not None for seed in seeds)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_broken_client_is_caught(name: str, record_property: Record) -> None:
    """The named clause fails on the mutant of the networked reference model."""
    record_property(MUTANT, f"{name} on the networked reference")
    assert run_over_network(MUTANTS[name].caught_by, broken(name, NetworkedMemory)) is not None


@pytest.mark.parametrize("clause_id", sorted({MUTANTS[name].caught_by for name in CLIENTS}))
def test_a_client_may_make_a_call_in_several_exchanges(clause_id: str) -> None:
    """The clauses on a network hold for a transaction of several exchanges, as for a call of one."""
    chatty: Any = type("ChattyMemory", (Chatty, NetworkedMemory), {})
    assert run_over_network(clause_id, chatty) is None


@pytest.mark.parametrize("name", choose_sample())
def test_a_broken_sqlite_is_caught(name: str, tmp_path: Path, record_property: Record) -> None:
    """The named clause fails on the mutant of the SQLite backend."""
    record_property(MUTANT, f"{name} on SQLite")
    memory = broken(name, ConversationMemory)
    assert run_clause(MUTANTS[name].caught_by, StoreUnderTest(lambda: memory(tmp_path / "chat.db"))) is not None


@pytest.mark.parametrize("name", choose_sample())
def test_a_broken_postgres_is_caught(name: str, flux_memory_postgres_dsn: str, record_property: Record) -> None:
    """The named clause fails on the mutant of the PostgreSQL backend."""
    record_property(MUTANT, f"{name} on PostgreSQL")
    memory = broken(name, PostgresConversationMemory)
    store = StoreUnderTest(
        lambda: memory(flux_memory_postgres_dsn), clock_at=make_postgres_clock(flux_memory_postgres_dsn)
    )
    assert run_clause(MUTANTS[name].caught_by, store) is not None


def test_files_of_earlier_clauses_hide_no_leak(tmp_path: Path) -> None:
    """Files of earlier clauses that close meanwhile do not offset a leak of this clause's handles."""
    shared = ReferenceStore(tmp_path / "reference.json")
    memory = broken("LeavesASelectorOpen", ReferenceMemory)
    gc.disable()
    try:
        for _ in range(4 * HANDLES):
            left: list[object] = [Path(__file__).open()]  # noqa: SIM115 - the leak under test
            left.append(left)
        found = run_clause("FM-LIF-007", StoreUnderTest(lambda: memory(shared)))
    finally:
        gc.enable()
    assert isinstance(found, AssertionError), found


def test_endless_pages_are_not_reported_as_a_hanging_call() -> None:
    """A history that pages back forever fails at once, not after a minute as a hanging call."""
    shared = ReferenceStore()
    memory = broken("BeforeIsInclusive", ReferenceMemory)
    found = run_clause("FM-ORD-007", StoreUnderTest(lambda: memory(shared)))
    assert isinstance(found, AssertionError), found
