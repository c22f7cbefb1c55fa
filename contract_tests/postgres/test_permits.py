"""Tests the permits of a pool: what they promise also holds for `asyncio.Semaphore`."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from flux_memory.backends.postgres.permits import Permits

pytestmark = pytest.mark.asyncio


def _free(permits: Permits) -> int:
    """Return the number of free permits, which are then taken."""
    found = 0
    while permits.take():
        found += 1
    return found


async def test_a_permit_goes_to_the_caller_that_waited_longest() -> None:
    """A caller that comes as a permit is released does not overtake those that wait."""
    permits = Permits(1)
    order: list[int] = []

    async def use(number: int) -> None:
        await permits.wait()
        order.append(number)
        permits.release()

    assert permits.take()
    waiting = [asyncio.create_task(use(number)) for number in range(3)]
    await asyncio.sleep(0)
    permits.release()
    assert not permits.take()
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2]
    assert _free(permits) == 1


async def test_a_caller_that_leaves_takes_no_permit() -> None:
    """Cancelled before or after its turn came: the next caller gets the permit, and none is lost."""
    for releases_first in (False, True):
        permits = Permits(1)
        assert permits.take()
        leaving, staying = asyncio.create_task(permits.wait()), asyncio.create_task(permits.wait())
        await asyncio.sleep(0)
        steps = [permits.release, leaving.cancel]
        for step in steps if releases_first else reversed(steps):
            step()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await asyncio.wait_for(staying, 5)
        assert not permits.take()
        permits.release()
        assert _free(permits) == 1


async def test_callers_that_leave_are_forgotten() -> None:
    """Calls that give up at their deadlines leave nothing behind while every permit is taken."""
    permits = Permits(0)
    for _ in range(10):
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await permits.wait()
    assert not permits._waiters
