"""Tests a SQLite memory whose event loop cancels every task, as applications and `asyncio.run` do at shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from original_application import read_rows

from flux_memory import ConversationMemory, MemoryClosedError

TURNS = 24


async def cancel_all_after(turns: int) -> None:
    """Let the loop run this many turns, every other time with a pause, then cancel every task but this one."""
    for turn in range(turns):
        await asyncio.sleep(0.0005 * (turn % 2))
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@asynccontextmanager
async def assert_no_thread_left() -> AsyncIterator[None]:
    """Check that each thread started in the block ends."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()


@pytest.mark.asyncio
@pytest.mark.parametrize("opened", [False, True])
async def test_a_handle_works_after_every_task_was_cancelled(path: Path, opened: bool) -> None:
    """At each turn of opening, reading and writing: the next call works, and acknowledged writes are stored."""
    acknowledged: list[str] = []

    async def use(number: int) -> None:
        await memory.create_session(session_id=f"{turn} {number}")
        acknowledged.append(await memory.add_message(f"{turn} {number}", "user", "x", message_id=f"{turn} {number}"))
        assert len(await memory.get_history(f"{turn} {number}")) == 1

    async with assert_no_thread_left():
        for turn in range(TURNS):
            async with ConversationMemory(path, timeout=20) as memory:
                if opened:
                    await memory.count_sessions()
                calls = [asyncio.create_task(use(number)) for number in range(8)]
                await cancel_all_after(turn)
                # At once, while the cancelled tasks are still ending.
                saved = await memory.create_session(session_id=f"saved {turn}")
                assert await memory.get_session(saved) is not None
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}
    stored = [id_ for (id_,) in read_rows(path, "SELECT id FROM messages")]
    assert set(acknowledged) <= set(stored)
    assert len(set(stored)) == len(stored)
    assert read_rows(path, "SELECT count(*) FROM sessions WHERE id LIKE 'saved%'") == [(TURNS,)]


@pytest.mark.asyncio
async def test_a_handle_closes_after_its_close_was_cancelled(path: Path) -> None:
    """At each turn of `close()`, with and without calls: the next `close()` closes the file and ends the thread."""
    async with assert_no_thread_left():
        for turn in range(TURNS):
            memory = ConversationMemory(path, timeout=20)
            if turn % 3:
                await memory.count_sessions()
            calls: list[asyncio.Task[Any]] = [asyncio.create_task(memory.create_session()) for _ in range(turn % 4)]
            await asyncio.sleep(0)
            calls += [asyncio.create_task(memory.close()) for _ in range(2)]
            await cancel_all_after(turn)
            async with asyncio.timeout(10):
                await memory.close()
                await asyncio.gather(*calls, return_exceptions=True)
            assert memory._life.resource is None
            with pytest.raises(MemoryClosedError):
                await memory.count_sessions()
    assert not path.with_name("chat.db-wal").exists()


def test_a_handle_that_its_loop_left_behind_can_be_closed(path: Path) -> None:
    """`asyncio.run` cancels a running `close()`; on another loop `close()` still ends the thread."""
    threads = set(threading.enumerate())
    memory = ConversationMemory(path, timeout=20)

    async def leave() -> None:
        await memory.create_session()
        closing = asyncio.create_task(memory.close())
        await asyncio.sleep(0)
        assert not closing.done()

    asyncio.run(leave())
    asyncio.run(memory.close())
    assert memory._life.resource is None
    assert set(threading.enumerate()) == threads
