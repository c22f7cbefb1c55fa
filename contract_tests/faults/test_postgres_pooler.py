"""Tests PgBouncer in transaction mode: one setting is enough, its lack is reported, and a restart fails no call."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from fault_cluster import run_blocking
from fault_load import Load, run_round
from fault_pooler import Pooler, with_pooler
from fault_report import Fault
from raw_postgres import with_parameter

from flux_memory import BackendUnavailableError, PostgresConversationMemory


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.fault("PgBouncer restarted", backend="postgres"), id="restart"),
        pytest.param(signal.SIGKILL, marks=pytest.mark.fault("kill -9 of PgBouncer", backend="postgres"), id="kill -9"),
    ],
)
async def test_the_pooler_is_restarted_under_load(
    pooler: Pooler, flux_empty_database: str, fault: Fault, tmp_path: Path, how: signal.Signals
) -> None:
    """With `statement_cache_size=0` everything works in transaction mode, and continues after the pooler's restart."""

    async def restart(_: Load) -> None:
        await run_blocking(pooler.restart, how)

    dsn = with_parameter(with_pooler(flux_empty_database, pooler), "statement_cache_size=0")
    for number in fault.rounds(2, 50):
        load = await run_round(fault, dsn, tmp_path / str(number), restart, stored_at=flux_empty_database)
        assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("statement_cache_size=0 forgotten behind PgBouncer", backend="postgres")
async def test_the_forgotten_setting_is_named(pooler: Pooler, flux_empty_database: str, fault: Fault) -> None:
    """Two handles collide, and the error says what to add to the DSN; nothing is half stored."""
    dsn = with_pooler(flux_empty_database, pooler)
    async with PostgresConversationMemory(dsn) as one, PostgresConversationMemory(dsn) as two:
        session = await one.create_session(session_id="s")
        outcomes = []
        for _ in range(20):
            outcomes += await asyncio.gather(
                *(memory.add_message(session, "user", "x") for memory in (one, two)),
                *(memory.get_sessions(limit) for memory in (one, two) for limit in range(10)),
                return_exceptions=True,
            )
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert errors
    for error in errors:
        assert isinstance(error, BackendUnavailableError)
        assert "add ?statement_cache_size=0 to the DSN" in str(error)
    added = sum(isinstance(outcome, str) for outcome in outcomes)
    async with PostgresConversationMemory(flux_empty_database) as memory:
        assert len(await memory.get_history(session)) == added
    fault.add(acknowledged=added)
