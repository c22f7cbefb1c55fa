"""Runs the contract on PostgreSQL, and tests promises that only the server's own data can show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final

import pytest
from bound_stores import (
    Corrupt,
    ReadRaw,
    make_postgres_clock,
    make_postgres_corrupter,
    make_postgres_reader,
    run_async_clause,
)
from outage_stores import make_postgres_locks, make_postgres_outages
from raw_postgres import execute, fetch_rows, wait_until_none, with_parameter

from flux_memory import PostgresConversationMemory
from flux_memory.testkit import MemoryContract, Proxied
from flux_memory.testkit.contract.hooks import ClockAt, HoldLocks
from flux_memory.testkit.contract.outages import Outage
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.servers import Server

DAMAGES: Final = {
    "JSON of another kind": "UPDATE messages SET metadata = '[]' WHERE session_id = $1 AND id = $2",
    "JSON's null": "UPDATE messages SET metadata = 'null' WHERE session_id = $1 AND id = $2",
    "a time without end": "UPDATE messages SET created_at = 'infinity' WHERE session_id = $1 AND id = $2",
    "a time out of range": "UPDATE messages SET created_at = '200000-01-01' WHERE session_id = $1 AND id = $2",
    "a time before Christ": "UPDATE messages SET created_at = '0044-03-15 BC' WHERE session_id = $1 AND id = $2",
}


class TestPostgreSQL(MemoryContract):
    backend = "PostgreSQL"
    backend_version = f"flux-memory {version('flux-memory')}, asyncpg {version('asyncpg')}"

    @pytest.fixture
    def dsn(self, flux_postgres_server: Server, flux_memory_postgres_dsn: str) -> str:
        """The clause's database. The run's own server has no TLS, which each connection would ask for."""
        if not flux_postgres_server.is_own:
            return flux_memory_postgres_dsn
        return with_parameter(flux_memory_postgres_dsn, "sslmode=disable")

    @pytest.fixture
    def memory_factory(self, dsn: str) -> Callable[[], PostgresConversationMemory]:
        return lambda: PostgresConversationMemory(dsn)

    @pytest.fixture
    def fresh_memory_factory(self, flux_empty_database: str) -> Callable[[], PostgresConversationMemory]:
        return lambda: PostgresConversationMemory(flux_empty_database)

    @pytest.fixture
    def clock_at(self, dsn: str) -> ClockAt:
        return make_postgres_clock(dsn)

    @pytest.fixture
    def outages(self, dsn: str) -> Sequence[Outage]:
        return make_postgres_outages(dsn)

    @pytest.fixture
    def hold_locks(self, dsn: str) -> HoldLocks:
        return make_postgres_locks(dsn)

    @pytest.fixture
    def proxied_memory_factory(self, dsn: str) -> Proxied:
        return Proxied(dsn, PostgresConversationMemory)

    @pytest.fixture
    def corrupt_message(self, dsn: str) -> Corrupt:
        return make_postgres_corrupter(dsn, DAMAGES["a time without end"])

    @pytest.fixture
    def read_raw(self, dsn: str) -> ReadRaw:
        return make_postgres_reader(dsn)


@pytest.mark.asyncio
@pytest.mark.parametrize("sql", DAMAGES.values(), ids=DAMAGES)
async def test_every_kind_of_damage_stays_in_its_row(flux_memory_postgres_dsn: str, sql: str) -> None:
    """A damaged row of any kind raises an error that names it, and the others stay readable."""
    dsn = flux_memory_postgres_dsn
    await run_async_clause(
        "FM-LIF-011",
        StoreUnderTest(lambda: PostgresConversationMemory(dsn), corrupt_message=make_postgres_corrupter(dsn, sql)),
    )


@pytest.mark.asyncio
async def test_a_race_to_first_use_leaks_no_connection(flux_empty_database: str) -> None:
    """After many handles have raced to first use and closed, the server has no connection of theirs."""
    handles = [PostgresConversationMemory(flux_empty_database) for _ in range(6)]
    await asyncio.gather(*(handle.create_session() for handle in handles))
    await asyncio.gather(*(handle.close() for handle in handles))
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    await wait_until_none(flux_empty_database, f"SELECT count(*) {others} AND backend_type = 'client backend'")


@pytest.mark.asyncio
async def test_a_history_has_no_hole_in_the_table(flux_memory_postgres_dsn: str) -> None:
    """Sequence numbers of a session have no gap and no repeat, after failed and cancelled adds too."""
    dsn = flux_memory_postgres_dsn
    for clause_id in ("FM-ORD-012", "FM-CON-006", "FM-CAN-001", "FM-CAN-011"):
        await execute(dsn, "DELETE FROM sessions") if clause_id != "FM-ORD-012" else None
        await run_async_clause(clause_id, StoreUnderTest(lambda: PostgresConversationMemory(dsn)))
        for count, numbers in await fetch_rows(
            dsn,
            "SELECT s.message_count, array_agg(m.seq ORDER BY m.seq) FILTER (WHERE m.seq IS NOT NULL)"
            " FROM sessions s LEFT JOIN messages m ON m.session_id = s.id GROUP BY s.id, s.message_count",
        ):
            found = numbers or []
            assert len(found) == count
            assert [number - found[0] for number in found] == list(range(len(found)))
