"""Tests that acknowledged writes survive when the writing process is killed, terminated or cancelled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from fault_report import Fault
from fault_work import Store, on_both_backends, write_messages
from raw_postgres import fetch_rows

from flux_memory import Memory
from flux_memory.testkit.contract.processes import Child, Tell
from flux_memory.testkit.histories import History, Journal, Recorder
from flux_memory.testkit.timeouts import Timeouts

IDLE_IN_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND state LIKE 'idle in transaction%'
"""


def start_writing_child(store: Store, round_: int) -> Child:
    """Return a process whose tasks write forever."""

    async def work(open_handle: Callable[[], Memory], tell: Tell) -> None:
        journal = Journal(store.journal(round_) / f"{os.getpid()}.jsonl")
        await write_messages(open_handle(), journal, f"{round_}-{os.getpid()}", tasks=6, told=tell)

    return Child(store.open, work, Timeouts(), "a killed client")


@on_both_backends("kill -9 of the client")
def test_a_killed_process_loses_nothing_acknowledged(store: Store, fault: Fault) -> None:
    """Two processes write and are killed at random moments, one after the other: the store opens and has everything."""
    rng = random.Random(9)
    before = None
    for round_ in fault.rounds(8, 100):
        children = [start_writing_child(store, round_) for _ in range(2)]
        for child in children:
            child.go()
        for child in children:
            assert child.hear() == "begun"
        for child in children:
            # A random moment, not a state: the process may be anywhere.
            time.sleep(rng.uniform(0, 0.03))
            child.kill()
        before = store.judge(fault, round_, before)
        if round_ % 10 == 9:
            # Checking a store that grows without limit would take most of the time.
            asyncio.run(store.clear())
            before = None


@on_both_backends("SIGTERM of the client")
@pytest.mark.parametrize("handled", [False, True], ids=["default", "handled"])
def test_a_terminated_process_loses_nothing_acknowledged(store: Store, fault: Fault, handled: bool) -> None:
    """A program that catches the signal, cancels its work and closes the handle also ends, and cleanly."""

    async def work(open_handle: Callable[[], Memory], tell: Tell) -> None:
        journal = Journal(store.journal(round_) / "child.jsonl")
        memory = open_handle()
        writing = asyncio.ensure_future(write_messages(memory, journal, str(round_), tasks=6, told=tell))
        if handled:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, writing.cancel)
        try:
            await writing
        except asyncio.CancelledError:
            await memory.close()

    rng = random.Random(15)
    before = None
    for round_ in fault.rounds(4, 50):
        child = Child(store.open, work, Timeouts(), "a killed client")
        child.go()
        assert child.hear() == "begun"
        time.sleep(rng.uniform(0, 0.03))
        child._process.terminate()
        child.finish()
        assert child._process.exitcode == (0 if handled else -signal.SIGTERM)
        before = store.judge(fault, round_, before)


@on_both_backends("cancellation storm")
def test_a_storm_of_cancellations_leaves_nothing_half_done(store: Store, fault: Fault) -> None:
    """Half of all calls are cancelled at random moments: none is half stored, and no transaction or lock stays open."""

    async def storm(round_: int) -> None:
        rng = random.Random(round_)
        journal = Journal(store.journal(round_) / "storm.jsonl")
        async with store.open() as memory:
            recorder = Recorder(memory, journal, str(round_))
            session = await recorder.create_session()
            for _ in range(10):
                calls = [
                    asyncio.ensure_future(
                        recorder.add_messages(session, [{"role": "user", "content": "x" * 500}] * rng.randrange(2, 8))
                        if number % 2
                        else recorder.add_message(session, "user", "x")
                    )
                    for number in range(30)
                ]
                for call in rng.sample(calls, 15):
                    asyncio.get_running_loop().call_later(rng.uniform(0, 0.02), call.cancel)
                await asyncio.gather(*calls, return_exceptions=True)
            await recorder.add_message(session, "user", "afterwards")
            assert (await recorder.get_history(session))[-1]["content"] == "afterwards"
            if store.backend == "sqlite":
                with closing(sqlite3.connect(store.where, timeout=0, isolation_level=None)) as other:
                    other.execute("BEGIN EXCLUSIVE")
            else:
                assert (await fetch_rows(store.where, IDLE_IN_TRANSACTION))[0][0] == 0
        journal.close()
        history = History.read(store.journal(round_))
        assert {operation.error for operation in history.operations} <= {None, "CancelledError"}

    before = None
    for round_ in fault.rounds(2, 25):
        asyncio.run(storm(round_))
        before = store.judge(fault, round_, before)
