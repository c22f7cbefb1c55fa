"""Runs the contract on the memory without `await`, on both engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from bound_stores import (
    Corrupt,
    ReadRaw,
    make_postgres_clock,
    make_postgres_corrupter,
    make_postgres_reader,
    make_sqlite_corrupter,
    make_sqlite_reader,
)
from outage_stores import make_lock_outages, make_postgres_locks, make_postgres_outages, make_sqlite_locks
from threaded_memory import ThreadedMemory

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory
from flux_memory.testkit import ALL, Capability, MemoryContract, Proxied
from flux_memory.testkit.contract.hooks import ClockAt, HoldLocks
from flux_memory.testkit.contract.outages import Outage


def threaded(outages: Sequence[Outage]) -> Sequence[Outage]:
    """Return outages of the same stores, reached through the memory without `await`."""

    def opener(open_memory: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: ThreadedMemory(open_memory())

    return [replace(each, open=opener(each.open)) for each in outages]


class TestSyncSQLite(MemoryContract):
    backend = "SQLite, sync"
    capabilities = ALL & ~Capability.NETWORKED

    @pytest.fixture
    def memory_factory(self, path: Path) -> Callable[[], ThreadedMemory]:
        return lambda: ThreadedMemory(ConversationMemory(path))

    @pytest.fixture
    def outages(self, path: Path) -> Sequence[Outage]:
        return threaded(make_lock_outages(path))

    @pytest.fixture
    def hold_locks(self, path: Path) -> HoldLocks:
        return make_sqlite_locks(path)

    @pytest.fixture
    def corrupt_message(self, path: Path) -> Corrupt:
        return make_sqlite_corrupter(path, "UPDATE messages SET metadata = '{' WHERE session_id = ? AND id = ?")

    @pytest.fixture
    def read_raw(self, path: Path) -> ReadRaw:
        return make_sqlite_reader(path)


class TestSyncPostgreSQL(MemoryContract):
    backend = "PostgreSQL, sync"

    @pytest.fixture
    def memory_factory(self, flux_memory_postgres_dsn: str) -> Callable[[], ThreadedMemory]:
        return lambda: ThreadedMemory(PostgresConversationMemory(flux_memory_postgres_dsn))

    @pytest.fixture
    def fresh_memory_factory(self, flux_empty_database: str) -> Callable[[], ThreadedMemory]:
        return lambda: ThreadedMemory(PostgresConversationMemory(flux_empty_database))

    @pytest.fixture
    def clock_at(self, flux_memory_postgres_dsn: str) -> ClockAt:
        return make_postgres_clock(flux_memory_postgres_dsn)

    @pytest.fixture
    def outages(self, flux_memory_postgres_dsn: str) -> Sequence[Outage]:
        return threaded(make_postgres_outages(flux_memory_postgres_dsn))

    @pytest.fixture
    def hold_locks(self, flux_memory_postgres_dsn: str) -> HoldLocks:
        return make_postgres_locks(flux_memory_postgres_dsn)

    @pytest.fixture
    def proxied_memory_factory(self, flux_memory_postgres_dsn: str) -> Proxied:
        def open_memory(dsn: str) -> Memory:
            return cast("Memory", ThreadedMemory(PostgresConversationMemory(dsn)))

        return Proxied(flux_memory_postgres_dsn, open_memory)

    @pytest.fixture
    def corrupt_message(self, flux_memory_postgres_dsn: str) -> Corrupt:
        sql = "UPDATE messages SET metadata = '[]' WHERE session_id = $1 AND id = $2"
        return make_postgres_corrupter(flux_memory_postgres_dsn, sql)

    @pytest.fixture
    def read_raw(self, flux_memory_postgres_dsn: str) -> ReadRaw:
        return make_postgres_reader(flux_memory_postgres_dsn)
