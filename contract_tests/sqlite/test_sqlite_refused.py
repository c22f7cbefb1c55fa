"""Tests that a refused write on SQLite is not stored: deadlines, stalls, locks, cancellations, stray exceptions."""

from __future__ import annotations

import asyncio
import ctypes
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Final

import pytest
from original_application import read_rows
from raw_sqlite import execute_in_file, run_on_worker
from waiting import wait_until

from flux_memory import BackendUnavailableError, ConversationMemory, FluxMemoryError, OutcomeUnknownError, deadline

SESSION: Final = "one"
ENDLESS: Final = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
LOCKER: Final = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
for turn in range(10**6):
    db.execute("BEGIN EXCLUSIVE")
    time.sleep((0.005, 0.05, 0.3)[turn % 3])
    db.execute("COMMIT")
    time.sleep((0.005, 0.05)[turn % 2])
"""


@contextmanager
def lock_repeatedly(path: Path) -> Iterator[None]:
    """Let another process take and release the file's lock repeatedly."""
    with subprocess.Popen([sys.executable, "-c", LOCKER, str(path)]) as process:
        yield
        process.kill()


class JudgedCalls:
    """The outcome of each call, to be checked against the stored data."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self._told: defaultdict[object, list[str]] = defaultdict(list)

    async def add(
        self, memory: ConversationMemory, content: str, seconds: float, cancel_after: float | None = None
    ) -> None:
        """Add a message under a deadline, and cancel the call after `cancel_after` seconds."""
        try:
            with deadline(seconds):
                async with asyncio.timeout(cancel_after):
                    await memory.add_message(SESSION, "user", content)
        except OutcomeUnknownError:
            self.of[content] = "unknown"
        except (FluxMemoryError, MemoryError):
            self.of[content] = "refused"
        except TimeoutError:
            self.of[content] = "cancelled"
        else:
            self.of[content] = "acknowledged"
            self._told[asyncio.current_task()].append(content)

    def judge(self, path: Path) -> Counter[str]:
        """Return the number of calls with each outcome, after checking that each outcome is true."""
        stored = [content for (content,) in read_rows(path, "SELECT content FROM messages ORDER BY seq")]
        place = {content: number for number, content in enumerate(stored)}
        assert len(place) == len(stored), "stored twice"
        assert [content for content, fate in self.of.items() if fate == "refused" and content in place] == []
        assert [content for content, fate in self.of.items() if fate == "acknowledged" and content not in place] == []
        for contents in self._told.values():
            assert contents == sorted(contents, key=place.__getitem__)
        return Counter(self.of.values())


@pytest.mark.asyncio
@pytest.mark.parametrize("locked", [False, True])
async def test_refused_is_not_stored_beside_any_deadlines(memory: ConversationMemory, path: Path, locked: bool) -> None:
    """Deadlines of 1 ms to 4 s, cancellations, a stalled loop, another process's locks: each answer is true."""
    chance, judged = random.Random(13), JudgedCalls()
    end = time.monotonic() + 3

    async def work(number: int) -> None:
        calls = 0
        while time.monotonic() < end:
            calls += 1
            cancel_after = chance.choice((None, None, None, 0.001, 0.05))
            await judged.add(memory, f"{number} {calls}", chance.choice((0.001, 0.02, 0.2, 4)), cancel_after)

    async def stall() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(0.05)
            time.sleep(chance.choice((0.01, 0.03, 0.6)))  # noqa: ASYNC251 - the stall

    with lock_repeatedly(path) if locked else nullcontext():
        await asyncio.gather(*(work(number) for number in range(40)), stall())
    counts = judged.judge(path)
    assert counts["acknowledged"]
    assert counts["refused"]
    assert counts["cancelled"]


@pytest.mark.asyncio
async def test_an_answer_that_a_stalled_loop_is_late_to_hear_is_heard(memory: ConversationMemory, path: Path) -> None:
    """The deadlines pass during the stall; writes that the thread stored meanwhile are acknowledged."""
    judged = JudgedCalls()
    calls = [asyncio.create_task(judged.add(memory, str(number), 1.5)) for number in range(80)]
    for _ in range(4):
        await asyncio.sleep(0)
    time.sleep(2)  # noqa: ASYNC251 - the stall
    await asyncio.gather(*calls)
    assert judged.judge(path) == {"acknowledged": 80}


@pytest.mark.asyncio
async def test_writes_that_wait_for_a_lock_cost_others_nothing(memory: ConversationMemory, path: Path) -> None:
    """Reads continue beside 4,000 writes; cancelled ones end at once and are not stored, the others are."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with deadline(60):
            writes = [asyncio.create_task(memory.add_message(SESSION, "user", str(n))) for n in range(4000)]
        spent = [await run_on_worker(memory, lambda _: time.thread_time()) for _ in range(21)]
        # The thread tries for the lock between two reads. Visiting every waiting write would take 20 ms and more.
        assert spent[-1] - spent[0] < 20 * 0.005
        for write in writes[::2]:
            write.cancel()
        _, waiting = await asyncio.wait(writes[::2], timeout=5)
        assert not waiting
        other.execute("COMMIT")
    await asyncio.gather(*writes[1::2])
    stored = [content for (content,) in read_rows(path, "SELECT content FROM messages ORDER BY seq")]
    assert stored == [str(number) for number in range(1, 4000, 2)]


@pytest.mark.asyncio
@pytest.mark.parametrize("writes", [False, True])
async def test_a_patient_neighbour_keeps_no_answer_back(memory: ConversationMemory, path: Path, writes: bool) -> None:
    """A finished call gets its answer at once, beside a call that runs until its own deadline."""

    def run(db: sqlite3.Connection) -> None:
        if writes:
            db.execute("UPDATE session_details SET title = 'half done'")
        db.execute(ENDLESS).fetchall()

    worker = await memory._life.opened()
    with deadline(1):
        quick = asyncio.create_task(memory.add_message(SESSION, "user", "x") if writes else memory.count_sessions())
    patient = asyncio.create_task((worker.write if writes else worker.read)(run, 3, memory._life.timer))
    assert await quick
    assert not patient.done()
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        await patient
    assert await memory.count_sessions() == 2
    assert read_rows(path, "SELECT DISTINCT title FROM session_details") == [("",)]


@pytest.mark.asyncio
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, MemoryError])
async def test_an_exception_of_any_kind_ends_its_own_write(
    memory: ConversationMemory, path: Path, error: type[BaseException]
) -> None:
    """No transaction stays open, neighbours are stored, the event loop survives, and the caller gets the error."""

    def work(db: sqlite3.Connection) -> None:
        db.execute("UPDATE session_details SET title = 'half done'")
        raise error

    worker = await memory._life.opened()
    before = [asyncio.create_task(memory.add_message(SESSION, "user", str(n))) for n in range(3)]
    failing = asyncio.create_task(worker.write(work, 5, memory._life.timer))
    after = [asyncio.create_task(memory.add_message(SESSION, "user", str(n))) for n in range(3, 6)]
    (outcome,) = await asyncio.gather(failing, return_exceptions=True)
    if issubclass(error, Exception):
        assert isinstance(outcome, error)
    else:
        assert isinstance(outcome, BackendUnavailableError)
        assert error.__name__ in str(outcome)
        assert isinstance(outcome.__cause__, error)
    await asyncio.gather(*before, *after)
    # The lock is free, and no transaction is half done.
    execute_in_file(path, "UPDATE sessions SET user_id = 'another process'")
    assert read_rows(path, "SELECT content FROM messages ORDER BY seq") == [(str(number),) for number in range(6)]
    assert read_rows(path, "SELECT DISTINCT title FROM session_details") == [("",)]


@pytest.mark.asyncio
async def test_a_stray_exception_in_the_thread_breaks_no_promise(
    memory: ConversationMemory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception at any moment, even one that ends the thread: answers are true, and the handle keeps working."""
    # pytest reports the end of such a thread within that thread, where the next exception would hit it.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    chance, judged = random.Random(13), JudgedCalls()
    worker = await memory._life.opened()
    for turn in range(30):
        calls = [asyncio.create_task(judged.add(memory, f"{turn} {n}", 0.2)) for n in range(chance.choice((1, 5, 40)))]
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        time.sleep(chance.random() * 0.003)  # noqa: ASYNC251 - the thread works while the loop stands still
        assert worker._driver is not None
        thread = ctypes.c_ulong(worker._driver.thread.ident or 0)
        stray = chance.choice((SystemExit, KeyboardInterrupt, MemoryError))
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(stray))
        await asyncio.gather(*calls)

    async def goes_on() -> bool:
        content = f"afterwards {len(judged.of)}"
        await judged.add(memory, content, 0.5)
        return judged.of[content] == "acknowledged"

    # The last exception may be raised only when the thread wakes.
    await wait_until(goes_on)
    assert not await run_on_worker(memory, lambda db: db.in_transaction)
    judged.judge(path)
    assert threading.active_count() < 10
