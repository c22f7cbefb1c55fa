"""Tests the library's log: openings, retries, lost connections, slow calls and their plans; and no content in it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from raw_postgres import connect, execute, with_address
from sqlite_locks import WRITE_LOCK, hold_lock
from waiting import wait_until

from flux_memory import (
    BackendUnavailableError,
    ConversationMemory,
    InvalidInputError,
    PostgresConversationMemory,
    SchemaError,
    Settings,
    create_memory,
    deadline,
)
from flux_memory.backends import slow_calls
from flux_memory.backends.postgres import handle
from flux_memory.schema import history

Own = ConversationMemory | PostgresConversationMemory

SECRET: Final = "the-secret-of-ann"
TINY_SECONDS: Final = 1e-9
END_WAITING: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
REFUSE_TWICE: Final = (
    "CREATE SEQUENCE refusals",
    """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('refusals') <= 2 THEN
            RAISE EXCEPTION 'canceled on conflict' USING ERRCODE = 'serialization_failure';
        END IF;
        RETURN NEW;
    END $$""",
    "CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION refuse()",
)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The library's log, from INFO."""
    with caplog.at_level(logging.INFO, "flux_memory"):
        yield caplog


@pytest.fixture(params=["sqlite", "postgres"])
def open_slow_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Own]:
    """Opens a handle of either engine, to which every call is slow."""
    if request.param == "sqlite":
        return lambda: ConversationMemory(tmp_path / "chat.db", slow_call_seconds=TINY_SECONDS)
    dsn: str = request.getfixturevalue("flux_memory_postgres_dsn")
    return lambda: PostgresConversationMemory(dsn, slow_call_seconds=TINY_SECONDS)


def messages(log: pytest.LogCaptureFixture, level: int, child: str) -> list[str]:
    return [each.getMessage() for each in log.records if (each.levelno, each.name) == (level, f"flux_memory.{child}")]


@pytest.mark.asyncio
async def test_opening_a_file_is_logged(log: pytest.LogCaptureFixture, path: Path) -> None:
    """The log names the file with its directory, the version of SQLite and that of the schema; once, not per call."""
    async with ConversationMemory(path) as memory:
        await memory.count_sessions()
        await memory.count_sessions()
    (line,) = messages(log, logging.INFO, "sqlite")
    assert line.startswith(f"opened SQLite on {path}: SQLite ")
    assert line.endswith(f", schema version {history('sqlite')[-1].version}")


@pytest.mark.asyncio
async def test_opening_a_server_is_logged_without_its_password(
    log: pytest.LogCaptureFixture, flux_memory_postgres_dsn: str
) -> None:
    """The log names the masked DSN, the version of the server and that of the schema."""
    async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
        await memory.count_sessions()
    (line,) = messages(log, logging.INFO, "postgres")
    assert line.startswith("opened PostgreSQL at postgresql://")
    assert ":***@" in line
    assert "server 1" in line
    assert line.endswith(f", schema version {history('postgres')[-1].version}")


@pytest.mark.asyncio
async def test_a_retry_is_logged_with_its_reason(log: pytest.LogCaptureFixture, flux_empty_database: str) -> None:
    """An operator sees why a call took longer; the words of the server, which may quote a value, are left out."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        session = await memory.create_session()
        await execute(flux_empty_database, *REFUSE_TWICE)
        await memory.add_message(session, "user", SECRET)
    assert [line for line in messages(log, logging.INFO, "postgres") if "refused" in line] == [
        f"the server refused attempt {number} (SerializationError, SQLSTATE 40001); the statement runs again"
        for number in (1, 2)
    ]


@pytest.mark.asyncio
async def test_a_lost_connection_is_logged(log: pytest.LogCaptureFixture, flux_memory_postgres_dsn: str) -> None:
    """A statement that lost its connection runs again on another one, and the log warns of it."""
    async with (
        PostgresConversationMemory(flux_memory_postgres_dsn) as memory,
        connect(flux_memory_postgres_dsn) as locking,
        connect(flux_memory_postgres_dsn) as other,
    ):
        session = await memory.create_session()
        async with locking.transaction():
            await locking.execute("SELECT FROM sessions FOR UPDATE")
            adding = asyncio.create_task(memory.add_message(session, "user", SECRET))
            await wait_until(lambda: other.fetch(END_WAITING))
            await wait_until(lambda: _was_lost(log))
        await adding
        assert [row["content"] for row in await memory.get_history(session)] == [SECRET]
    (line,) = [line for line in messages(log, logging.WARNING, "postgres") if "lost" in line]
    assert line.startswith("the connection was lost after attempt 1 (")
    assert line.endswith("; the statement runs again on another one")
    assert SECRET not in log.text


async def _was_lost(log: pytest.LogCaptureFixture) -> bool:
    return "the connection was lost" in log.text


@pytest.mark.asyncio
async def test_failed_attempts_to_connect_are_logged(
    log: pytest.LogCaptureFixture, flux_memory_postgres_dsn: str
) -> None:
    """While the server is away, the log says so before the call's deadline does."""
    async with PostgresConversationMemory(with_address(flux_memory_postgres_dsn, port=1), timeout=5) as memory:
        with deadline(0.4), pytest.raises(BackendUnavailableError):
            await memory.ping()
    lines = messages(log, logging.WARNING, "postgres")
    assert lines[0].startswith("attempt 1 to connect to PostgreSQL at postgresql://")
    assert lines[0].endswith("; trying again")
    assert "ConnectionRefusedError" in lines[0] or "OSError" in lines[0]


@pytest.mark.asyncio
async def test_a_wait_for_another_process_is_logged_once(log: pytest.LogCaptureFixture, path: Path) -> None:
    """A held lock is one line, not one for each attempt."""
    async with ConversationMemory(path, timeout=5) as memory:
        await memory.create_session(session_id="one")
        with hold_lock(path, *WRITE_LOCK), deadline(0.4), pytest.raises(BackendUnavailableError):
            await memory.add_message("one", "user", "Hello")
    (line,) = [line for line in messages(log, logging.INFO, "sqlite") if "lock" in line]
    assert line == "another process holds the lock (database is locked); the waiting calls are tried again"


@pytest.mark.asyncio
async def test_a_slow_call_is_logged_with_its_plan_and_without_its_content(
    log: pytest.LogCaptureFixture, open_slow_memory: Callable[[], Own]
) -> None:
    """The log names the operation and its duration at once, and the plan afterwards; never an argument or a row."""
    async with open_slow_memory() as memory:
        session = await memory.create_session(SECRET, {SECRET: SECRET}, user_id=SECRET, session_id=SECRET)
        await memory.add_message(session, SECRET, SECRET, {"k": SECRET}, message_id=SECRET)
        await asyncio.gather(*(memory.add_message(session, "user", SECRET) for _ in range(20)))
        await memory.get_history(session)
        await memory.get_sessions(user_id=SECRET, metadata={SECRET: SECRET})
        await memory.update_session(session, title=SECRET, merge_metadata={SECRET: SECRET})
        await memory.fork_session(session, through=SECRET)
        await memory.pop_message(session)
        await memory.delete_sessions(user_id=SECRET)
        await wait_until(lambda: _all_planned(memory))
    lines = messages(log, logging.WARNING, "slow_calls")
    slow = {line.rpartition(": ")[2].split()[0] for line in lines if line.startswith("slow call on ")}
    assert slow == {
        *("create_session", "add_message", "get_history", "get_sessions", "update_session", "fork_session"),
        *("pop_message", "delete_sessions"),
    }
    plans = {line.split(" on ")[0].split()[-1]: line for line in lines if line.startswith("plan of the slow ")}
    assert plans.keys() >= slow - {"fork_session"}
    assert "messages" in plans["get_history"]
    assert not [line for line in lines if "cannot be read" in line]
    assert SECRET not in log.text


async def _all_planned(memory: Own) -> bool:
    return not memory._life.observers._slow._tasks  # type: ignore[union-attr]


@pytest.mark.asyncio
async def test_the_plan_of_a_statement_is_logged_once_a_minute(
    log: pytest.LogCaptureFixture, open_slow_memory: Callable[[], Own], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is slow all the time is not made slower by plans."""
    async with open_slow_memory() as memory:
        for _ in range(5):
            await memory.get_session("missing")
        await wait_until(lambda: _all_planned(memory))
        assert log.text.count("plan of the slow get_session ") == 1
        assert log.text.count("get_session took") == 5
        monkeypatch.setattr(slow_calls, "PLAN_SECONDS", 0.0)
        await memory.get_session("missing")
        await wait_until(lambda: _all_planned(memory))
        assert log.text.count("plan of the slow get_session ") == 2


@pytest.mark.asyncio
async def test_a_plan_that_cannot_be_read_is_said_and_harms_nothing(
    log: pytest.LogCaptureFixture, flux_memory_postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool has no connection for the plan: the call has its result all the same, and the next calls work."""
    monkeypatch.setattr(handle, "PLAN_DEADLINE_SECONDS", 0.05)
    dsn = flux_memory_postgres_dsn
    async with PostgresConversationMemory(dsn, max_size=1, min_size=1, slow_call_seconds=TINY_SECONDS) as memory:
        await memory.create_session(session_id="one")
        taken = await memory._pool.take()
        await wait_until(lambda: _all_planned(memory))
        memory._pool.put_back(taken)
        assert (await memory.get_session("one") or {})["id"] == "one"
    # On a busy machine, reading the plan of the other call may take longer than its deadline, too.
    refused = [line for line in messages(log, logging.WARNING, "slow_calls") if "no connection was free" in line]
    (line,) = refused
    assert line.startswith("the plan of the slow create_session on postgresql://")
    assert "cannot be read" in line
    assert "within 0.05 s" in line


@pytest.mark.asyncio
async def test_the_plan_of_a_wrong_statement_leaves_a_usable_pool(flux_memory_postgres_dsn: str) -> None:
    """The prepared statement of a plan that failed does not stand in the way of the next plan."""
    async with PostgresConversationMemory(flux_memory_postgres_dsn, max_size=1, min_size=1) as memory:
        await memory.ping()
        for _ in range(2):
            with pytest.raises(SchemaError, match="no_such_table"):
                await memory._explain({"SELECT id FROM no_such_table WHERE id = $1": None})
            (plan,) = await memory._explain({"SELECT id FROM sessions WHERE id = $1": None})
            assert "sessions" in plan


@pytest.mark.asyncio
async def test_closing_at_once_neither_waits_nor_complains(
    log: pytest.LogCaptureFixture, open_slow_memory: Callable[[], Own]
) -> None:
    """The last call of a program may be slow; its plan does not hold up the end, nor is it missed."""
    loop = asyncio.get_running_loop()
    memory = open_slow_memory()
    await memory.create_session()
    began = loop.time()
    await memory.close()
    await wait_until(lambda: _all_planned(memory))
    assert loop.time() - began < slow_calls.PLAN_DEADLINE_SECONDS
    assert "cannot be read" not in log.text


@pytest.mark.asyncio
async def test_a_borrowed_pool_has_plans_too(log: pytest.LogCaptureFixture, flux_memory_postgres_dsn: str) -> None:
    """The plan is read on a connection of the application's pool, which gets it back."""
    async with (
        asyncpg.create_pool(flux_memory_postgres_dsn, min_size=1, max_size=2) as pool,
        PostgresConversationMemory(pool=pool, slow_call_seconds=TINY_SECONDS) as memory,
    ):
        session = await memory.create_session()
        await memory.update_session(session, title=SECRET)
        await wait_until(lambda: _all_planned(memory))
        await memory.ping()
        await wait_until(lambda: _all_planned(memory))
    assert "plan of the slow update_session on a borrowed pool" in log.text
    assert "cannot be read" not in log.text
    assert SECRET not in log.text


@pytest.mark.asyncio
async def test_calls_below_the_threshold_are_not_logged(log: pytest.LogCaptureFixture, path: Path) -> None:
    """A threshold of a minute, or none, logs no ordinary call."""
    for seconds in (60.0, None):
        async with ConversationMemory(path, slow_call_seconds=seconds) as memory:
            await memory.ping()
    assert messages(log, logging.WARNING, "slow_calls") == []


@pytest.mark.asyncio
async def test_a_slow_call_that_fails_is_logged(log: pytest.LogCaptureFixture, path: Path) -> None:
    """The calls that end at their deadline are the slowest of all."""
    async with ConversationMemory(path, slow_call_seconds=0.2) as memory:
        await memory.create_session(session_id="one")
        with hold_lock(path, *WRITE_LOCK), deadline(0.4), pytest.raises(BackendUnavailableError):
            await memory.add_message("one", "user", "Hello")
    lines = messages(log, logging.WARNING, "slow_calls")
    assert [line for line in lines if line.startswith(f"slow call on {path}: add_message took ")]


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_a_wrong_threshold_is_refused(wrong: float, path: Path) -> None:
    """A mistake in the configuration shows at once, not as a missing log."""
    for open_memory in (ConversationMemory, lambda _, **kw: PostgresConversationMemory("postgresql://h/d", **kw)):
        with pytest.raises(InvalidInputError, match="slow_call_seconds"):
            open_memory(path, slow_call_seconds=wrong)


def test_the_settings_set_the_threshold(log: pytest.LogCaptureFixture, path: Path) -> None:
    """`create_memory()` passes the setting on."""

    async def use() -> None:
        async with create_memory(Settings(database_url=f"sqlite:///{path}", slow_call_seconds=TINY_SECONDS)) as memory:
            await memory.ping()

    asyncio.run(use())
    assert "ping took" in log.text


def test_an_application_without_logging_sees_nothing(path: Path) -> None:
    """The library never prints on its own: Python would print warnings of a logger without any handler."""
    program = (
        "import asyncio, sys; from flux_memory import ConversationMemory\n"
        "async def use():\n"
        "    async with ConversationMemory(sys.argv[1], slow_call_seconds=1e-9) as memory:\n"
        "        await memory.ping()\n"
        "asyncio.run(use())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
