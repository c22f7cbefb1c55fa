"""Tests the life of a handle under concurrency: opened once, used on one loop, closed once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from flux_memory.backends.lifecycle import Lifecycle, on_any_loop
from flux_memory.errors import FluxMemoryError, MemoryClosedError


class Resource:
    """A resource that counts how often it is opened and closed; it opens when `gate` is set."""

    def __init__(self, grace: float = 5.0) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.opened = 0
        self.closed = 0
        self.seconds = 0.0
        self.failures: list[Exception] = []
        self.closing = asyncio.Event()
        self.closing.set()
        self._life = self.life = Lifecycle(self._open, self._close, grace, lambda _: self.make_twin())

    async def _open(self) -> Resource:
        self.opened += 1
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        return self

    async def _close(self, resource: Resource, seconds: float) -> None:
        assert resource is self
        await self.closing.wait()
        if self.failures:
            raise self.failures.pop()
        self.closed += 1
        self.seconds = seconds

    def make_twin(self) -> Resource:
        """The handle for calls from other loops."""
        self.twin = Resource()
        return self.twin

    async def close(self) -> None:
        await self.life.close()

    @on_any_loop
    async def call(self, until: asyncio.Event | None = None) -> str:
        """A call as a method of a handle makes it."""
        with self.life.in_flight:
            await self.life.opened()
            if until is not None:
                await until.wait()
            return "done"


async def let_tasks_settle(*tasks: asyncio.Task[Any]) -> None:
    """Let tasks run until each waits for an event that only the test sets."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


@pytest.mark.asyncio
async def test_calls_leave_the_opening_in_their_order() -> None:
    """A call that comes while those before it wake up does not overtake them: their messages would be out of order."""
    resource = Resource()
    resource.gate.clear()
    order: list[int] = []

    async def call(number: int) -> None:
        await resource.call()
        order.append(number)

    calls = [asyncio.ensure_future(call(number)) for number in range(3)]
    await let_tasks_settle(*calls)
    resource.gate.set()
    for number in range(3, 20):
        calls.append(asyncio.ensure_future(call(number)))
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert order == sorted(order)
    await resource.life.close()
    assert (resource.opened, resource.closed) == (1, 1)


@pytest.mark.asyncio
async def test_a_late_caller_does_not_fail_of_an_opening_that_ran_out_of_time() -> None:
    """Callers that started the opening share its failure; a caller that joined later opens again, once."""
    resource = Resource()
    resource.gate.clear()
    resource.failures = [ValueError("the second one"), ValueError("the first one")]
    together = [asyncio.create_task(resource.call()) for _ in range(2)]
    await let_tasks_settle(*together)
    resource.life._opening_began -= 60
    late = [asyncio.create_task(resource.call()) for _ in range(2)]
    await let_tasks_settle(*late)
    resource.gate.set()
    outcomes = await asyncio.gather(*together, *late, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["the first one"] * 2 + ["the second one"] * 2
    assert await resource.call() == "done"
    assert resource.opened == 3


@pytest.mark.asyncio
async def test_any_number_of_first_users_open_once() -> None:
    """Concurrent first calls open the resource once."""
    resource = Resource()
    assert await asyncio.gather(*(resource.call() for _ in range(20))) == ["done"] * 20
    assert resource.opened == 1


@pytest.mark.asyncio
async def test_a_failed_opening_fails_its_callers_and_is_retried() -> None:
    """A server that was down at the first call is found at the next."""
    resource = Resource()
    resource.failures.append(FluxMemoryError("not yet"))
    outcomes = await asyncio.gather(*(resource.call() for _ in range(5)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["not yet"] * 5
    assert await resource.call() == "done"
    assert resource.opened == 2


@pytest.mark.asyncio
async def test_a_cancelled_first_user_does_not_undo_the_opening_for_others() -> None:
    """The opening continues for the other callers."""
    resource = Resource()
    resource.gate.clear()
    first, second = asyncio.create_task(resource.call()), asyncio.create_task(resource.call())
    await let_tasks_settle(first, second)
    first.cancel()
    resource.gate.set()
    assert await second == "done"
    assert first.cancelled()
    assert resource.opened == 1


@pytest.mark.asyncio
async def test_a_failure_without_waiting_callers_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If every caller was cancelled, asyncio does not log the failure as never retrieved."""
    resource = Resource()
    resource.gate.clear()
    resource.failures.append(FluxMemoryError("no caller is left"))
    task = asyncio.create_task(resource.call())
    await let_tasks_settle(task)
    task.cancel()
    resource.gate.set()
    await asyncio.gather(task, return_exceptions=True)
    await let_tasks_settle()
    assert caplog.records == []
    assert await resource.call() == "done"


@pytest.mark.asyncio
async def test_closing_waits_for_calls_in_flight() -> None:
    """No acknowledged write is lost: the resource closes after the last call, and no new call starts."""
    resource, until = Resource(), asyncio.Event()
    calls = [asyncio.create_task(resource.call(until)) for _ in range(3)]
    await let_tasks_settle(*calls)
    closing = asyncio.create_task(resource.life.close())
    await let_tasks_settle(closing)
    assert resource.closed == 0
    with pytest.raises(MemoryClosedError, match="this memory is closed; open another one"):
        await resource.call()
    until.set()
    await closing
    assert [await call for call in calls] == ["done"] * 3
    assert resource.closed == 1


@pytest.mark.asyncio
async def test_closing_waits_a_bounded_time() -> None:
    """A hanging call does not keep a program from ending; closing the resource gets the rest of the grace only."""
    resource = Resource(grace=1.1)
    hanging = asyncio.create_task(resource.call(asyncio.Event()))
    await let_tasks_settle(hanging)
    await asyncio.wait_for(resource.life.close(), 5)
    assert resource.closed == 1
    assert resource.seconds == 1.0
    hanging.cancel()


@pytest.mark.asyncio
async def test_closing_while_opening_leaves_nothing_open() -> None:
    """The caller that started the opening gets an answer, and the opened resource is closed."""
    resource = Resource()
    resource.gate.clear()
    call = asyncio.create_task(resource.call())
    await let_tasks_settle(call)
    closing = asyncio.create_task(resource.life.close())
    await let_tasks_settle()
    resource.gate.set()
    await closing
    assert await call == "done"
    assert (resource.opened, resource.closed) == (1, 1)


@pytest.mark.asyncio
async def test_closing_after_the_opener_was_cancelled_leaves_nothing_open() -> None:
    """The opening continues without its caller, and closing waits for it."""
    resource = Resource()
    resource.gate.clear()
    call = asyncio.create_task(resource.call())
    await let_tasks_settle(call)
    call.cancel()
    closing = asyncio.create_task(resource.life.close())
    await asyncio.gather(call, return_exceptions=True)
    resource.gate.set()
    await closing
    assert (resource.opened, resource.closed) == (1, 1)


@pytest.mark.asyncio
async def test_an_opening_that_outlasts_the_grace_leaves_nothing_open() -> None:
    """The opening is abandoned, and its callers learn that the memory is closed; they see no cancellation."""
    resource = Resource(grace=0.05)
    resource.gate.clear()
    call = asyncio.create_task(resource.call())
    await let_tasks_settle(call)
    await asyncio.wait_for(resource.life.close(), 5)
    resource.gate.set()
    with pytest.raises(MemoryClosedError):
        await call
    await let_tasks_settle()
    assert resource.life.resource is None


@pytest.mark.asyncio
async def test_closing_is_idempotent_also_at_once() -> None:
    """Twice, ten times at once, after a cancelled attempt: closed once, and each call returns when it is closed."""
    resource = Resource()
    await resource.call()
    cancelled = asyncio.create_task(resource.life.close())
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(*(resource.life.close() for _ in range(10)))
    await resource.life.close()
    assert resource.closed == 1


def cancel_all_tasks() -> None:
    """Cancel every task, as `asyncio.run` and applications do when they shut down."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(6))
async def test_an_opening_cancelled_with_every_task_starts_again(turns: int) -> None:
    """In whichever turn it was cancelled, the first included, the next call opens, and closing leaves nothing open."""
    resource = Resource()
    if turns > 3:
        resource.gate.clear()
    calls = [asyncio.create_task(resource.call()) for _ in range(3)]
    for _ in range(turns):
        await asyncio.sleep(0)
    cancel_all_tasks()
    resource.gate.set()
    assert await resource.call() == "done"
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {"done" if outcome == "done" else type(outcome) for outcome in outcomes} <= {"done", asyncio.CancelledError}
    await resource.life.close()
    assert resource.closed == 1


@pytest.mark.asyncio
async def test_a_caller_outlives_the_opening_that_it_waits_for() -> None:
    """A caller that was not cancelled itself is neither cancelled nor told that the memory is closed."""
    resource = Resource()
    resource.gate.clear()
    call = asyncio.create_task(resource.call())
    await let_tasks_settle(call)
    for task in asyncio.all_tasks() - {asyncio.current_task(), call}:
        task.cancel()
    resource.gate.set()
    assert await call == "done"
    assert resource.opened == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(6))
async def test_a_close_that_was_cancelled_with_every_task_continues(turns: int) -> None:
    """Cancelled while it waits for a call or closes the resource, the next `close()` completes the closing."""
    resource = Resource()
    await resource.call()
    resource.closing.clear()
    calls: list[asyncio.Task[Any]] = []
    if turns % 2:
        calls.append(asyncio.create_task(resource.call(asyncio.Event())))
        await let_tasks_settle(*calls)
    calls += [asyncio.create_task(resource.life.close()) for _ in range(2)]
    for _ in range(turns):
        await asyncio.sleep(0)
    cancel_all_tasks()
    resource.closing.set()
    await asyncio.gather(resource.life.close(), resource.life.close())
    assert (resource.closed, resource.life.resource) == (1, None)
    await asyncio.gather(*calls, return_exceptions=True)
    await resource.life.close()
    assert resource.closed == 1


@pytest.mark.asyncio
async def test_a_close_that_failed_is_tried_again() -> None:
    """A resource that failed to close still belongs to the handle, and the next `close()` closes it."""
    resource = Resource()
    await resource.call()
    resource.failures.append(ValueError("not yet"))
    with pytest.raises(ValueError, match="not yet"):
        await resource.life.close()
    await resource.life.close()
    assert resource.closed == 1


@pytest.mark.asyncio
async def test_closing_an_unopened_handle_opens_nothing() -> None:
    """A handle that is created and never used costs nothing."""
    resource = Resource()
    await resource.life.close()
    assert (resource.opened, resource.closed) == (0, 0)
    with pytest.raises(MemoryClosedError):
        resource.life.check_open()


def test_a_call_after_the_home_loop_has_ended_runs_on_a_loop_of_its_own() -> None:
    """A script may call `asyncio.run` for each call; one thread serves all calls but the first."""
    resource = Resource()
    for _ in range(3):
        assert asyncio.run(resource.call()) == "done"
    assert (resource.opened, resource.twin.opened) == (1, 1)
    asyncio.run(resource.life.close())
    assert (resource.closed, resource.twin.closed) == (1, 1)
    assert "flux-memory-loop" not in {thread.name for thread in threading.enumerate()}


def test_closing_on_another_event_loop_releases_the_resource() -> None:
    """The first loop may be gone; closing still releases what it can and returns, also the second time."""
    resource = Resource()
    asyncio.run(resource.call())
    asyncio.run(resource.life.close())
    asyncio.run(resource.life.close())
    assert resource.closed == 1
