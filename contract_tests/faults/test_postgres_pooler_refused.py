"""PgBouncer refuses a client or has no room for one: the error names the mistake, and only what may pass is retried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from fault_pooler import ONLY_IN_POOLER, run_pooler, with_pooler
from fault_report import Fault
from raw_postgres import with_address, with_parameter, with_user
from secret_watch import MARKER

from flux_memory import BackendUnavailableError, ConversationMemory, PostgresConversationMemory
from flux_memory.health import check_postgres
from flux_memory.transfer import Plan, migrate, migrate_back


def user_of(dsn: str) -> str:
    """The DSN's user."""
    return str(urlsplit(dsn).username)


def as_stranger(dsn: str) -> str:
    """The DSN for a user that only the pooler knows."""
    return with_user(dsn, ONLY_IN_POOLER, str(urlsplit(dsn).password))


CREDENTIALS: Final = "check the user and the password in the DSN"
DATABASE: Final = "create the database, or correct its name in the DSN"
MISTAKES: Final[dict[str, tuple[Callable[[str], str], str]]] = {
    "wrong password": (lambda dsn: with_user(dsn, user_of(dsn), MARKER), CREDENTIALS),
    "unknown user": (lambda dsn: with_user(dsn, "no_such_user", MARKER), CREDENTIALS),
    "a user whom the server does not know": (as_stranger, CREDENTIALS),
    "missing database": (lambda dsn: with_address(dsn, database="no_such_database"), DATABASE),
    "a setting": (lambda dsn: with_parameter(dsn, "search_path=chat"), "remove them from the DSN"),
    "an option": (lambda dsn: with_parameter(dsn, "options=-c%20jit=off"), "remove them from the DSN"),
}
"""A change to the DSN, and the advice that it needs."""


@pytest.mark.asyncio
@pytest.mark.fault("mistake in a DSN that leads to PgBouncer", backend="postgres")
@pytest.mark.parametrize("auth", ["plain", "scram-sha-256"])
@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_named_at_once(flux_empty_database: str, fault: Fault, name: str, auth: str) -> None:
    """PgBouncer has one SQLSTATE for all mistakes; its words decide, and none is retried until the deadline."""
    change, advice = MISTAKES[name]
    with run_pooler(flux_empty_database, auth=auth) as pooler:
        wrong = change(with_pooler(flux_empty_database, pooler))
        memory = PostgresConversationMemory(wrong, timeout=60)
        with pytest.raises(BackendUnavailableError) as caught:
            await memory.create_session()
        await memory.close()
    assert advice in str(caught.value)
    assert "again and again" not in str(caught.value)
    fault.add(rounds=1)


@pytest.mark.asyncio
@pytest.mark.fault("database that PgBouncer does not have", backend="postgres")
async def test_a_database_that_only_the_server_has_is_named(flux_empty_database: str, fault: Fault) -> None:
    """PgBouncer's list of databases may have no entry for the others."""
    with run_pooler(flux_empty_database, databases="another") as pooler:
        memory = PostgresConversationMemory(with_pooler(flux_empty_database, pooler), timeout=60)
        with pytest.raises(BackendUnavailableError, match=f"no such database.*; {DATABASE}"):
            await memory.count_sessions()
        await memory.close()
    fault.add(rounds=1)


@pytest.mark.asyncio
@pytest.mark.fault("PgBouncer in session mode, pool smaller than the handle's", backend="postgres")
async def test_a_pool_in_session_mode_that_is_too_small_is_named(flux_empty_database: str, fault: Fault) -> None:
    """A client keeps its server connection until it closes; the deadline of one more names the pool size."""
    with run_pooler(flux_empty_database, mode="session", pool_size=2) as pooler:
        dsn = with_pooler(flux_empty_database, pooler)
        async with PostgresConversationMemory(dsn, max_size=2) as fits:
            session = await fits.create_session()
            await asyncio.gather(*(fits.add_message(session, "user", "x") for _ in range(20)))
            await asyncio.gather(*(fits.get_history(session) for _ in range(20)))
            # The whole pool is in use: the first statement of another handle waits.
            other = PostgresConversationMemory(dsn, timeout=1)
            with pytest.raises(BackendUnavailableError, match="a pooler in session mode whose pool_size is below"):
                await other.count_sessions()
            await other.close()
        async with PostgresConversationMemory(dsn, min_size=1, max_size=4, timeout=2) as too_large:
            await too_large.count_sessions()
            calls = (too_large.get_sessions() for _ in range(12))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            assert refused
            for outcome in refused:
                assert isinstance(outcome, BackendUnavailableError)
                assert "a pooler in session mode whose pool_size is below the max_size=" in str(outcome)
    fault.add(acknowledged=20)


@pytest.mark.asyncio
@pytest.mark.fault("check and migrate through PgBouncer", backend="postgres")
@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_the_commands_work_through_it(flux_empty_database: str, fault: Fault, tmp_path: Path, mode: str) -> None:
    """The check, the migration and the way back need two connections at most, in either mode."""
    async with ConversationMemory(tmp_path / "chat.db") as memory:
        session = await memory.create_session()
        await memory.add_messages(session, [{"role": "user", "content": str(number)} for number in range(10)])
    with run_pooler(flux_empty_database, mode=mode, pool_size=2) as pooler:
        dsn = with_parameter(with_pooler(flux_empty_database, pooler), "statement_cache_size=0")
        await check_postgres(dsn, 20)
        moved = await migrate(Plan(sqlite_path=tmp_path / "chat.db", postgres_dsn=dsn))
        assert moved.exit_code == 0
        back = await migrate_back(dsn, tmp_path / "back.db")
        assert back.exit_code == 0
        assert (await check_postgres(dsn, 20)).messages == 10
    fault.add(acknowledged=10)
