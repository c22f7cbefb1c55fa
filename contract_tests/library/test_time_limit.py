"""Tests the limit of a call's time against `asyncio.timeout()`, whose behavior it must have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from flux_memory.backends.deadlines import TimeLimit
from flux_memory.backends.shared_timer import SharedTimer

Limit = Callable[[float], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def limit_time(seconds: float) -> AsyncIterator[None]:
    """Run a block within a `TimeLimit`."""
    with TimeLimit(seconds, SharedTimer(asyncio.get_running_loop())):
        yield


pytestmark = [pytest.mark.asyncio, pytest.mark.parametrize("limit", [limit_time, asyncio.timeout])]


def _cancellations() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_a_block_that_takes_too_long_raises_a_timeout(limit: Limit) -> None:
    """The error names the cancellation as its cause, and the task can go on."""
    with pytest.raises(TimeoutError) as caught:
        async with limit(0.01):
            await asyncio.Event().wait()
    # Python's own names none in early releases of 3.11.
    assert limit is asyncio.timeout or isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert _cancellations() == 0
    await asyncio.sleep(0)


async def test_no_time_ends_at_the_first_wait(limit: Limit) -> None:
    """A call may begin with no time left."""
    with pytest.raises(TimeoutError):
        async with limit(0):
            await asyncio.Event().wait()


async def test_a_block_in_time_keeps_its_result_and_its_error(limit: Limit) -> None:
    """The timer ends with the block."""
    with pytest.raises(KeyError):
        async with limit(0.01):
            raise KeyError
    async with limit(0.01):
        pass
    await asyncio.sleep(0.03)
    assert _cancellations() == 0


async def test_the_inner_of_two_limits_does_not_end_the_outer(limit: Limit) -> None:
    """Each limit takes back its own cancellation only."""
    async with limit(30):
        with pytest.raises(TimeoutError):
            async with limit(0.01):
                await asyncio.Event().wait()
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with limit(0.01), limit(30):
            await asyncio.Event().wait()
    assert _cancellations() == 0


async def test_a_cancellation_from_outside_passes(limit: Limit) -> None:
    """A cancelled task is not reported as late, also if its limit passes during the cleanup."""
    cleaned = []

    async def work() -> None:
        async with limit(0.02):
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    await asyncio.Event().wait()
                finally:
                    cleaned.append(_cancellations())

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert cleaned == [2]
