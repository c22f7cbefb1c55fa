"""The record of moves and roles: its owner, a role that may not create it, and one that may not use it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest
from original_application import make_file_with_data
from raw_postgres import create_role, execute, fetch_rows
from transfer_memories import Trigger

from flux_memory import PostgresConversationMemory
from flux_memory.errors import SchemaError
from flux_memory.testkit.servers.databases import database_of
from flux_memory.transfer import Mode, Plan, Status, migrate

DELETE_TWO: Final = "DELETE FROM sessions WHERE id = 'two'"
USE: Final = (
    "GRANT SELECT, INSERT ON sessions, session_details, messages, feedback TO {role}",
    "GRANT UPDATE ON sessions TO {role}",
    "GRANT SELECT ON flux_memory_schema TO {role}",
)


def test_the_record_is_in_the_tables_schema_and_belongs_to_their_owner(path: Path, target: str) -> None:
    """A superuser moves for the owner, whose search_path leads elsewhere first; the owner runs the next move."""
    make_file_with_data(path)

    async def run() -> None:
        async with create_role(target) as owner:
            name = owner.partition("://")[2].partition(":")[0]
            await execute(target, f"CREATE SCHEMA chat AUTHORIZATION {name}", "CREATE SCHEMA first")
            search = f'ALTER ROLE {{}} IN DATABASE "{database_of(target)}" SET search_path = {{}}'
            await execute(target, search.format(name, "chat"), search.format("CURRENT_USER", "first, chat"))
            async with PostgresConversationMemory(owner, min_size=1) as memory:
                await memory.count_sessions()
            assert (await migrate(Plan(sqlite_path=path, postgres_dsn=target))).status is Status.IDENTICAL
            places = "SELECT schemaname, tableowner FROM pg_tables WHERE tablename LIKE 'flux_memory_move%'"
            assert await fetch_rows(target, places) == [("chat", name)] * 3
            assert (await migrate(Plan(sqlite_path=path, postgres_dsn=owner))).status is Status.IDENTICAL

    asyncio.run(run())


def test_a_role_that_may_not_create_the_record_moves_without_it(path: Path, target: str) -> None:
    """Only the owner of the tables makes the record, so that others need not trust it; the command says so."""
    make_file_with_data(path)

    async def run() -> None:
        async with PostgresConversationMemory(target, min_size=1) as memory:
            await memory.count_sessions()
        await execute(target, "GRANT CREATE ON SCHEMA public TO PUBLIC")
        async with create_role(target, grants=USE) as other:
            trigger = Trigger("", lambda: None)
            report = await migrate(Plan(sqlite_path=path, postgres_dsn=other), trigger)
            assert (report.status, report.recorded) == (Status.IDENTICAL, False)
            assert any("Let their owner run the first migration" in line for line in trigger.said)
            await execute(target, DELETE_TWO)
            assert (await migrate(Plan(sqlite_path=path, postgres_dsn=other))).status is Status.IDENTICAL

    asyncio.run(run())


def test_a_role_that_may_not_use_the_record_is_refused(deleted: Path, target: str) -> None:
    """In a dry run, too: it would bring back deleted sessions. With the grant it skips them."""

    async def run() -> None:
        async with create_role(target, grants=USE) as other:
            for mode in (Mode.PREFLIGHT, Mode.MOVE):
                with pytest.raises(SchemaError, match="GRANT SELECT, INSERT ON flux_memory_moves"):
                    await migrate(Plan(sqlite_path=deleted, postgres_dsn=other, mode=mode))
            name = other.partition("://")[2].partition(":")[0]
            tables = "flux_memory_moves, flux_memory_moved_sessions, flux_memory_moved_feedback"
            await execute(target, f"GRANT SELECT, INSERT ON {tables} TO {name}")
            assert (await migrate(Plan(sqlite_path=deleted, postgres_dsn=other))).status is Status.SKIPPED

    asyncio.run(run())
