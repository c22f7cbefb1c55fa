"""Runs the contract on a Citus cluster: through the coordinator, through a worker, in a schema on one worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final

import pytest
from bound_stores import Corrupt, ReadRaw, make_postgres_corrupter, make_postgres_reader
from cluster_stores import COORDINATOR, WORKER, empty, in_schema, make_cluster_clock, make_cluster_outages
from outage_stores import make_postgres_locks
from transfer_memories import make_tables

from flux_memory import PostgresConversationMemory
from flux_memory.testkit import MemoryContract, Proxied
from flux_memory.testkit.contract.hooks import ClockAt, HoldLocks
from flux_memory.testkit.contract.outages import Outage

DAMAGE: Final = "UPDATE messages SET created_at = 'infinity' WHERE session_id = $1 AND id = $2"


class TestCitusCoordinator(MemoryContract):
    backend = "Citus"
    backend_version = f"flux-memory {version('flux-memory')}, asyncpg {version('asyncpg')}"
    server = COORDINATOR

    @pytest.fixture
    def dsn(self, emptied: str) -> str:
        """The distributed tables, through one of the servers."""
        return in_schema(self.server, emptied)

    @pytest.fixture
    def memory_factory(self, dsn: str) -> Callable[[], PostgresConversationMemory]:
        return lambda: PostgresConversationMemory(dsn)

    @pytest.fixture
    def fresh_memory_factory(self, fresh_schema: str) -> Callable[[], PostgresConversationMemory]:
        return lambda: PostgresConversationMemory(in_schema(COORDINATOR, fresh_schema))

    @pytest.fixture
    def clock_at(self, dsn: str) -> ClockAt:
        return make_cluster_clock(dsn)

    @pytest.fixture
    def outages(self, dsn: str) -> Sequence[Outage]:
        return make_cluster_outages(dsn)

    @pytest.fixture
    def hold_locks(self, dsn: str) -> HoldLocks:
        return make_postgres_locks(dsn)

    @pytest.fixture
    def proxied_memory_factory(self, dsn: str) -> Proxied:
        return Proxied(dsn, PostgresConversationMemory)

    @pytest.fixture
    def corrupt_message(self, dsn: str) -> Corrupt:
        return make_postgres_corrupter(dsn, DAMAGE)

    @pytest.fixture
    def read_raw(self, dsn: str) -> ReadRaw:
        return make_postgres_reader(dsn)


class TestCitusWorker(TestCitusCoordinator):
    backend = "Citus through a worker"
    server = WORKER


class TestCitusSchema(TestCitusCoordinator):
    backend = "Citus, a schema on one worker"

    @pytest.fixture
    def dsn(self, on_one_worker: str) -> str:
        """The tables of a schema that is distributed as a whole."""
        dsn = in_schema(COORDINATOR, on_one_worker)
        make_tables(dsn)
        asyncio.run(empty(dsn))
        return dsn
