"""Runs the contract at a distance: on PostgreSQL behind a slow network, and on the reference model at any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from bound_stores import make_postgres_clock, make_postgres_corrupter, make_postgres_reader, run_clause
from distant_stores import Distance, choose, is_small, is_sociable, make_distant_store, run_at_the_same_time
from outage_stores import make_postgres_locks, make_postgres_outages

from flux_memory import PostgresConversationMemory
from flux_memory.testkit import CLAUSES, Proxy, network_outages
from flux_memory.testkit.contract.under_test import StoreUnderTest

ROUND_TRIP_SECONDS: Final = 0.15
FARTHEST_SECONDS: Final = 0.5
"""A round trip at which openings one after the other would not end within a handle's deadline."""
AFFECTED: Final = ("FM-CAN-020", "FM-CON-002", "FM-LST-001", "FM-DLN-005", "FM-DLN-007", "FM-CAP-004")
"""Clauses that took distance for a fault, or check calls that a slow network holds up. `--long` runs all."""
DAMAGE: Final = "UPDATE messages SET created_at = 'infinity' WHERE session_id = $1 AND id = $2"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the clauses and the distances: a few of them, or all with `--long`."""
    long = bool(metafunc.config.option.long)
    if "clause_id" in metafunc.fixturenames:
        metafunc.parametrize("clause_id", choose(is_small) if long else AFFECTED)
    if "distance" in metafunc.fixturenames:
        distances = [Distance(0.05), Distance(0.15, clock_seconds=1.0), Distance(0.5, clock_seconds=1.0)]
        metafunc.parametrize("distance", distances if long else distances[:1], ids=lambda each: f"{each.seconds} s")


@pytest.fixture
def distant_postgres(clause_id: str, request: pytest.FixtureRequest) -> Iterator[StoreUnderTest]:
    """A store on the run's server, which every packet takes a while to reach and to leave."""
    fresh = CLAUSES[clause_id].fresh
    dsn: str = request.getfixturevalue("flux_empty_database" if fresh else "flux_memory_postgres_dsn")
    with Proxy(dsn) as far, Proxy(far.dsn) as breakable:
        far.delay(ROUND_TRIP_SECONDS / 2)
        broken = network_outages(breakable, lambda: PostgresConversationMemory(breakable.dsn))
        yield StoreUnderTest(
            lambda: PostgresConversationMemory(far.dsn),
            clock_at=make_postgres_clock(dsn),
            corrupt_message=make_postgres_corrupter(dsn, DAMAGE),
            read_raw=make_postgres_reader(dsn),
            hold_locks=make_postgres_locks(dsn),
            outages=(*broken, *make_postgres_outages(far.dsn)),
        )


def test_a_distant_postgres_keeps_the_contract(clause_id: str, distant_postgres: StoreUnderTest) -> None:
    """No promise depends on how far away the server is."""
    assert run_clause(clause_id, distant_postgres) is None


def test_handles_open_together_on_the_farthest_empty_database(flux_empty_database: str) -> None:
    """One of ten handles creates the tables, in 19 round trips; the others wait for it, and not for each other."""
    with Proxy(flux_empty_database) as far:
        far.delay(FARTHEST_SECONDS / 2)
        store = StoreUnderTest(lambda: PostgresConversationMemory(far.dsn))
        assert run_clause("FM-CON-002", store) is None


def test_the_contract_holds_at_any_distance(distance: Distance, tmp_path: Path) -> None:
    """No clause takes the distance of a correct store for a fault."""
    beside = choose(lambda each: is_small(each) and is_sociable(each))
    alone = choose(lambda each: is_small(each) and not is_sociable(each) and each.id != "FM-MOD-001")
    assert not run_at_the_same_time(beside, tmp_path, distance)
    for each in alone:
        assert run_clause(each, make_distant_store(tmp_path / f"{each}.json", distance)) is None, each
