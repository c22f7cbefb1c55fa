"""Forks beside threads that use SQLite: neither the child nor the child's children hang."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from flux_memory import ConversationMemory
from flux_memory.backends.sqlite import forks

LOCKED: Final = """
import asyncio, os, sys
from flux_memory import ConversationMemory

memory = ConversationMemory(sys.argv[1])
asyncio.run(memory.create_session())
with memory._life._lock:
    if (child := os.fork()) == 0:
        asyncio.run(memory.close())
        os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
asyncio.run(memory.close())
sys.exit(status)
"""
GRANDCHILD: Final = """
import asyncio, os, sys
from flux_memory import ConversationMemory

async def main():
    memories = [ConversationMemory(":memory:") for _ in range(20)]
    for memory in memories:
        await memory.create_session()
    if (child := os.fork()) == 0:
        if (grandchild := os.fork()) == 0:
            os._exit(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for memory in memories:
        await memory.close()
    return status

sys.exit(asyncio.run(main()))
"""


@pytest.mark.parametrize("script", [LOCKED, GRANDCHILD], ids=["lock", "grandchild"])
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(script: str, path: Path) -> None:
    """A child closes a handle that a thread of the parent was using, and forks as if the parent had no threads."""
    done = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.asyncio
async def test_an_opening_waits_for_a_fork_that_is_under_way() -> None:
    """Otherwise the child could inherit SQLite's own locks from a thread that it does not have."""
    async with ConversationMemory(":memory:") as memory:
        forks._pause_workers()
        try:
            opening = asyncio.create_task(memory.count_sessions())
            done, _ = await asyncio.wait([opening], timeout=0.5)
        finally:
            forks._release_workers()
        assert not done
        assert await opening == 0
