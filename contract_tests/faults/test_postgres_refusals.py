"""Tests refusals by the PostgreSQL server: time limits, deadlocks, conflicts, a read-only database, a full disk."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from fault_cluster import run_blocking, run_cluster
from fault_load import Load, check_history, run_round
from fault_report import Fault
from raw_postgres import connect, execute, fetch_rows, set_defaults
from small_disk import fill_disk, mount_small_disk
from waiting import wait_until

from flux_memory import BackendUnavailableError, OutcomeUnknownError, PostgresConversationMemory, deadline
from flux_memory.testkit.histories import History, Journal, Recorder
from flux_memory.testkit.servers.databases import with_database

# Other tests may run on the same server.
WAITING_FOR_LOCKS = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.mark.asyncio
@pytest.mark.fault("statement_timeout behind a lock", backend="postgres")
async def test_a_statement_timeout_ends_the_call_at_once(flux_empty_database: str, fault: Fault) -> None:
    """The administrator's limit applies: the error names it, nothing was stored, and the handle keeps working."""
    limited = set_defaults(flux_empty_database, statement_timeout="300ms")
    async with limited, PostgresConversationMemory(flux_empty_database) as memory:
        session = await memory.create_session()
        async with connect(flux_empty_database) as other, other.transaction():
            await other.execute("SELECT FROM sessions FOR UPDATE")
            began = asyncio.get_running_loop().time()
            with pytest.raises(BackendUnavailableError, match="statement timeout") as caught:
                await memory.add_message(session, "user", "too late")
            took = asyncio.get_running_loop().time() - began
        assert not isinstance(caught.value, OutcomeUnknownError)
        assert took < 5
        await memory.add_message(session, "user", "afterwards")
        assert [message["content"] for message in await memory.get_history(session)] == ["afterwards"]
        fault.add(acknowledged=1, call=took)


@pytest.mark.asyncio
@pytest.mark.fault("lock_timeout", backend="postgres")
async def test_a_lock_timeout_is_tried_again(flux_empty_database: str, fault: Fault) -> None:
    """Certainly not applied: the call is retried until the lock is free, and fails at its deadline otherwise."""
    limited = set_defaults(flux_empty_database, lock_timeout="50ms")
    async with limited, PostgresConversationMemory(flux_empty_database) as memory:
        session = await memory.create_session()
        async with connect(flux_empty_database) as other, other.transaction():
            await other.execute("SELECT FROM sessions FOR UPDATE")
            waiting = asyncio.create_task(memory.add_message(session, "user", "waited"))
            await asyncio.wait([waiting], timeout=0.4)
            assert not waiting.done()
            with deadline(0.5), pytest.raises(BackendUnavailableError):
                await memory.update_session_title(session, "too late")
        await waiting
        assert [message["content"] for message in await memory.get_history(session)] == ["waited"]
        fault.add(acknowledged=1)


@pytest.mark.asyncio
@pytest.mark.fault("idle_in_transaction_session_timeout", backend="postgres")
async def test_no_transaction_is_ever_left_open(flux_empty_database: str, fault: Fault, tmp_path: Path) -> None:
    """Limits of a fraction of a second on idle transactions and sessions fail no call."""
    limits = {"idle_in_transaction_session_timeout": "20ms", "idle_session_timeout": "30ms"}
    async with set_defaults(flux_empty_database, **limits):

        async def rest(load: Load) -> None:
            for _ in range(3):
                await asyncio.sleep(0.1)
                await load.wait_for_calls(10)

        for number in fault.rounds(1, 20):
            load = await run_round(fault, flux_empty_database, tmp_path / str(number), rest)
            assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("deadlock", backend="postgres")
async def test_the_victim_of_a_deadlock_is_tried_again(flux_empty_database: str, fault: Fault) -> None:
    """Another transaction and the memory wait for each other's rows: both succeed in the end."""
    async with (
        set_defaults(flux_empty_database, deadlock_timeout="20ms"),
        PostgresConversationMemory(flux_empty_database) as memory,
    ):
        await memory.count_sessions()
        for _ in fault.rounds(5, 50):
            # In a new file the rows are in the order of their creation, which is the order of clearing.
            await execute(flux_empty_database, "TRUNCATE sessions CASCADE")
            for id_ in ("first", "second", "third"):
                await memory.create_session(session_id=id_)
            async with connect(flux_empty_database) as theirs, connect(flux_empty_database) as other:
                # The memory waits last, so it detects the deadlock and becomes its victim.
                await theirs.execute("SET deadlock_timeout = '20s'")
                transaction = theirs.transaction()
                await transaction.start()
                await theirs.execute("SELECT FROM sessions WHERE id = 'third' FOR UPDATE")
                async with other.transaction():
                    await other.execute("SELECT FROM sessions WHERE id = 'second' FOR UPDATE")
                    clearing = asyncio.create_task(memory.clear_all())
                    await wait_until(partial(are_waiting, flux_empty_database, 1))
                    updating = asyncio.create_task(
                        theirs.execute("UPDATE sessions SET user_id = 'x' WHERE id = 'first'")
                    )
                    await wait_until(partial(are_waiting, flux_empty_database, 2))
                await updating
                assert not clearing.done()
                await transaction.commit()
            await clearing
            assert await memory.count_sessions() == 0
            fault.add(acknowledged=4)


async def are_waiting(dsn: str, number: int) -> bool:
    """Return whether this many connections to the database wait for a lock."""
    return len(await fetch_rows(dsn, WAITING_FOR_LOCKS)) == number


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "level",
    [
        pytest.param(level, marks=pytest.mark.fault(f"conflicts at {level}", backend="postgres"))
        for level in ("repeatable read", "serializable")
    ],
)
async def test_conflicts_of_stricter_transactions_are_tried_again(
    flux_empty_database: str, fault: Fault, tmp_path: Path, level: str
) -> None:
    """With a stricter default isolation, writers from two handles to one session all succeed."""
    async with set_defaults(flux_empty_database, default_transaction_isolation=level):

        async def crowd(load: Load) -> None:
            async with (
                PostgresConversationMemory(flux_empty_database) as one,
                PostgresConversationMemory(flux_empty_database) as two,
            ):
                await one.create_session(session_id="crowded")
                adds = [memory.add_message("crowded", "user", "x") for memory in (one, two) for _ in range(40)]
                for adding in asyncio.as_completed(adds):
                    await adding
                assert len(await two.get_history("crowded")) == 80
                await one.delete_session("crowded")
            await load.wait_for_calls(20)

        for number in fault.rounds(1, 20):
            load = await run_round(fault, flux_empty_database, tmp_path / str(number), crowd)
            assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("read-only by default", backend="postgres")
async def test_a_read_only_server_serves_reads(flux_empty_database: str, fault: Fault) -> None:
    """Opening and reading need no write; a write says why it fails, and works once the server accepts writes."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        session = await memory.create_session("kept")
        await memory.add_message(session, "user", "kept")
        read_only = set_defaults(flux_empty_database, default_transaction_read_only="on")
        async with read_only, PostgresConversationMemory(flux_empty_database) as reader:
            assert [message["content"] for message in await reader.get_history(session)] == ["kept"]
            assert (await reader.get_sessions())[0]["title"] == "kept"
            for refused in (
                reader.add_message(session, "user", "x"),
                reader.add_messages(session, [{"role": "user", "content": "x"}] * 2),
                reader.create_session(),
                reader.update_session_title(session, "x"),
                reader.delete_session(session),
                reader.clear_all(),
            ):
                with pytest.raises(BackendUnavailableError, match="read-only; connect to the primary") as caught:
                    await refused
                assert not isinstance(caught.value, OutcomeUnknownError)
        await write_through_new_handle(flux_empty_database, session)
        assert [message["content"] for message in await memory.get_history(session)] == ["kept", "afterwards"]
        fault.add(acknowledged=3)


async def write_through_new_handle(dsn: str, session: str) -> None:
    """Write through a new handle."""
    async with PostgresConversationMemory(dsn) as memory:
        await memory.add_message(session, "user", "afterwards")


async def add_in_order(memory: Recorder, session: str, contents: Iterable[str]) -> None:
    """Add one message after the other."""
    for content in contents:
        await memory.add_message(session, "user", content)


@pytest.mark.asyncio
@pytest.mark.fault("data disk full", backend="postgres")
async def test_a_full_data_disk(fault: Fault, tmp_path: Path) -> None:
    """A message that does not fit is refused and not half stored; later ones are stored by the same handle."""
    for number in fault.rounds(1, 10):
        await fill_the_data_disk(fault, tmp_path / f"{number}.jsonl")


async def fill_the_data_disk(fault: Fault, file: Path) -> None:
    with mount_small_disk("48M", for_server=True) as disk, run_cluster(durable=False) as own_server:
        await execute(
            own_server.admin_dsn,
            f"CREATE TABLESPACE small LOCATION '{disk}'",
            "CREATE DATABASE full_disk TABLESPACE small",
        )
        dsn = with_database(own_server.admin_dsn, "full_disk")
        journal = Journal(file)
        async with PostgresConversationMemory(dsn) as inner:
            memory = Recorder(inner, journal, "writer")
            session = await memory.create_session()
            filler = fill_disk(disk, leave=2_000_000)
            # Random digits, because the server compresses text.
            contents = [secrets.token_hex(100_000) for _ in range(40)]
            with pytest.raises(BackendUnavailableError, match="disk is full; nothing was stored") as caught:
                await add_in_order(memory, session, contents)
            assert not isinstance(caught.value, OutcomeUnknownError)
            with pytest.raises(BackendUnavailableError, match="disk is full"):
                await memory.add_messages(session, [{"role": "user", "content": content} for content in contents[:5]])
            assert await memory.get_history(session)
            filler.unlink()
            await memory.add_message(session, "user", contents[0])
            assert (await memory.get_history(session))[-1]["content"] == contents[0]
        journal.close()
        await check_history(fault, dsn, History.read(file))


@pytest.mark.asyncio
@pytest.mark.fault("WAL disk full", backend="postgres")
async def test_a_full_wal_disk(fault: Fault, tmp_path: Path) -> None:
    """The server panics; after a restart with free space it has every acknowledged message."""
    for number in fault.rounds(1, 10):
        await fill_the_wal_disk(fault, tmp_path / f"{number}.jsonl")


async def fill_the_wal_disk(fault: Fault, file: Path) -> None:
    with mount_small_disk("96M", for_server=True) as disk, run_cluster() as own_server:
        await run_blocking(own_server.end, signal.SIGINT)
        own_server.run(f'cp -a "$1/pg_wal" {disk}/ && rm -r "$1/pg_wal" && ln -s {disk}/pg_wal "$1/pg_wal"', "postgres")
        await run_blocking(own_server.start)
        journal = Journal(file)
        async with PostgresConversationMemory(own_server.dsn) as inner:
            memory = Recorder(inner, journal, "writer")
            session = await memory.create_session()
            filler = fill_disk(disk, leave=4_000_000)
            with deadline(2), pytest.raises(BackendUnavailableError):
                await add_in_order(memory, session, (secrets.token_hex(100_000) for _ in range(300)))
            filler.unlink()
            if not await run_blocking(own_server.is_up):
                await run_blocking(own_server.start)
            await memory.add_message(session, "user", "afterwards")
            assert (await memory.get_history(session))[-1]["content"] == "afterwards"
        journal.close()
        await check_history(fault, own_server.dsn, History.read(file))
