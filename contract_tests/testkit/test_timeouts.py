"""Tests that a clause ends with any backend, even if a call never ends or blocks the event loop."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bound_stores import run_clause
from forked_runs import run_forked

from flux_memory import Memory
from flux_memory.testkit import ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.model.calls import HangError, ModelCall, at_once
from flux_memory.testkit.contract.processes import run_together
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.timeouts import BlockedError, Timeouts, unblocked

pytest_plugins = ["pytester"]

TWO_HANDLES = "FM-CON-005"
"""A clause that writes through one handle and reads through another."""
ONE_HANDLE = "FM-ORD-001"

BINDING = """
    import threading

    import pytest
    from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore, timeouts

    timeouts.CALL_SECONDS = 0.1
    never = threading.Event()

    class Blocking(ReferenceMemory):
        async def get_history(self, *args, **kwargs):
            never.wait()  # it is never set
            return await super().get_history(*args, **kwargs)

    class TestMine(MemoryContract):
        @pytest.fixture
        def memory_factory(self, tmp_path):
            store = ReferenceStore(tmp_path / "reference.json")
            return lambda: Blocking(store)
"""

# A broken memory may leave handles open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def assert_nothing_left() -> Iterator[None]:
    """No test leaves a timer behind, and no warning of a leaked handle reaches another test."""
    yield
    gc.collect()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


class BlockingMemory(ReferenceMemory):
    """Takes a lock at its first write and releases it in `close()`."""

    lock: threading.Lock
    held = False

    async def create_session(self, *args: Any, **kwargs: Any) -> str:
        self._take()
        return await super().create_session(*args, **kwargs)

    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        self._take()
        return await super().get_history(*args, **kwargs)

    def _take(self) -> None:
        if not self.held:
            self.held = self.lock.acquire()

    async def close(self) -> None:
        await super().close()
        if self.held:
            self.lock.release()
            self.held = False


class HangingMemory(ReferenceMemory):
    async def get_history(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.Event().wait()


class ForklessMemory(ReferenceMemory):
    async def fork_session(self, *args: Any, **kwargs: Any) -> str:
        raise RuntimeError("forks are out of order")


def impatient_store(memory: type[Any]) -> StoreUnderTest:
    """Return a store of such memories with very short timeouts for its clauses."""
    shared, timeouts = ReferenceStore(), Timeouts()
    timeouts.call_seconds = 0.1
    broken = type("Broken", (memory,), {"lock": threading.Lock()})
    return StoreUnderTest(lambda: broken(shared), timeouts=timeouts)


def test_a_call_that_blocks_the_event_loop_is_ended() -> None:
    """A timeout of the loop cannot end it: the clause fails during the call, which the reproduction shows."""
    store = impatient_store(BlockingMemory)
    error = run_clause(TWO_HANDLES, store)
    assert isinstance(error, BlockedError)
    assert "the event loop stood still" in str(error)
    assert "get_history(session_1)  # BlockedError: the event loop stood still" in store.transcript.text()
    places = [entry.name for entry in pytest.ExceptionInfo.from_exception(error).traceback]
    assert "_take" in places[-2:], places


def test_a_call_that_does_not_block_is_left_alone() -> None:
    """The same memory passes with one handle at a time."""
    assert run_clause(ONE_HANDLE, impatient_store(BlockingMemory)) is None


def test_a_call_that_never_ends_is_ended() -> None:
    """The timeout of the loop comes first."""
    error = run_clause(ONE_HANDLE, impatient_store(HangingMemory))
    assert "a call hangs" in str(error)
    assert not isinstance(error, BlockedError)


@pytest.mark.parametrize("memory", [BlockingMemory, HangingMemory])
def test_the_first_to_hang_waits_for_all(memory: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that hangs in forty clauses does not take forty minutes."""
    monkeypatch.setattr("flux_memory.testkit.timeouts._SECONDS_ONCE_HUNG", 0.05)
    store = impatient_store(memory)
    assert run_clause(TWO_HANDLES, store) is not None
    assert store.timeouts.call_seconds == 0.05
    again = StoreUnderTest(lambda: HangingMemory(ReferenceStore()), timeouts=store.timeouts)
    assert f"(limit cut to 0.05 s because a call of {TWO_HANDLES} never ended)" in str(run_clause(ONE_HANDLE, again))


class SlowMemory(ReferenceMemory):
    async def add_message(self, *args: Any, **kwargs: Any) -> str:
        await asyncio.sleep(0.2)
        return await super().add_message(*args, **kwargs)


def slow_store(memory: type[Any] = SlowMemory) -> StoreUnderTest:
    """Return a store with calls of 0.2 seconds, each of which may take 0.6."""
    shared, timeouts = ReferenceStore(), Timeouts()
    timeouts.call_seconds = 0.6
    return StoreUnderTest(lambda: memory(shared), timeouts=timeouts)


def test_slow_calls_do_not_hang() -> None:
    """The limit holds for each call: a dozen calls take longer than one may, and none of them hangs."""
    store = slow_store()
    assert run_clause(ONE_HANDLE, store) is None
    assert len(store.transcript.calls) * 0.2 > 2 * store.timeouts.call_seconds


def test_a_call_that_hangs_beside_others_is_found() -> None:
    """Other calls that end do not postpone the limit of a call that does not."""

    class Hanging(SlowMemory):
        async def add_messages(self, *args: Any, **kwargs: Any) -> Any:
            await asyncio.Event().wait()

    store = slow_store(Hanging)

    async def main() -> None:
        memory = store.open()
        session = await memory.create_session()
        hanging = asyncio.ensure_future(memory.add_messages(session, []))
        while not hanging.done():
            await memory.add_message(session, "user", "text")

    with pytest.raises(pytest.fail.Exception, match=r"a call hangs: add_messages\(\) did not end within 0\.6 s"):
        store.run(main)


def test_a_clause_that_is_slow_as_a_whole_shortens_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a limit as well, but its calls end, so those of the next clauses keep theirs."""
    monkeypatch.setattr("flux_memory.testkit.timeouts.CLAUSE_SECONDS", 0.5)
    store = slow_store()
    assert "the clause was not done within" in str(run_clause(ONE_HANDLE, store))
    assert (store.timeouts.call_seconds, store.timeouts.call_cut) == (0.6, "")


def test_readers_of_a_fork_end_if_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for the end of the call, not for its success: the clause fails with the error of the call."""
    monkeypatch.setattr("flux_memory.testkit.timeouts.CLAUSE_SECONDS", 10.0)
    shared = ReferenceStore()
    assert "forks are out of order" in str(run_clause("FM-FRK-020", StoreUnderTest(lambda: ForklessMemory(shared))))


def test_a_process_with_slow_calls_does_not_hang() -> None:
    """The limit holds for each call of another process as well; a call of one that hangs is found."""

    async def add(open_handle: Callable[[], Memory], tell: Callable[[object], None]) -> None:
        async with open_handle() as memory:
            session = await memory.create_session()
            for number in range(6):
                await memory.add_message(session, "user", str(number))
            tell("done")
            await memory.get_history(session)

    assert run_together(slow_store().fork(add)) == [["done"]]

    class Hanging(SlowMemory, HangingMemory):
        pass

    child = slow_store(Hanging).fork(add)
    child.go()
    assert child.hear() == "done"
    with pytest.raises(pytest.fail.Exception, match=r"a call of another process hangs: none ended within 0\.6 s"):
        child.hear()


def test_a_synchronous_clause_is_ended() -> None:
    """Parts of it run on their own event loops."""
    store = impatient_store(ReferenceMemory)

    async def block() -> None:
        threading.Event().wait()

    with pytest.raises(BlockedError):
        store.run(block)


def test_the_first_handle_that_does_not_close_waits_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every clause closes handles, so each would wait for a hanging close."""

    class Open(ReferenceMemory):
        async def close(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr("flux_memory.testkit.timeouts._CLOSE_SECONDS_ONCE_HUNG", 0.05)
    store = impatient_store(Open)
    store.timeouts.close_seconds = 0.1
    assert "close() did not end within" in str(run_clause(ONE_HANDLE, store))
    assert store.timeouts.close_seconds == 0.05


def test_closing_that_blocks_is_ended() -> None:
    """The store names the blocked call."""

    class Stuck(ReferenceMemory):
        async def close(self) -> None:
            threading.Event().wait()

    store = impatient_store(Stuck)
    store.timeouts.close_seconds = 0.1
    error = run_clause(ONE_HANDLE, store)
    assert "close() does not end: the event loop stood still" in str(error)


def test_the_model_says_which_calls_blocked(tmp_path: Path) -> None:
    """A call that blocks is a finding, like a call that hangs."""
    lock = threading.Lock()
    shared = ReferenceStore(tmp_path / "reference.json")
    factory: Callable[[], Memory] = lambda: type("Broken", (BlockingMemory,), {"lock": lock})(shared)  # noqa: E731

    async def main() -> None:
        one, other = factory(), factory()
        session = await one.create_session()
        reading = ModelCall("get_history", {"session_id": session})
        with pytest.raises(HangError, match="get_history: the event loop stood still"):
            await at_once([(one, reading, None), (other, reading, None)], seconds=0.1)
        await one.close()
        await other.close()

    asyncio.run(main())


def test_a_foreign_timer_is_left_alone() -> None:
    """pytest-timeout, for example, uses a timer to end a test."""
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append("theirs"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with unblocked(-2.0):
            time.sleep(0.4)
        assert rung == ["theirs"]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_inner_wait_does_not_end_the_outer_one() -> None:
    """Closing handles has its own limit, within a clause."""

    def wait() -> None:
        with unblocked(60.0):
            pass
        time.sleep(10)

    with pytest.raises(BlockedError, match="for -1 s"), unblocked(-1.0):
        wait()


def test_another_thread_can_do_without() -> None:
    """Signals belong to the main thread; other threads have no limit, and no error either."""
    done = []

    def run() -> None:
        with unblocked(0.1):
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_run_ends_and_shows_the_line_that_blocks(pytester: pytest.Pytester) -> None:
    """The author of a backend sees the blocking line in the output."""
    pytester.makepyfile(BINDING)
    options = ("-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")
    result = run_forked(pytester, *options, "-k", "ORD-001")
    outcomes = result.parseoutcomes()
    outcomes.pop("deselected")
    assert outcomes == {"failed": 1}
    result.stdout.fnmatch_lines(
        [
            "*never.wait()  # it is never set",
            "*BlockedError: the event loop stood still for 0 s: a call blocks it, *",
            "promised:  *",
            "    await memory_1.get_history(*)  # BlockedError: the event loop stood still *",
        ]
    )
