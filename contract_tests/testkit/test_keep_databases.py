"""Tests that a failed test's database and server stay for inspection, on request."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from flux_memory.testkit.servers import start_server
from flux_memory.testkit.servers.local import start
from flux_memory.testkit.servers.ownership import is_running, own_mark
from flux_memory.testkit.servers.running import Started, Wishes
from flux_memory.testkit.servers.sharing import SharedServer

pytest_plugins = ["pytester"]

FAILING = """
    import pytest
    from flux_memory import PostgresConversationMemory

    @pytest.mark.asyncio
    async def test_fails(flux_memory_postgres_dsn):
        memory = PostgresConversationMemory(flux_memory_postgres_dsn)
        await memory.create_session("what was there")
        # Left open, because an open connection must not prevent the copy.
        assert False

    @pytest.mark.asyncio
    async def test_passes(flux_memory_postgres_dsn):
        async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
            assert await memory.count_sessions() == 0
"""
KEPT = r"^postgresql://\S+/(flux_memory_kept_[0-9a-f_]+)$"


async def fetch(dsn: str, statement: str) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch(statement)]
    finally:
        await connection.close()


@pytest.mark.parametrize("keep", [True, False], ids=["on request", "by default"])
def test_a_failed_tests_database_is_kept(pytester: pytest.Pytester, keep: bool) -> None:
    """On request the database stays after the run with the test's data; the next test still starts empty."""
    pytester.makepyfile(FAILING)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    with start_server() as server:
        options = ["--flux-keep-databases"] if keep else []
        result = pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--flux-postgres={server.dsn}", *options)
        result.assert_outcomes(failed=1, passed=1)
        # An external server's log is not accessible, so no log is shown.
        assert "server log" not in result.stdout.str()
        names = re.findall(KEPT, result.stdout.str(), re.MULTILINE)
        left = asyncio.run(fetch(server.dsn, "SELECT datname FROM pg_database WHERE datname ~ '^flux_memory'"))
        assert names == left
        assert len(left) == keep
        for name in names:
            dsn = server.dsn.removesuffix("/postgres") + f"/{name}"
            assert asyncio.run(fetch(dsn, "SELECT title FROM session_details")) == ["what was there"]


def test_a_kept_database_outlives_its_run(tmp_path: Path) -> None:
    """On request, a server that the run started keeps running after its end; by default it stops."""
    agreement = SharedServer(tmp_path / "run")
    started = agreement.attach(lambda: Started(start(Wishes(image=""), own_mark()), "", 0.0))
    pid: int = started.running.pid  # type: ignore[attr-defined]  # a local server's
    try:
        agreement.outlive()
        agreement.stop()
        assert is_running(pid)
        assert not (tmp_path / "run").exists()
    finally:
        started.running.stop()
    assert not is_running(pid)
