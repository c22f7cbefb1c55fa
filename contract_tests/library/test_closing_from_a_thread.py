"""`close()` in one thread, while another one starts or stops the handle's home loop, is bounded and leaks nothing."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from waiting import becomes_true

from flux_memory import ConversationMemory, MemoryClosedError


def test_closing_does_not_wait_for_a_home_loop_that_has_stopped(tmp_path: Path) -> None:
    """The home loop stops after it was asked to close the handle, and before it has begun."""
    memory = ConversationMemory(tmp_path / "chat.db", timeout=60)
    home = asyncio.new_event_loop()
    home.run_until_complete(memory.create_session())
    blocked, release = threading.Event(), threading.Event()

    def stop() -> None:
        blocked.set()
        release.wait()
        home.stop()

    home.call_soon(stop)
    thread = threading.Thread(target=home.run_forever)
    thread.start()
    blocked.wait()

    async def close() -> None:
        closing = asyncio.create_task(memory.close())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
        release.set()
        await asyncio.wait_for(closing, 20)

    asyncio.run(close())
    thread.join()
    home.close()
    assert memory._life.resource is None


def test_a_first_call_that_races_with_a_close_leaves_nothing_open(tmp_path: Path) -> None:
    """The call has passed the check that the handle is open, and chooses its home while `close()` is under way."""
    path = tmp_path / "chat.db"
    memory = ConversationMemory(path)
    life = memory._life
    checked, homeless = threading.Event(), threading.Event()
    is_home, close_here = life.is_home, life._close_here

    def choose_late() -> bool:
        if threading.current_thread() is caller:
            checked.set()
            homeless.wait(20)
        return is_home()

    async def close_late(end: float) -> None:
        homeless.set()
        await asyncio.to_thread(becomes_true, lambda: life._opening is not None or not caller.is_alive())
        await close_here(end)

    def call() -> None:
        with pytest.raises(MemoryClosedError):
            asyncio.run(memory.count_sessions())

    life.is_home, life._close_here = choose_late, close_late  # type: ignore[method-assign]
    caller = threading.Thread(target=call)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        caller.start()
        checked.wait(20)
        asyncio.run(memory.close())
    caller.join(20)
    assert not caller.is_alive()
    assert life.resource is None


class Exiting(dict[str, Any]):
    """Metadata that exits when it is encoded."""

    def items(self) -> Any:
        raise SystemExit


def test_a_system_exit_in_a_call_leaves_the_thread_of_the_loop_alone(tmp_path: Path) -> None:
    """The caller gets the exit, other calls go on, and closing ends every thread."""
    before = set(threading.enumerate())
    memory = ConversationMemory(tmp_path / "chat.db")
    asyncio.run(memory.create_session())
    asyncio.run(memory.create_session())
    with pytest.raises(SystemExit):
        asyncio.run(memory.create_session(metadata=Exiting(lang="ko")))
    assert asyncio.run(memory.count_sessions()) == 2
    asyncio.run(memory.close())
    assert set(threading.enumerate()) <= before
