"""Runs what operators run, on a cluster: upgrades, a dry run, the live view, feedback in files, deletion."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cluster_stores import COORDINATOR, WORKER, in_schema
from raw_postgres import execute, fetch_rows, with_parameter

from flux_memory import PostgresConversationMemory, SchemaError
from flux_memory.cli import main
from flux_memory.operations.distribute import distribute
from flux_memory.operations.top.server_activity import ServerActivity

SELECT_TABLES = "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
FEEDBACK = '{"id": "f1", "session_id": "a", "rating": 1, "comment": "x", "created_at": "2026-01-01 00:00:00"}\n'


@pytest.mark.asyncio
async def test_a_dry_run_shows_the_plan_of_a_database_without_tables(fresh_schema: str) -> None:
    """An operator sees the statements before there are tables."""
    dsn = in_schema(COORDINATOR, fresh_schema)
    plan = await distribute(dsn, dry_run=True)
    assert not any(table.exists for table in plan.tables)
    assert f"SELECT create_distributed_table('{fresh_schema}.sessions', 'id')" in plan.statements
    assert await fetch_rows(dsn, SELECT_TABLES) == []
    done = await distribute(with_parameter(dsn, "citus.shard_count=4"))
    assert done.statements == plan.statements


@pytest.mark.asyncio
async def test_a_worker_creates_and_upgrades_no_tables(fresh_schema: str) -> None:
    """Tables of a worker alone would be missing on the coordinator, which reads the version from every server."""
    coordinator, worker = in_schema(COORDINATOR, fresh_schema), in_schema(WORKER, fresh_schema)
    async with PostgresConversationMemory(worker) as memory:
        with pytest.raises(SchemaError, match="is a worker of a Citus cluster"):
            await memory.count_sessions()
    await distribute(with_parameter(coordinator, "citus.shard_count=4"))
    await execute(coordinator, "DROP TABLE feedback", "DELETE FROM flux_memory_schema WHERE version = 7")
    async with PostgresConversationMemory(worker) as memory:
        with pytest.raises(SchemaError, match="with the coordinator's DSN"):
            await memory.create_session()
    async with PostgresConversationMemory(coordinator) as memory:
        # The table is there now, on the coordinator alone.
        with pytest.raises(SchemaError, match="'feedback' is not; run flux-memory distribute"):
            await memory.create_session()
    async with PostgresConversationMemory(worker) as memory:
        with pytest.raises(SchemaError, match="not those of the coordinator; run flux-memory distribute"):
            await memory.create_session()
    await distribute(with_parameter(coordinator, "citus.shard_count=4"))
    for dsn in (coordinator, worker):
        async with PostgresConversationMemory(dsn) as memory:
            session = await memory.create_session()
            await memory.feedback.add(session, 1)


@pytest.mark.asyncio
async def test_replicas_of_a_cluster_are_refused(emptied: str) -> None:
    """A replica that has the coordinator's log may lack rows of a worker: a read would miss the handle's own write."""
    dsn = in_schema(COORDINATOR, emptied)
    async with PostgresConversationMemory(dsn, replica_dsn=in_schema(WORKER, emptied)) as memory:
        with pytest.raises(SchemaError, match="leave out replica_dsn"):
            await memory.create_session()


@pytest.mark.asyncio
@pytest.mark.parametrize("server", [COORDINATOR, WORKER])
async def test_the_live_view_counts_the_rows_of_all_servers(emptied: str, server: str) -> None:
    """The tables that a server shows under their names are empty: the rows are in others."""
    dsn = in_schema(server, emptied)
    async with PostgresConversationMemory(dsn) as memory:
        for number in range(10):
            await memory.add_message(f"session {number}", "user", "Hello", create=True)
    await execute(dsn, "ANALYZE sessions", "ANALYZE messages")
    activity = ServerActivity(dsn, 30)
    try:
        reading = await activity.read()
    finally:
        await activity.close()
    assert (reading.sessions, reading.messages) == (10, 10)
    assert {table.name for table in reading.tables} == {"sessions", "session_details", "messages", "feedback"}
    assert not any("tables" in text or "locks" in text for text in reading.missing), reading.missing


@pytest.mark.asyncio
@pytest.mark.parametrize("server", [COORDINATOR, WORKER])
async def test_sessions_on_all_servers_are_deleted(emptied: str, server: str) -> None:
    """Several at a time, each once, and no others."""
    async with PostgresConversationMemory(in_schema(server, emptied)) as memory:
        for number in range(230):
            await memory.create_session(session_id=f"session {number}", user_id="ann" if number % 10 else "bob")
        assert await memory.delete_sessions(user_id="ann") == 207
        assert await memory.count_sessions() == 23
        assert await memory.delete_sessions(inactive_since=datetime.now(UTC)) == 23


@pytest.mark.parametrize("server", [COORDINATOR, WORKER])
def test_feedback_is_imported_and_exported(emptied: str, server: str, tmp_path: Path) -> None:
    """A second import adds nothing, and the export has what the import had."""
    given, taken, dsn = tmp_path / "given.jsonl", tmp_path / "taken.jsonl", in_schema(server, emptied)
    given.write_text(FEEDBACK, encoding="utf-8")
    for added in (1, 0):
        result = CliRunner().invoke(main, ["feedback", "import", "--postgres-dsn", dsn, str(given)])
        assert result.exit_code == 0, result.output
        assert f"Imported {added} entr" in result.output
    result = CliRunner().invoke(main, ["feedback", "export", "--postgres-dsn", dsn, str(taken)])
    assert result.exit_code == 0, result.output
    assert '"f1"' in taken.read_text(encoding="utf-8")


@pytest.mark.parametrize("server", [COORDINATOR, WORKER])
def test_the_check_of_a_cluster_passes(emptied: str, server: str) -> None:
    """All methods do on a cluster what they promise."""
    result = CliRunner().invoke(main, ["check", "--full", "--postgres-dsn", in_schema(server, emptied)])
    assert result.exit_code == 0, result.output
    assert result.output.endswith("OK\n"), result.output
