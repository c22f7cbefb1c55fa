"""Clauses on the life of a handle: closing, missing `close()`, other event loops, damaged rows."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from flux_memory import FluxMemoryError, Memory, MemoryClosedError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.claimed_calls import CALLS
from flux_memory.testkit.contract.processes import Tell, run_together
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, contents, gather_outcomes
from flux_memory.testkit.timeouts import unblocked

HANDLES: Final = 8

EVERY_CALL: Final[dict[str, Callable[[Memory, Any], Awaitable[Any]]]] = {
    "create_session": lambda memory, value: memory.create_session(value),
    "add_message": lambda memory, value: memory.add_message(value, value, value),
    "add_messages": lambda memory, value: memory.add_messages(value, value),
    "get_history": lambda memory, value: memory.get_history(value),
    "get_sessions": lambda memory, value: memory.get_sessions(user_id=value),
    "get_session": lambda memory, value: memory.get_session(value),
    "count_sessions": lambda memory, _: memory.count_sessions(),
    "update_session_title": lambda memory, value: memory.update_session_title(value, value),
    "delete_session": lambda memory, value: memory.delete_session(value),
    "clear_all": lambda memory, _: memory.clear_all(),
}


class LifecycleContract(Binding):
    """The promises of `close()`, and of handles that are not closed, change event loops or read damaged rows."""

    @clause(
        "FM-LIF-001",
        promise="`close()` can be called again, concurrently, and on a handle that was never used.",
        impact="Shutdown raises if two parts of an application close the same memory.",
        needs=Capability.SEVERAL_HANDLES,
    )
    async def test_close_is_idempotent(self, store: StoreUnderTest) -> None:
        used, unused = store.open(), store.open()
        await used.create_session()
        for memory in (used, unused):
            assert await gather_outcomes(memory.close(), memory.close()) == [None, None]
            await memory.close()

    @clause(
        "FM-LIF-002",
        promise="After `close()`, every call raises `MemoryClosedError`, whether or not the handle was used before.",
        impact="A call after shutdown hangs, or silently reopens the store.",
        needs=Capability.SESSIONS | Capability.SEVERAL_HANDLES,
    )
    async def test_calls_after_close(self, store: StoreUnderTest) -> None:
        used, unused = store.open(), store.open()
        session = await used.create_session()
        for memory in (used, unused):
            await memory.close()
            for name, call in EVERY_CALL.items():
                with pytest.raises(MemoryClosedError):
                    await call(memory, [] if name == "add_messages" else session)
        reader = store.open()
        assert [row["id"] for row in await reader.get_sessions()] == [session]

    @clause(
        "FM-LIF-003",
        promise="After `close()`, a call raises `MemoryClosedError` even if its arguments are invalid.",
        impact="The error points to the arguments, and debugging starts in the wrong place.",
    )
    async def test_wrong_calls_after_close(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await memory.close()
        wrong_values: list[Any] = [None, 7, "\x00", {}]
        for value in wrong_values:
            for call in EVERY_CALL.values():
                with pytest.raises(MemoryClosedError):
                    await call(memory, value)
        for wrong in (-1, "1"):
            with pytest.raises(MemoryClosedError):
                await memory.get_sessions(wrong, wrong)  # type: ignore[arg-type]  # that is the point

    @clause(
        "FM-LIF-012",
        promise="After `close()`, every claimed call raises `MemoryClosedError`: pops, forks and removals, too, and "
        "with invalid ids.",
        impact="After shutdown, a call finds nothing where a conversation is.",
    )
    async def test_claimed_calls_after_close(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.close()
        wrong: Any = 7
        for capability, calls in CALLS.items():
            for each in calls:
                if capability | each.also in store.capabilities:
                    for key in (session, "unknown", wrong):
                        with pytest.raises(MemoryClosedError):
                            await each.call(memory, key)

    @clause(
        "FM-LIF-004",
        promise="`async with` yields the memory itself, closes it at the end, and lets exceptions through.",
        impact="Exceptions are swallowed, or handles stay open.",
    )
    async def test_async_with(self, store: StoreUnderTest) -> None:
        memory = store.open()
        async with memory as entered:
            assert entered is memory
            session = await entered.create_session()
        with pytest.raises(MemoryClosedError):
            await memory.count_sessions()
        failing = store.open()
        with pytest.raises(ZeroDivisionError):
            await self._fail_inside(failing, session)
        with pytest.raises(MemoryClosedError):
            await failing.count_sessions()
        assert contents(await store.open().get_history(session)) == ["kept"]

    @staticmethod
    async def _fail_inside(memory: Memory, session: str) -> None:
        async with memory:
            await memory.add_message(session, "user", "kept")
            raise ZeroDivisionError

    @clause(
        "FM-LIF-005",
        promise="A call in flight at `close()` is stored and acknowledged, or raises and is not stored.",
        impact="A restart loses messages that were acknowledged.",
        needs=Capability.SEVERAL_HANDLES,
    )
    async def test_close_loses_no_acknowledged_write(self, store: StoreUnderTest) -> None:
        reader = store.open()
        for turns in (0, 1, 3, 10, 30, 100):
            session = await reader.create_session()
            memory = store.open()
            adds = [asyncio.ensure_future(memory.add_message(session, "user", str(n))) for n in range(8)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await memory.close()
            outcomes = await gather_outcomes(*adds)
            for outcome in outcomes:
                assert isinstance(outcome, str | MemoryClosedError), repr(outcome)
            acknowledged = {outcome for outcome in outcomes if isinstance(outcome, str)}
            stored = {row["id"] for row in await reader.get_history(session)}
            assert stored == acknowledged, f"{len(acknowledged)} acknowledged, {len(stored)} stored"

    @clause(
        "FM-LIF-006",
        promise="Closing one handle does not disturb other handles on the same store.",
        impact="One worker's shutdown breaks the other workers.",
        needs=Capability.SEVERAL_HANDLES,
    )
    async def test_closing_one_of_two(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()
        await add_numbered(other, session, [0])
        adds = [asyncio.ensure_future(other.add_message(session, "user", str(n))) for n in range(1, 5)]
        await memory.close()
        await asyncio.gather(*adds)
        await add_numbered(other, session, [5])
        assert sorted(contents(await other.get_history(session))) == list("012345")

    @clause(
        "FM-LIF-007",
        promise="A closed handle leaves no thread, file or connection open.",
        impact="A service that opens a handle for each request runs out of file descriptors.",
        needs=Capability.SEVERAL_HANDLES,
    )
    async def test_closed_handles_leave_nothing_open(self, store: StoreUnderTest) -> None:
        await self._use_and_close(store)
        # Collect objects of earlier clauses now: collected later, they would hide new leaks.
        gc.collect()
        before = open_things()
        await self._use_and_close(store)
        deadline = time.monotonic() + 10
        # Resources shared by all handles may stay open, those of each handle may not. Threads end a little later.
        while any(now - then >= HANDLES for now, then in zip(open_things(), before, strict=True)):
            assert time.monotonic() < deadline, f"{HANDLES} closed handles left threads or files: {open_things()}"
            gc.collect()
            await asyncio.sleep(0.01)

    @staticmethod
    async def _use_and_close(store: StoreUnderTest) -> None:
        handles = [store.open() for _ in range(HANDLES)]
        await asyncio.gather(*(handle.create_session() for handle in handles))
        await asyncio.gather(*(handle.close() for handle in handles))

    @clause(
        "FM-LIF-008",
        promise="A handle that was never closed emits a `ResourceWarning` and does not keep the process alive.",
        impact="Scripts hang at exit.",
        needs=Capability.SEVERAL_HANDLES | Capability.SEVERAL_PROCESSES,
    )
    def test_a_forgotten_handle_warns(self, store: StoreUnderTest) -> None:
        async def forget(open_handle: Callable[[], Memory], tell: Tell) -> None:
            async def use() -> None:
                await open_handle().create_session()

            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                await asyncio.to_thread(asyncio.run, use())
                deadline = time.monotonic() + 5
                while not resource_warnings(caught) and time.monotonic() < deadline:
                    gc.collect()
                    await asyncio.sleep(0.01)
                tell(resource_warnings(caught))

        # run_together also waits for the process to exit.
        ((warned,),) = run_together(store.fork(forget))
        assert warned, "a handle was dropped without close() and emitted no ResourceWarning"

    @clause(
        "FM-LIF-009",
        promise="A handle works from a second event loop, while the first still runs.",
        impact="A web framework with several event loops hangs, or fails at random.",
    )
    def test_two_loops_at_once(self, store: StoreUnderTest) -> None:
        outcomes: list[object] = []

        def use_on_another_loop(memory: Memory, session: str) -> None:
            try:
                outcomes.append(asyncio.run(memory.add_message(session, "user", "second loop")))
            except BaseException as error:  # noqa: BLE001 - checked below
                outcomes.append(error)

        async def start() -> tuple[Memory, str]:
            memory = store.open()
            return memory, await memory.create_session()

        seconds = store.timeouts.call_seconds
        with unblocked(3 * seconds), asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            memory, session = runner.run(start())
            thread = threading.Thread(target=use_on_another_loop, args=(memory, session), daemon=True)
            thread.start()
            thread.join(seconds)
            assert not thread.is_alive(), f"a call on a second event loop hangs for {seconds:g} s"
            assert isinstance(outcomes[0], str), repr(outcomes[0])
            runner.run(memory.add_message(session, "user", "first loop"))
            assert contents(runner.run(memory.get_history(session))) == ["second loop", "first loop"]
            runner.run(store.close())

    @clause(
        "FM-LIF-010",
        promise="A handle works, and can be closed, after its event loop has ended.",
        impact="The second `asyncio.run` in a script hangs or raises.",
    )
    def test_one_loop_after_another(self, store: StoreUnderTest) -> None:
        async def move(open_handle: Callable[[], Memory], tell: Tell) -> None:
            memory = open_handle()
            session = await asyncio.to_thread(asyncio.run, memory.create_session())
            for call in (memory.add_message(session, "user", "moved"), memory.close()):
                try:
                    await asyncio.wait_for(call, seconds)
                    tell("works")
                except TimeoutError:
                    tell("hangs")
                except Exception as error:  # noqa: BLE001 - told to the parent
                    tell(f"raises {error!r}")

        # Before the parent, which hears of no call meanwhile, ends the process.
        seconds = store.timeouts.call_seconds / 2
        ((added, closed),) = run_together(store.fork(move))
        assert added == "works", f"add_message on the second loop {added}"
        assert closed == "works", f"close() on the second loop {closed}"

    @clause(
        "FM-LIF-011",
        promise="A damaged row raises a `FluxMemoryError` that names it; everything else stays readable.",
        impact="One damaged byte makes a whole history, or every history, unreadable.",
        needs=Capability.MESSAGE_IDS | Capability.CURSOR | Capability.SESSIONS | Capability.DURABLE,
    )
    async def test_one_damaged_row(self, store: StoreUnderTest) -> None:
        memory = store.open()
        damaged, sound = await memory.create_session(), await memory.create_session()
        ids = await add_numbered(memory, damaged, range(4))
        await add_numbered(memory, sound, range(3))
        await memory.close()
        await store.corrupt_message(damaged, ids[1])
        # A new handle: an older one may have cached the row.
        memory = store.open()
        with pytest.raises(FluxMemoryError) as caught:
            await memory.get_history(damaged)
        assert ids[1] in str(caught.value), f"{caught.value!r} does not name the row"
        assert contents(await memory.get_history(damaged, 2)) == ["2", "3"]
        assert contents(await memory.get_history(damaged, before=ids[1])) == ["0"]
        assert contents(await memory.get_history(sound)) == ["0", "1", "2"]
        assert {row["id"]: row["message_count"] for row in await memory.get_sessions()} == {damaged: 4, sound: 3}
        await add_numbered(memory, damaged, [4])
        assert contents(await memory.get_history(damaged, 1)) == ["4"]
        await memory.delete_session(damaged)
        assert await memory.get_history(damaged) == []


def open_things() -> tuple[int, int]:
    """Return the number of threads and of file descriptors of this process."""
    descriptors = Path("/dev/fd")
    return threading.active_count(), len(list(descriptors.iterdir())) if descriptors.exists() else 0


def resource_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    """Return the messages of the `ResourceWarning`s among these."""
    return [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]
