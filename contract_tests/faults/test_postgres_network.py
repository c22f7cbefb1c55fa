"""Tests a network to PostgreSQL that refuses, resets, swallows, delays, or cuts at any byte."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fault_load import Load, check_history, run_round
from fault_outcomes import measure_call
from fault_report import Fault
from postgres_proxy import PostgresProxy
from raw_postgres import OTHER_CLIENTS, fetch_rows, wait_until_none
from waiting import becomes_true

from flux_memory import (
    BackendUnavailableError,
    OutcomeUnknownError,
    PostgresConversationMemory,
    deadline,
)
from flux_memory.backends.postgres import pool as postgres_pool
from flux_memory.testkit.histories import History, Journal, Recorder

STAGES: Any = ("startup", "authentication", "parse", "bind", "execute", "sync")


@pytest.mark.asyncio
@pytest.mark.fault("connection refused under load", backend="postgres")
async def test_calls_wait_while_connections_are_refused(
    proxy: PostgresProxy, flux_empty_database: str, fault: Fault, tmp_path: Path
) -> None:
    """Connections are lost and new ones refused: calls wait until the server is back, and none fails."""

    async def refuse(_: Load) -> None:
        proxy.refuse()
        proxy.reset()
        await asyncio.sleep(1)
        proxy.heal()

    for number in fault.rounds(2, 50):
        load = await run_round(fault, proxy.dsn, tmp_path / str(number), refuse, stored_at=flux_empty_database)
        assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("connection refused past the deadline", backend="postgres")
async def test_refused_until_the_deadline(proxy: PostgresProxy, flux_empty_database: str, fault: Fault) -> None:
    """The error names the cause and says that nothing was stored; a handle that never connected gives up sooner."""
    async with PostgresConversationMemory(proxy.dsn, timeout=20) as memory:
        session = await memory.create_session()
        proxy.refuse()
        proxy.reset()
        await wait_until_none(flux_empty_database, OTHER_CLIENTS)
        with deadline(1):
            took, error = await measure_call(memory.add_message(session, "user", "x"), 2)
        assert isinstance(error, BackendUnavailableError)
        assert not isinstance(error, OutcomeUnknownError)
        assert "nothing listens there" in str(error)
        assert "Nothing was stored" in str(error)
        async with PostgresConversationMemory(proxy.dsn, timeout=10) as other:
            sooner, error = await measure_call(other.count_sessions(), 4)
        assert isinstance(error, BackendUnavailableError)
        proxy.heal()
        assert await memory.get_history(session) == []
        fault.add(acknowledged=1, call=max(took, sooner))


@pytest.mark.asyncio
@pytest.mark.fault("connections reset under load", backend="postgres")
async def test_calls_survive_repeated_resets(
    proxy: PostgresProxy, flux_empty_database: str, fault: Fault, tmp_path: Path
) -> None:
    """Calls in flight are retried with the same ids."""

    async def reset(load: Load) -> None:
        for _ in range(10):
            proxy.reset()
            await load.wait_for_calls(10)

    for number in fault.rounds(2, 50):
        load = await run_round(fault, proxy.dsn, tmp_path / str(number), reset, stored_at=flux_empty_database)
        assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "stage", [pytest.param(one, marks=pytest.mark.fault(f"black hole at {one}", backend="postgres")) for one in STAGES]
)
async def test_a_black_hole_at_each_stage(
    proxy: PostgresProxy, flux_empty_database: str, fault: Fault, tmp_path: Path, stage: Any
) -> None:
    """Every call ends within a second of its deadline or cancellation; afterwards the handle works again."""
    journal = Journal(tmp_path / "journal.jsonl")
    async with PostgresConversationMemory(flux_empty_database) as direct:
        made = Recorder(direct, journal, "before")
        session = await made.create_session()
        await made.add_message(session, "user", "before")
    async with PostgresConversationMemory(proxy.dsn, timeout=1, min_size=1) as inner:
        memory = Recorder(inner, journal, "through")
        if stage in {"parse", "bind", "execute", "sync"}:
            await memory.get_history(session)
        proxy.silence_at(stage)
        for call in (
            lambda: memory.add_message(session, "user", "x"),
            lambda: memory.add_messages(session, [{"role": "user", "content": "x"}] * 3),
            lambda: memory.get_history(session),
            lambda: memory.update_session_title(session, "x"),
        ):
            took, error = await measure_call(call(), 2)
            assert isinstance(error, BackendUnavailableError)
            if stage in {"startup", "authentication"}:
                assert not isinstance(error, OutcomeUnknownError)
            fault.add(rounds=0, call=took)
        for adding in [asyncio.create_task(memory.add_message(session, "user", "cancelled")) for _ in range(3)]:
            await asyncio.wait([adding], timeout=0.1)
            adding.cancel()
            await measure_call(adding, 1)
        proxy.heal()
        # A handle that never connected may learn only now that its last attempt failed.
        await measure_call(inner.count_sessions(), 2)
        with deadline(20):
            await memory.add_message(session, "user", "afterwards")
            assert (await memory.get_history(session))[-1]["content"] == "afterwards"
        proxy.silence()
        await measure_call(inner.close(), 3)
    journal.close()
    await check_history(fault, flux_empty_database, History.read(tmp_path / "journal.jsonl"))


@pytest.mark.asyncio
@pytest.mark.fault("idle connections forgotten by a firewall", backend="postgres")
async def test_idle_connections_that_were_forgotten(
    proxy: PostgresProxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies no longer arrive on old connections: the handle probes them first, and no call fails."""
    monkeypatch.setattr(postgres_pool, "_SUSPECT_SECONDS", 0.05)
    async with PostgresConversationMemory(proxy.dsn, min_size=3) as memory:
        session = await memory.create_session()
        for number in fault.rounds(2, 50):
            await asyncio.gather(*(memory.count_sessions() for _ in range(6)))
            await asyncio.sleep(0.1)
            proxy.forget()
            took, error = await measure_call(memory.add_message(session, "user", str(number)), 3)
            assert error is None
            fault.add(acknowledged=1, call=took, outage=took)


@pytest.mark.asyncio
@pytest.mark.fault("first of two hosts is a black hole", backend="postgres")
async def test_a_host_that_is_gone_does_not_use_up_the_deadline(flux_empty_database: str, fault: Fault) -> None:
    """The first host of the DSN swallows packets, and the second one answers in time."""
    with PostgresProxy(flux_empty_database) as gone, PostgresProxy(flux_empty_database) as there:
        dsn = gone.dsn.replace(f":{gone.port}/", f":{gone.port},127.0.0.1:{there.port}/")
        async with PostgresConversationMemory(dsn, timeout=6, min_size=1) as memory:
            session = await memory.create_session()
            gone.silence()
            with deadline(1):
                _, error = await measure_call(memory.add_message(session, "user", "x", message_id="m"), 2)
            assert isinstance(error, OutcomeUnknownError)
            took, error = await measure_call(memory.add_message(session, "user", "x", message_id="m"), 5)
            assert error is None
            assert there.connections
            assert await fetch_rows(flux_empty_database, "SELECT id FROM messages") == [("m",)]
            fault.add(acknowledged=1, call=took, outage=took)


@pytest.mark.asyncio
@pytest.mark.fault("a few bytes at a time", backend="postgres")
async def test_a_slow_network(proxy: PostgresProxy, flux_empty_database: str, fault: Fault, tmp_path: Path) -> None:
    """Slow is not broken: calls that end before their deadline succeed."""
    journal = Journal(tmp_path / "journal.jsonl")
    proxy.slow(20_000)
    async with PostgresConversationMemory(proxy.dsn, min_size=1) as inner:
        memory = Recorder(inner, journal, "slow")
        session = await memory.create_session()
        await asyncio.gather(*(memory.add_message(session, "user", f"{n}" * 100) for n in range(5)))
        assert len(await memory.get_history(session)) == 5
    journal.close()
    await check_history(fault, flux_empty_database, History.read(tmp_path / "journal.jsonl"))


@pytest.mark.asyncio
@pytest.mark.fault("connection refused to many at once", backend="postgres")
async def test_each_of_many_callers_gets_its_own_outcome(
    proxy: PostgresProxy, flux_empty_database: str, fault: Fault
) -> None:
    """Adds that would share a statement: none was sent, so each error says that nothing was stored."""
    async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
        sessions = [await memory.create_session() for _ in range(4)]
        proxy.refuse()
        proxy.reset()
        await wait_until_none(flux_empty_database, OTHER_CLIENTS)
        with deadline(0.8):
            adds = [memory.add_message(sessions[number % 4], "user", f"{number}") for number in range(40)]
            outcomes = await asyncio.wait_for(asyncio.gather(*adds, return_exceptions=True), 2)
        assert {type(outcome) for outcome in outcomes} == {BackendUnavailableError}
        assert all("Nothing was stored" in str(outcome) for outcome in outcomes)
        proxy.heal()
        assert await fetch_rows(flux_empty_database, "SELECT FROM messages") == []
        await asyncio.gather(*(memory.add_message(session, "user", "afterwards") for session in sessions))
        fault.add(acknowledged=8)


@pytest.mark.asyncio
@pytest.mark.fault("cut after any byte of a call", backend="postgres")
async def test_cut_after_each_byte_of_a_call(proxy: PostgresProxy, flux_empty_database: str, fault: Fault) -> None:
    """After a break at any byte the call succeeds, and its message is stored once."""
    async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
        session = await memory.create_session()
        added = 0
        places = fault.rounds(40, 400)
        for place in places:
            await memory.get_history(session, 1)
            proxy.cut(after=place * 1200 // len(places))
            await memory.add_message(session, "user", str(added), {"n": added})
            added += 1
            await memory.add_messages(session, [{"role": "user", "content": str(added + n)} for n in range(2)])
            added += 2
        contents = [message["content"] for message in await memory.get_history(session)]
        assert contents == [str(n) for n in range(added)]
        numbers = await fetch_rows(flux_empty_database, "SELECT seq FROM messages ORDER BY seq")
        assert numbers == [(n + 1,) for n in range(added)]
        fault.add(rounds=len(places), acknowledged=2 * len(places))


@pytest.mark.asyncio
@pytest.mark.fault("cut after any byte of the first call", backend="postgres")
async def test_cut_after_each_byte_of_an_opening(proxy: PostgresProxy, fault: Fault) -> None:
    """Also while connecting, authenticating and reading the schema."""
    places = fault.rounds(25, 250)
    for place in places:
        proxy.cut(after=place * 4000 // len(places))
        async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
            assert await memory.create_session(session_id=f"s{place}") == f"s{place}"
            assert await memory.count_sessions() == place + 1
    fault.add(rounds=len(places), acknowledged=2 * len(places))


@pytest.mark.asyncio
@pytest.mark.fault("cancellation storm", backend="postgres")
async def test_a_storm_of_cancellations(
    proxy: PostgresProxy, flux_empty_database: str, fault: Fault, tmp_path: Path
) -> None:
    """Calls cancelled at any moment are stored as a whole or not at all, and hold neither locks nor connections."""
    journal = Journal(tmp_path / "journal.jsonl")
    async with PostgresConversationMemory(proxy.dsn, max_size=4) as inner:
        memory = Recorder(inner, journal, "stormy")
        session = await memory.create_session()
        for turn in fault.rounds(60, 1000):
            calls = [
                asyncio.create_task(memory.add_message(session, "user", f"{turn}")),
                asyncio.create_task(memory.add_messages(session, [{"role": "user", "content": f"{turn}"}] * 3)),
                asyncio.create_task(memory.update_session_title(session, f"{turn}")),
                asyncio.create_task(memory.get_history(session)),
            ]
            await asyncio.wait(calls, timeout=turn % 20 / 4000)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await memory.add_message(session, "user", "afterwards")
        assert (await memory.get_history(session))[-1]["content"] == "afterwards"
        # The sockets of cancelled calls, and of the requests that cancel them on the server, close in the background.
        assert await asyncio.to_thread(becomes_true, lambda: proxy.connections <= 4)
        await wait_until_none(flux_empty_database, f"{OTHER_CLIENTS} AND state <> 'idle'")
    journal.close()
    await check_history(fault, flux_empty_database, History.read(tmp_path / "journal.jsonl"))
