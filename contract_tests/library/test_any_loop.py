"""A handle works from any event loop and thread; the first loop is its home and pays nothing for the others."""

from __future__ import annotations

import asyncio
import gc
import resource
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import asyncpg
import pytest
import trio

from flux_memory import (
    BackendUnavailableError,
    ConversationMemory,
    FluxMemoryError,
    Memory,
    MemoryClosedError,
    OutcomeUnknownError,
    PostgresConversationMemory,
    SessionNotFoundError,
    deadline,
)
from flux_memory.backends.loops import LoopThread

THREADS: Final = 6
ADDS: Final = 15
THREAD_NAME: Final = "flux-memory-loop"
AT_EXIT: Final = """
import asyncio, sys
import flux_memory

memory = getattr(flux_memory, sys.argv[1])(sys.argv[2])
session = asyncio.run(memory.create_session())
asyncio.run(memory.add_message(session, "user", "moved"))
print(*(row["content"] for row in asyncio.run(memory.get_history(session))))
"""


@pytest.fixture(params=["file", ":memory:", "postgres"])
def open_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Memory]:
    """Opens a handle of one kind."""
    if request.param == "postgres":
        dsn: str = request.getfixturevalue("flux_memory_postgres_dsn")
        return lambda: PostgresConversationMemory(dsn)
    return lambda: ConversationMemory(tmp_path / "chat.db" if request.param == "file" else request.param)


@pytest.fixture
def memory(open_memory: Callable[[], Memory]) -> Iterator[Memory]:
    """A handle that is closed on a loop of its own, and leaves no thread behind."""
    memory = open_memory()
    yield memory
    asyncio.run(memory.close())
    assert THREAD_NAME not in {thread.name for thread in threading.enumerate()}


def run_in_threads(*works: Callable[[], object]) -> None:
    """Run functions in threads at once."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def contents(memory: Memory, session: str) -> list[str]:
    return [row["content"] for row in asyncio.run(memory.get_history(session))]


def test_a_call_under_trio_says_what_to_use(open_memory: Callable[[], Memory]) -> None:
    """Errors are the library's own, also those of a loop that the drivers cannot use; the handle stays usable."""
    memory = open_memory()

    async def call_and_close() -> None:
        for call in (memory.count_sessions, lambda: memory.feedback.get(limit=1), memory.close):
            with pytest.raises(FluxMemoryError, match=r"under trio call flux_memory\.sync in a thread"):
                await call()

    trio.run(call_and_close)
    assert asyncio.run(memory.count_sessions()) == 0
    asyncio.run(memory.close())


def test_adds_from_many_loops_keep_the_order_of_each(memory: Memory) -> None:
    """Threads with loops of their own use one handle at once, from its first call on; no message is lost or moved."""
    session = "shared"
    asyncio.run(memory.create_session(session_id=session))

    def add_from(caller: int) -> Callable[[], None]:
        async def add() -> None:
            await asyncio.gather(*(memory.add_message(session, "user", f"{caller} {n}") for n in range(ADDS)))

        return lambda: asyncio.run(add())

    run_in_threads(*map(add_from, range(THREADS)))
    found = contents(memory, session)
    assert len(found) == THREADS * ADDS
    for caller in range(THREADS):
        mine = [text for text in found if text.startswith(f"{caller} ")]
        assert mine == [f"{caller} {n}" for n in range(ADDS)]


def test_a_race_to_the_first_call_gives_one_store(memory: Memory) -> None:
    """The first calls of several threads see one store, also where it is in memory."""
    together = threading.Barrier(THREADS)

    def create() -> None:
        together.wait()
        asyncio.run(memory.create_session())

    run_in_threads(*[create] * THREADS)
    assert asyncio.run(memory.count_sessions()) == THREADS


def test_a_call_from_a_thread_does_not_need_the_home_loop(memory: Memory) -> None:
    """A home loop that is blocked, perhaps by waiting for the thread that calls, does not stop the call."""

    async def block() -> list[str]:
        session = await memory.create_session()
        run_in_threads(lambda: asyncio.run(memory.add_message(session, "user", "from a thread")))
        return [row["content"] for row in await memory.get_history(session)]

    assert asyncio.run(block()) == ["from a thread"]


def test_errors_and_deadlines_cross_over(memory: Memory) -> None:
    """A call away from home raises what it would raise at home, and has its caller's deadline."""
    session = asyncio.run(memory.create_session())

    async def use() -> None:
        with pytest.raises(SessionNotFoundError, match="session 'missing' does not exist"):
            await memory.add_message("missing", "user", "x")
        with deadline(1e-6), pytest.raises(BackendUnavailableError) as refusal:
            await memory.add_message(session, "user", "too late")
        unknown.append(isinstance(refusal.value, OutcomeUnknownError))
        with pytest.raises(TypeError):
            await memory.add_message(session)  # type: ignore[call-arg]  # that is the point
        await memory.add_message(session, "user", "in time")

    unknown: list[bool] = []
    asyncio.run(use())
    assert "in time" in contents(memory, session)
    # On a busy machine the statement may be on its way already.
    assert unknown == [True] or "too late" not in contents(memory, session)


def test_a_batch_is_read_in_the_thread_of_its_caller(memory: Memory) -> None:
    """A generator over a cursor, which belongs to its thread, works away from home, too."""
    session = asyncio.run(memory.create_session())
    with closing(sqlite3.connect(":memory:")) as db:
        rows = db.execute("VALUES ('1'), ('2')")
        asyncio.run(memory.add_messages(session, ({"role": "user", "content": text} for (text,) in rows)))
    assert contents(memory, session) == ["1", "2"]


def test_a_cancelled_call_has_ended_when_its_caller_continues(memory: Memory) -> None:
    """An add that is cancelled in the turn that made it is not stored, as at home."""
    session = asyncio.run(memory.create_session())

    async def use() -> None:
        for turns in (0, 1):
            add = asyncio.ensure_future(memory.add_message(session, "user", "never"))
            if turns:
                await asyncio.sleep(0)
                assert not add.done()
            add.cancel()
            with pytest.raises(asyncio.CancelledError):
                await add
        await memory.add_message(session, "user", "kept")

    asyncio.run(use())
    assert contents(memory, session)[-1] == "kept"


def test_a_call_that_is_cancelled_in_each_turn_has_ended_when_its_caller_continues() -> None:
    """anyio cancels a task until it ends; its call must not be stored after that."""
    thread = LoopThread()
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    async def end_slowly() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(release.wait)
            ended.set()

    async def use() -> None:
        call = asyncio.ensure_future(thread.run(end_slowly))
        await asyncio.to_thread(begun.wait)
        for _ in range(10):
            call.cancel()
            await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert ended.is_set()

    asyncio.run(use())
    thread.stop()
    thread.join(10)


def test_closing_from_another_loop_keeps_what_was_acknowledged(open_memory: Callable[[], Memory]) -> None:
    """`close()` in a thread waits for the calls on the running home loop, or refuses them."""
    memory = open_memory()

    async def work() -> None:
        session = await memory.create_session()
        adds = [asyncio.ensure_future(memory.add_message(session, "user", str(n))) for n in range(ADDS)]
        await asyncio.sleep(0)
        await asyncio.to_thread(lambda: asyncio.run(memory.close()))
        outcomes = await asyncio.gather(*adds, return_exceptions=True)
        assert all(isinstance(outcome, str | MemoryClosedError) for outcome in outcomes), outcomes
        with pytest.raises(MemoryClosedError):
            await memory.count_sessions()

    asyncio.run(work())
    with pytest.raises(MemoryClosedError):
        asyncio.run(memory.count_sessions())


@pytest.mark.parametrize("backend", ["ConversationMemory", "PostgresConversationMemory"])
def test_a_handle_that_was_used_from_two_loops_does_not_hang_the_exit(
    backend: str, tmp_path: Path, flux_memory_postgres_dsn: str
) -> None:
    """A script without `close()` ends, with one warning."""
    target = str(tmp_path / "chat.db") if backend == "ConversationMemory" else flux_memory_postgres_dsn
    command = [sys.executable, "-W", "always", "-c", AT_EXIT, backend, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "moved\n"), done.stderr
    assert done.stderr.count("was never closed") == 1
    assert "Traceback" not in done.stderr


def test_a_dropped_handle_ends_its_thread(open_memory: Callable[[], Memory]) -> None:
    """A handle that is collected without `close()` warns once, and closes its twin."""
    memory = open_memory()
    asyncio.run(memory.count_sessions())
    asyncio.run(memory.count_sessions())
    (thread,) = (each for each in threading.enumerate() if each.name == THREAD_NAME)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del memory
        gc.collect()
        thread.join(20)
    assert not thread.is_alive()
    assert len([each for each in caught if "was never closed" in str(each.message)]) == 1


def test_a_borrowed_pool_stays_on_its_loop(flux_memory_postgres_dsn: str) -> None:
    """The connections of an application's pool live on its loop; the error says what to do instead."""

    async def use() -> None:
        async with asyncpg.create_pool(flux_memory_postgres_dsn, min_size=1, max_size=2) as pool:
            memory = PostgresConversationMemory(pool=pool)
            await memory.create_session()
            with pytest.raises(FluxMemoryError, match="give it a DSN instead of a pool"):
                await asyncio.to_thread(lambda: asyncio.run(memory.count_sessions()))
            assert await memory.count_sessions() == 1
            await memory.close()

    asyncio.run(use())


def test_the_end_of_a_loop_thread_answers_every_caller() -> None:
    """Callers in other threads and on other loops get an error, and later ones do, too."""
    thread = LoopThread()
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    outcomes: list[str] = []

    def call() -> None:
        try:
            thread.call(wait)
        except MemoryClosedError as error:
            outcomes.append(str(error))

    async def run() -> None:
        with pytest.raises(MemoryClosedError):
            await thread.run(wait)

    def stop() -> None:
        begun.wait()
        thread.stop()

    run_in_threads(call, call, stop, lambda: asyncio.run(run()))
    thread.join(10)
    assert len(outcomes) == 2
    call()
    assert len(outcomes) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's, for the loop that failed
def test_a_process_without_file_descriptors_gets_an_error() -> None:
    """An event loop that cannot be opened in its thread does not leave the caller waiting for it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(BackendUnavailableError, match="limit of open files"):
            LoopThread()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    gc.collect()
