"""`SyncMemory` blocks its callers: safe in threads, in signal handlers and finalizers, and at the end of a process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from flux_memory import (
    BackendUnavailableError,
    ConversationMemory,
    FluxMemoryError,
    InvalidTypeError,
    MemoryClosedError,
    Settings,
    deadline,
)
from flux_memory.sync import SyncMemory, create_memory

FORKED: Final = """
import gc, os, sys
from flux_memory import ConversationMemory
from flux_memory.sync import SyncMemory

memory = SyncMemory(ConversationMemory(sys.argv[1]))
memory.create_session()
if (child := os.fork()) == 0:
    memory.close() if sys.argv[2] == "close" else None
    del memory
    gc.collect()
    os._exit(17)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
memory.create_session()
memory.close()
"""
THREADS: Final = 8
ADDS: Final = 20
SIGNALLED: Final = """
import signal
from flux_memory import ConversationMemory
from flux_memory.sync import SyncMemory

with SyncMemory(ConversationMemory(":memory:")) as memory:
    session, calls = memory.create_session(), []

    def call(*args):
        signal.setitimer(signal.ITIMER_REAL, 0)
        calls.append(memory.get_session(session))
        signal.setitimer(signal.ITIMER_REAL, 0.0002)

    signal.signal(signal.SIGALRM, call)
    call()
    while len(calls) < 3000:
        memory.get_session(session)
    signal.setitimer(signal.ITIMER_REAL, 0)
"""
INTERRUPTED: Final = """
import signal, sqlite3, sys
from flux_memory import ConversationMemory
from flux_memory.sync import SyncMemory

# A shell's background job, and all that it starts, ignore this signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
with SyncMemory(ConversationMemory(sys.argv[1])) as memory:
    session = memory.create_session(session_id="s")
    lock = sqlite3.connect(sys.argv[1], isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        print("locked", flush=True)
        memory.add_message(session, "user", "interrupted")
    except KeyboardInterrupt:
        lock.execute("ROLLBACK")
        print(len(memory.get_history(session)), flush=True)
"""


def test_threads_share_a_handle(open_sync_memory: Callable[[], SyncMemory]) -> None:
    """Threads that write to one session at once lose nothing, and each one's messages stay in order."""
    with open_sync_memory() as memory:
        session = memory.create_session()

        def add(caller: int) -> None:
            for number in range(ADDS):
                memory.add_message(session, "user", f"{caller} {number}")

        threads = [threading.Thread(target=add, args=(caller,)) for caller in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = [row["content"] for row in memory.get_history(session)]
        assert len(found) == THREADS * ADDS
        for caller in range(THREADS):
            assert [text for text in found if text.startswith(f"{caller} ")] == [f"{caller} {n}" for n in range(ADDS)]


def test_a_deadline_holds(open_sync_memory: Callable[[], SyncMemory]) -> None:
    """`deadline()` bounds the calls of its thread."""
    with open_sync_memory() as memory:
        session = memory.create_session()
        with deadline(1e-6), pytest.raises(BackendUnavailableError):
            memory.add_message(session, "user", "too late")
        memory.add_message(session, "user", "in time")


def test_closing_leaves_no_thread(open_sync_memory: Callable[[], SyncMemory]) -> None:
    """Also if two threads close it, and if it was never used."""
    memory, unused = open_sync_memory(), open_sync_memory()
    memory.create_session()
    closing = [threading.Thread(target=memory.close) for _ in range(2)]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()
    unused.close()
    with pytest.raises(MemoryClosedError):
        unused.count_sessions()
    assert "flux-memory-loop" not in {thread.name for thread in threading.enumerate()}


def test_a_forgotten_handle_warns(open_sync_memory: Callable[[], SyncMemory]) -> None:
    """A handle that is collected without `close()` emits one warning and ends its thread."""
    memory = open_sync_memory()
    memory.create_session()
    (thread,) = (each for each in threading.enumerate() if each.name == "flux-memory-loop")
    with pytest.warns(ResourceWarning, match=r"SyncMemory.*was never closed") as caught:
        del memory
    thread.join(20)
    assert not thread.is_alive()
    assert len(caught) == 1


def test_a_forked_child_is_refused(open_sync_memory: Callable[[], SyncMemory]) -> None:
    """The thread stays with the parent: a call in the child raises at once instead of waiting for it."""
    with open_sync_memory() as memory:
        memory.create_session()
        if (child := os.fork()) == 0:
            try:
                memory.count_sessions()
            except FluxMemoryError as error:
                os._exit(17 if "before the process forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
        assert memory.count_sessions() == 1


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_forked_child_leaves_the_handle_to_its_parent(end: str, tmp_path: Path) -> None:
    """Closing or dropping it there is silent, as for the memory that it wraps, and the parent continues."""
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", FORKED, str(tmp_path / "chat.db"), end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class Greeting(dict[str, Any]):
    """Metadata that runs a function when it is encoded, as a finalizer runs at any time."""

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__(lang="ko")
        self.run = run

    def items(self) -> Any:
        self.run()
        return super().items()


def test_a_finalizer_in_the_thread_of_the_loop_does_not_hang(tmp_path: Path) -> None:
    """There a call raises an error, and `close()` does not wait."""
    memory = SyncMemory(ConversationMemory(tmp_path / "chat.db"))
    with pytest.raises(FluxMemoryError, match="cannot wait for its own call"):
        memory.create_session(metadata=Greeting(memory.count_sessions))
    memory.create_session(session_id="last", metadata=Greeting(memory.close))
    memory.close()
    with SyncMemory(ConversationMemory(tmp_path / "chat.db")) as reopened:
        assert [row["id"] for row in reopened.get_sessions()] == ["last"]
    assert "flux-memory-loop" not in {thread.name for thread in threading.enumerate()}


def test_threads_that_close_at_once_see_no_error(tmp_path: Path) -> None:
    """Closing twice is not an error, also where another thread ends the event loop in the middle of the call."""
    errors: list[MemoryClosedError] = []
    ready = threading.Event()

    class Closing(ConversationMemory):
        async def close(self) -> None:
            if not ready.is_set():
                ready.set()
                await asyncio.Event().wait()
            await super().close()

    memory = SyncMemory(Closing(tmp_path / "chat.db"))
    memory.create_session()

    def close() -> None:
        try:
            memory.close()
        except MemoryClosedError as error:
            errors.append(error)

    first = threading.Thread(target=close)
    first.start()
    assert ready.wait(20)
    memory.close()
    first.join(20)
    assert not first.is_alive()
    assert errors == []


def test_ctrl_c_cancels_the_call(tmp_path: Path) -> None:
    """A call that waits for a lock is interrupted, and what it was to store is not stored."""
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "chat.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "0\n"
    assert process.returncode == 0


def test_a_signal_handler_may_call_the_memory() -> None:
    """At any moment of another call in the same thread: neither waits for the other for ever."""
    assert subprocess.run([sys.executable, "-c", SIGNALLED], timeout=120, check=False).returncode == 0


def test_the_settings_choose_the_backend(tmp_path: Path) -> None:
    """`create_memory()` is that of `flux_memory`, without `await`."""
    with create_memory(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path / 'chat.db'}")) as memory:
        memory.create_session()
    assert (tmp_path / "chat.db").exists()
    assert repr(memory) == f"SyncMemory(ConversationMemory('{tmp_path / 'chat.db'}'))"


@pytest.mark.parametrize("wrong", [None, "chat.db", object(), SyncMemory(ConversationMemory(":memory:"))])
def test_something_else_is_refused(wrong: Any) -> None:
    """A path, a DSN and a memory that already works without `await` are easy mistakes."""
    with pytest.raises(InvalidTypeError, match="create_memory"):
        SyncMemory(wrong)
