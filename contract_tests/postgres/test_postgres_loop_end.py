"""An event loop that ends while a handle is at work: the server's side is closed, and asyncio logs nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Final

import pytest
from raw_postgres import OPEN, wait_until_none

PROGRAM: Final = """
import asyncio, gc, sys, warnings
from flux_memory import PostgresConversationMemory, deadline

memory = PostgresConversationMemory(sys.argv[1], timeout=20)
tasks = []

def start(*calls):
    for task in map(asyncio.ensure_future, calls):
        # asyncio would log the failed call as this program's, if the call fails before the loop ends.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        tasks.append(task)

async def fill(count):
    session = await memory.create_session()
    start(*(memory.add_message(session, "user", str(n)) for n in range(count)))
    start(*(memory.get_history(session) for _ in range(count)))

async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)

async def main():
    {work}

asyncio.run(main())
print("the loop has ended", flush=True)
# The handle was not closed, which is a warning of its own.
warnings.simplefilter("ignore", ResourceWarning)
del memory
gc.collect()
"""
WORK: Final = {
    "while it opens": "start(memory.create_session()); await turns(3)",
    "while it connects": "start(*(memory.count_sessions() for _ in range(20))); await turns(40)",
    "before the first statement": "await fill(20)",
    "during statements": "await fill(20); await turns(5)",
    "during many statements": "await fill(200); await turns(30)",
    "while it closes": "await fill(20); start(memory.close()); await turns(1)",
    "beside a failed call": "await fill(3); start(memory.add_message('none', 'user', 'text')); await turns(20)",
    "when it is idle": "await memory.create_session()",
    "after it was closed": "await memory.create_session(); await memory.close()",
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_the_end_of_a_loop_is_silent(named_dsn: str, flux_postgres_dsn: str, work: str) -> None:
    """A program that ends in the middle of its calls prints no "Task was destroyed but it is pending"."""
    command = [sys.executable, "-X", "dev", "-c", PROGRAM.format(work=work), named_dsn]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    printed = [line for line in done.stderr.splitlines() if "Executing <" not in line]
    assert not printed, done.stderr
    assert done.stdout == "the loop has ended\n"
    asyncio.run(wait_until_none(flux_postgres_dsn, OPEN))
