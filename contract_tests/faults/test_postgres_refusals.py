"""The PostgreSQL server refuses: time limits, deadlocks, conflicts, a read-only database, a full disk."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from fault_cluster import cluster, meanwhile
from fault_load import Load, judge, through
from fault_report import Fault
from raw_postgres import by_default, connected, execute, rows
from small_disk import fill, small_disk
from waiting import until

from flux_memory import BackendUnavailableError, OutcomeUnknownError, PostgresConversationMemory, deadline
from flux_memory.testkit.histories import History, Journal, Recorder
from flux_memory.testkit.servers.databases import with_database

# Other tests may run on the same server.
WAITING_FOR_LOCKS = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.mark.asyncio
@pytest.mark.fault("statement_timeout behind a lock", backend="postgres")
async def test_a_statement_timeout_ends_the_call_at_once(flux_empty_database: str, fault: Fault) -> None:
    """The administrator's limit counts: the error names it, nothing was stored, and the handle goes on."""
    limited = by_default(flux_empty_database, statement_timeout="300ms")
    async with limited, PostgresConversationMemory(flux_empty_database) as memory:
        session = await memory.create_session()
        async with connected(flux_empty_database) as other, other.transaction():
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
    """Known not applied: the call is run again until the lock is free, and ends at its deadline if it never is."""
    limited = by_default(flux_empty_database, lock_timeout="50ms")
    async with limited, PostgresConversationMemory(flux_empty_database) as memory:
        session = await memory.create_session()
        async with connected(flux_empty_database) as other, other.transaction():
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
    """A limit on idle transactions and sessions of a fraction of a second disturbs nobody."""
    limits = {"idle_in_transaction_session_timeout": "20ms", "idle_session_timeout": "30ms"}
    async with by_default(flux_empty_database, **limits):

        async def rest(load: Load) -> None:
            for _ in range(3):
                await asyncio.sleep(0.1)
                await load.more(10)

        for number in fault.rounds(1, 20):
            load = await through(fault, flux_empty_database, tmp_path / str(number), rest)
            assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("deadlock", backend="postgres")
async def test_the_victim_of_a_deadlock_is_tried_again(flux_empty_database: str, fault: Fault) -> None:
    """Somebody else's transaction locks what we need while we hold what it needs: both end well."""
    async with (
        by_default(flux_empty_database, deadlock_timeout="20ms"),
        PostgresConversationMemory(flux_empty_database) as memory,
    ):
        await memory.count_sessions()
        for _ in fault.rounds(5, 50):
            # A new file, in which the rows are in the order they are made: clearing comes to them in that order.
            await execute(flux_empty_database, "TRUNCATE sessions CASCADE")
            for id_ in ("first", "second", "third"):
                await memory.create_session(session_id=id_)
            async with connected(flux_empty_database) as theirs, connected(flux_empty_database) as other:
                # We are the last to wait, so that we find the deadlock, and are its victim.
                await theirs.execute("SET deadlock_timeout = '20s'")
                transaction = theirs.transaction()
                await transaction.start()
                await theirs.execute("SELECT FROM sessions WHERE id = 'third' FOR UPDATE")
                async with other.transaction():
                    await other.execute("SELECT FROM sessions WHERE id = 'second' FOR UPDATE")
                    clearing = asyncio.create_task(memory.clear_all())
                    await until(partial(waiting_for_locks, flux_empty_database, 1))
                    updating = asyncio.create_task(theirs.execute("UPDATE sessions SET title = 'x' WHERE id = 'first'"))
                    await until(partial(waiting_for_locks, flux_empty_database, 2))
                await updating
                assert not clearing.done()
                await transaction.commit()
            await clearing
            assert await memory.count_sessions() == 0
            fault.add(acknowledged=4)


async def waiting_for_locks(dsn: str, number: int) -> bool:
    """Tell whether so many connections to the database wait for a lock."""
    return len(await rows(dsn, WAITING_FOR_LOCKS)) == number


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
    """Where the database's default is stricter, writers from two handles to one session all succeed."""
    async with by_default(flux_empty_database, default_transaction_isolation=level):

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
            await load.more(20)

        for number in fault.rounds(1, 20):
            load = await through(fault, flux_empty_database, tmp_path / str(number), crowd)
            assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("read-only by default", backend="postgres")
async def test_a_read_only_server_serves_reads(flux_empty_database: str, fault: Fault) -> None:
    """Opening and reading need no write; a write says why not, and works when the server takes writes again."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        session = await memory.create_session("kept")
        await memory.add_message(session, "user", "kept")
        read_only = by_default(flux_empty_database, default_transaction_read_only="on")
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
        await reader_after(flux_empty_database, session)
        assert [message["content"] for message in await memory.get_history(session)] == ["kept", "afterwards"]
        fault.add(acknowledged=3)


async def reader_after(dsn: str, session: str) -> None:
    """A new handle writes."""
    async with PostgresConversationMemory(dsn) as memory:
        await memory.add_message(session, "user", "afterwards")


async def add_all(memory: Recorder, session: str, contents: Iterable[str]) -> None:
    """Add one message after the other."""
    for content in contents:
        await memory.add_message(session, "user", content)


@pytest.mark.asyncio
@pytest.mark.fault("data disk full", backend="postgres")
async def test_a_full_data_disk(fault: Fault, tmp_path: Path) -> None:
    """What does not fit is refused and not half stored; what fits later is stored, on the same handle."""
    for number in fault.rounds(1, 10):
        await fill_the_data_disk(fault, tmp_path / f"{number}.jsonl")


async def fill_the_data_disk(fault: Fault, file: Path) -> None:
    with small_disk("48M", for_server=True) as disk, cluster(durable=False) as own:
        await execute(
            own.admin_dsn, f"CREATE TABLESPACE small LOCATION '{disk}'", "CREATE DATABASE full_disk TABLESPACE small"
        )
        dsn = with_database(own.admin_dsn, "full_disk")
        journal = Journal(file)
        async with PostgresConversationMemory(dsn) as inner:
            memory = Recorder(inner, journal, "writer")
            session = await memory.create_session()
            filler = fill(disk, leave=2_000_000)
            # Of random digits, or it would be compressed.
            contents = [secrets.token_hex(100_000) for _ in range(40)]
            with pytest.raises(BackendUnavailableError, match="disk is full; nothing was stored") as caught:
                await add_all(memory, session, contents)
            assert not isinstance(caught.value, OutcomeUnknownError)
            with pytest.raises(BackendUnavailableError, match="disk is full"):
                await memory.add_messages(session, [{"role": "user", "content": content} for content in contents[:5]])
            assert await memory.get_history(session)
            filler.unlink()
            await memory.add_message(session, "user", contents[0])
            assert (await memory.get_history(session))[-1]["content"] == contents[0]
        journal.close()
        await judge(fault, dsn, History.read(file))


@pytest.mark.asyncio
@pytest.mark.fault("WAL disk full", backend="postgres")
async def test_a_full_wal_disk(fault: Fault, tmp_path: Path) -> None:
    """The server goes down in a panic; what it had acknowledged is there when it comes back with room to write."""
    for number in fault.rounds(1, 10):
        await fill_the_wal_disk(fault, tmp_path / f"{number}.jsonl")


async def fill_the_wal_disk(fault: Fault, file: Path) -> None:
    with small_disk("96M", for_server=True) as disk, cluster() as own:
        await meanwhile(own.end, signal.SIGINT)
        own.run(f'cp -a "$1/pg_wal" {disk}/ && rm -r "$1/pg_wal" && ln -s {disk}/pg_wal "$1/pg_wal"', "postgres")
        await meanwhile(own.start)
        journal = Journal(file)
        async with PostgresConversationMemory(own.dsn) as inner:
            memory = Recorder(inner, journal, "writer")
            session = await memory.create_session()
            filler = fill(disk, leave=4_000_000)
            with deadline(2), pytest.raises(BackendUnavailableError):
                await add_all(memory, session, (secrets.token_hex(100_000) for _ in range(300)))
            filler.unlink()
            if not await meanwhile(own.is_up):
                await meanwhile(own.start)
            await memory.add_message(session, "user", "afterwards")
            assert (await memory.get_history(session))[-1]["content"] == "afterwards"
        journal.close()
        await judge(fault, own.dsn, History.read(file))
