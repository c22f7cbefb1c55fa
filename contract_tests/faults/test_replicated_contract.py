"""Runs the contract on a store with a primary and two replicas, whose reads may go to any of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import pytest
from bound_stores import make_postgres_clock, make_postgres_corrupter, make_postgres_reader, run_clause
from distant_stores import choose, is_small
from fault_cluster import wait_for_replica
from outage_stores import make_postgres_locks
from raw_postgres import execute
from replicated_cluster import Replicated, run_replicated

from flux_memory import PostgresConversationMemory
from flux_memory.backends.postgres.replicas.replica import Replica
from flux_memory.testkit import Proxy, network_outages
from flux_memory.testkit.contract.under_test import StoreUnderTest

DAMAGE: Final = "UPDATE messages SET created_at = 'infinity' WHERE session_id = $1 AND id = $2"
SAMPLED: Final = ("ORD", "LST", "SES", "UPD", "REV", "MSG", "GET", "POP", "FRK", "DEL", "BAT", "CRE", "CON", "CAN")
"""Groups of which some clauses run; `--long` runs every clause."""
OF_A_GROUP: Final = 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the clauses: the first ones of the groups that read what was written, or all with `--long`."""
    if "clause_id" not in metafunc.fixturenames:
        return
    chosen = choose(lambda each: is_small(each) and not each.fresh)
    if not metafunc.config.option.long:
        groups = {group: [each for each in chosen if each.startswith(f"FM-{group}-")] for group in SAMPLED}
        chosen = [each for clauses in groups.values() for each in clauses[:OF_A_GROUP]]
    metafunc.parametrize("clause_id", chosen)


@pytest.fixture(scope="module")
def replicated() -> Iterator[Replicated]:
    """A primary with two replicas and the library's tables."""
    with run_replicated(durable=False) as made:

        async def make_tables() -> None:
            async with PostgresConversationMemory(made.primary.dsn) as memory:
                await memory.count_sessions()

        asyncio.run(make_tables())
        yield made


@pytest.fixture
def store(replicated: Replicated) -> Iterator[StoreUnderTest]:
    """An empty store. Its handles show what any other of them has been told is stored: no lag is allowed."""
    dsn = replicated.primary.dsn
    open_memory: Callable[[str], PostgresConversationMemory] = partial(
        PostgresConversationMemory, replica_dsn=replicated.replica_dsn, max_replica_lag=0
    )

    async def empty() -> None:
        await execute(dsn, "DELETE FROM sessions")
        for replica in replicated.replicas:
            await wait_for_replica(replicated.primary, replica)

    asyncio.run(empty())
    with Proxy(dsn) as breakable:
        yield StoreUnderTest(
            lambda: open_memory(dsn),
            clock_at=make_postgres_clock(dsn),
            corrupt_message=make_postgres_corrupter(dsn, DAMAGE),
            read_raw=make_postgres_reader(dsn),
            hold_locks=make_postgres_locks(dsn),
            outages=network_outages(breakable, lambda: open_memory(breakable.dsn)),
        )


def test_a_replicated_store_keeps_the_contract(clause_id: str, store: StoreUnderTest) -> None:
    """No caller can tell which server has answered."""
    assert run_clause(clause_id, store) is None


def test_replicas_answer_reads_of_the_contract(store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clauses would hold on the primary alone: the replicas do answer."""
    answered = left = 0
    read = Replica.read

    async def count(*arguments: object) -> object:
        nonlocal answered, left
        rows = await read(*arguments)  # type: ignore[arg-type]
        answered += rows is not None
        left += rows is None
        return rows

    monkeypatch.setattr(Replica, "read", count)
    assert run_clause("FM-ORD-001", store) is None
    assert run_clause("FM-UPD-003", store) is None
    assert answered > left
