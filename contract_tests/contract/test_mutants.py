"""The proof that the contract bites: every broken memory fails the clause that names its break, sound ones pass it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
from bound_stores import damage_reference, verdict
from distant import DistantMemory, Switch

from flux_memory import ConversationMemory, PostgresConversationMemory
from flux_memory.testkit import CLAUSES, MemoryContract, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.lifecycle import HANDLES
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.evidence.properties import MUTANT
from flux_memory.testkit.mutants import MUTANTS, broken

Record = Callable[[str, object], None]

# A broken memory may leave calls that nobody awaits, and handles that nobody closes.
pytestmark = pytest.mark.filterwarnings("ignore")


REFERENCE_CLAUSES = {"FM-LIF-011", "FM-ORD-002", "FM-LST-002"}
"""They need a clock or a damaged row, which only the reference model's store always has."""


def sample() -> list[str]:
    """Return the first break of each group of clauses that can be tried on any memory.

    The reference model proves every clause. The engines need to show only that their clauses are not vacuous: a clause
    is the same code for every memory, `test_mutants_engines` breaks the engines' own SQL, and `test_model` the model.
    """
    chosen: dict[str, str] = {}
    for name, mutant in MUTANTS.items():
        clause = CLAUSES[mutant.caught_by]
        # Some need a clock, a damaged row or an outage, which only the reference model's store always has.
        if (
            not mutant.reference_only
            and not clause.away
            and clause.id not in {"FM-LIF-011", "FM-ORD-002", "FM-LST-002"}
        ):
            chosen.setdefault(clause.group, name)
    return list(chosen.values())


def test_every_clause_catches_a_break() -> None:
    """A clause that no broken memory fails proves nothing."""
    ours = {each.id for each in CLAUSES.values() if each.home.startswith(MemoryContract.__module__)}
    assert {mutant.caught_by for mutant in MUTANTS.values()} == ours


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_reference_is_caught(name: str, tmp_path: Path, record_property: Record) -> None:
    """The clause named for a break fails on the reference model that has it, and holds on the one that has not."""
    record_property(MUTANT, f"{name} on the reference")
    path = tmp_path / "reference.json"
    shared = ReferenceStore(path if MUTANTS[name].caught_by.startswith(("FM-DUR", "FM-LIF", "FM-CAP-003")) else None)
    memory, switch = broken(name, ReferenceMemory), Switch()
    distant = broken(name, DistantMemory)
    store = StoreUnderTest(
        lambda: memory(shared),
        corrupt_message=damage_reference(path),
        outages=switch.outages(lambda: distant(shared, switch)),
    )
    assert verdict(MUTANTS[name].caught_by, store) is not None


@pytest.mark.parametrize("name", sample())
def test_a_broken_sqlite_is_caught(name: str, tmp_path: Path, record_property: Record) -> None:
    """The clause named for a break fails on the SQLite backend that has it."""
    record_property(MUTANT, f"{name} on SQLite")
    memory = broken(name, ConversationMemory)
    assert verdict(MUTANTS[name].caught_by, StoreUnderTest(lambda: memory(tmp_path / "chat.db"))) is not None


@pytest.mark.parametrize("name", sample())
def test_a_broken_postgres_is_caught(name: str, flux_postgres_clean_dsn: str, record_property: Record) -> None:
    """The clause named for a break fails on the PostgreSQL backend that has it."""
    record_property(MUTANT, f"{name} on PostgreSQL")
    memory = broken(name, PostgresConversationMemory)
    assert verdict(MUTANTS[name].caught_by, StoreUnderTest(lambda: memory(flux_postgres_clean_dsn))) is not None


def test_what_was_left_open_before_hides_nothing(tmp_path: Path) -> None:
    """Files of earlier clauses that are closed meanwhile are not counted against those that handles leave."""
    shared = ReferenceStore(tmp_path / "reference.json")
    memory = broken("LeavesASelectorOpen", ReferenceMemory)
    gc.disable()
    try:
        for _ in range(4 * HANDLES):
            left: list[object] = [Path(__file__).open()]  # noqa: SIM115 - that is the point
            left.append(left)
        found = verdict("FM-LIF-007", StoreUnderTest(lambda: memory(shared)))
    finally:
        gc.enable()
    assert isinstance(found, AssertionError), found


def test_pages_without_end_are_not_taken_for_a_call_that_hangs() -> None:
    """A history in which one pages back for ever is said to be wrong, at once, and not after a minute to hang."""
    shared = ReferenceStore()
    memory = broken("BeforeIsInclusive", ReferenceMemory)
    found = verdict("FM-ORD-007", StoreUnderTest(lambda: memory(shared)))
    assert isinstance(found, AssertionError), found
