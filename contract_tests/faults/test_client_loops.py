"""Tests event loops that are closed under an open handle, which works on, and forks, which get a clear error."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest
from fault_report import Fault
from fault_work import Store, on_both_backends

from flux_memory.testkit.histories import History

PREAMBLE: Final = """
import asyncio, gc, os, sys, time
sys.path[:0] = sys.argv[4:]
from pathlib import Path
from fault_work import Store
from flux_memory import FluxMemoryError
from flux_memory.testkit.histories import Journal, Recorder

store = Store(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
memory = store.open(timeout=8)
recorder = Recorder(memory, Journal(store.journal(0) / f"{os.getpid()}.jsonl"), "parent")
"""

CLOSED_LOOP: Final = (
    PREAMBLE
    + """
tasks = []

async def leave():
    session = await recorder.create_session(session_id="s")
    await recorder.add_message(session, "user", "stored")
    tasks.extend(asyncio.create_task(recorder.add_message(session, "user", str(number))) for number in range(20))
    for _ in range(int(len(sys.argv) % 3)):
        await asyncio.sleep(0)

first = asyncio.new_event_loop()
first.set_exception_handler(lambda loop, context: None)
first.run_until_complete(leave())
# Not asyncio.run(), which would cancel the running calls and let them end.
first.close()

asyncio.run(recorder.add_message("s", "user", "moved"))
print("moved")
asyncio.run(memory.close())
print("closed")
sys.stdout.flush()
# Destroying the running calls with their loop makes asyncio complain, which is the script's fault.
os._exit(0)
"""
)

FORKED: Final = (
    PREAMBLE
    + """
how = sys.argv[4]
loop = asyncio.new_event_loop()

async def work(text):
    await recorder.add_message("s", "user", text)

async def in_child():
    for used in (memory.count_sessions(), memory.add_message("s", "user", "forbidden")):
        try:
            await used
        except FluxMemoryError as error:
            print("refused:", error)
    await memory.close()
    async with store.open() as own:
        mine = Recorder(own, Journal(store.journal(0) / f"{os.getpid()}.jsonl"), "child")
        await mine.add_message("s", "user", "from the child")

def child():
    sys.stdout.flush()
    asyncio.set_event_loop(None)
    asyncio.run(in_child())
    sys.stdout.flush()

async def fork_while_running():
    background = [asyncio.create_task(work(str(number))) for number in range(20)]
    await asyncio.sleep(0)
    pid = os.fork()
    if pid == 0:
        # Awaits in the parent's loop, as a child that ignores the fork would.
        try:
            await memory.count_sessions()
        except FluxMemoryError as error:
            print("refused:", error)
        child()
        os._exit(0)
    await asyncio.gather(*background)
    return pid

loop.run_until_complete(recorder.create_session(session_id="s"))
loop.run_until_complete(work("before"))
if how == "running":
    pid = loop.run_until_complete(fork_while_running())
else:
    pid = os.fork()
    if pid == 0:
        child()
        # These objects belong to the parent too. Not sys.exit(): asyncio's own loop would take the parent's along.
        del recorder, memory
        gc.collect()
        os._exit(0)
deadline = time.monotonic() + 20
while (done := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
    loop.run_until_complete(work("meanwhile"))
    time.sleep(0.01)
print("child ended", done[1])
loop.run_until_complete(work("afterwards"))
loop.run_until_complete(memory.close())
loop.close()
"""
)


def run_script(script: str, store: Store, *arguments: str) -> list[str]:
    """Run a script in its own process, and return its output; it must neither fail nor print to stderr."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, store.backend, store.where]
    done = subprocess.run(
        [*command, str(store.directory), *arguments, *sys.path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


@on_both_backends("event loop closed under a handle")
def test_an_event_loop_that_is_closed_under_its_calls(store: Store, fault: Fault) -> None:
    """A call on another loop works, `close()` releases everything, and acknowledged writes are stored."""
    assert run_script(CLOSED_LOOP, store) == ["moved", "closed"]
    store.judge(fault, 0)


@on_both_backends("fork with a handle open")
@pytest.mark.parametrize("how", ["idle", "running"])
def test_a_fork_leaves_the_handle_to_the_parent(store: Store, fault: Fault, how: str) -> None:
    """The child gets a clear error and can open its own handle; the parent's keeps working."""
    *refusals, ended = run_script(FORKED, store, how)
    assert len(refusals) == (2 if how == "idle" else 3)
    assert all("opened before the process forked" in refusal for refusal in refusals)
    assert ended == "child ended 0"
    stored = store.judge(fault, 0)
    contents = [message["content"] for message in stored.sessions["s"].history]
    assert contents.count("from the child") == 1
    assert contents[-1] == "afterwards"
    asked = History.read(store.journal(0)).operations
    assert {operation.outcome for operation in asked if operation.worker == "child"} == {"acknowledged"}


@on_both_backends("handle made before a fork, and used after it")
def test_a_handle_that_was_not_opened_yet_works_on_both_sides(store: Store, fault: Fault) -> None:
    """An application that creates its memory at import and forks workers needs no special care."""
    script = (
        PREAMBLE
        + """
pid = os.fork()
who = "child" if pid == 0 else "parent"

async def main():
    async with memory:
        mine = Recorder(memory, Journal(store.journal(0) / f"{os.getpid()}.jsonl"), who)
        await mine.create_session(session_id=who)
        for number in range(20):
            await mine.add_message(who, "user", str(number))

asyncio.run(main())
if pid:
    print(os.waitpid(pid, 0)[1])
"""
    )
    assert run_script(script, store) == ["0"]
    stored = store.judge(fault, 0)
    assert {name: len(session.history) for name, session in stored.sessions.items()} == {"child": 20, "parent": 20}
