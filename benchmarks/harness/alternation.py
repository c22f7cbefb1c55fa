"""Compares the cost of two calls that are made by turns: load on the machine slows both alike."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

MeasuredWork = Callable[[], Awaitable[object]]
CPU_CALLS: Final = 20
"""Calls whose CPU time is read together: the clock is not finer."""


@dataclass(frozen=True)
class Pair:
    """A call and the call that it is measured against."""

    name: str
    work: MeasuredWork
    base: MeasuredWork
    at_most: float | None = None
    """The largest ratio of the call's time to the base's; `None` for no target."""
    at_most_us: float | None = None
    """The largest difference in microseconds."""
    calls: int = 100
    """Calls of each in a round."""


async def measure_round(pair: Pair, chance: random.Random) -> dict[str, float]:
    """Return the median microseconds of both calls."""
    taken: dict[str, list[float]] = {"us": [], "base_us": []}
    both = [("us", pair.work), ("base_us", pair.base)]
    for _ in range(pair.calls):
        chance.shuffle(both)
        for name, call in both:
            began = time.perf_counter_ns()
            await call()
            taken[name].append((time.perf_counter_ns() - began) / 1000)
    return {name: median(each) for name, each in taken.items()}


async def measure_cpu(calls: dict[str, MeasuredWork], turns: int) -> dict[str, float]:
    """Return the microseconds of this process's CPU that each call takes: medians of turns, one call after another."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            began = time.process_time_ns()
            for _ in range(CPU_CALLS):
                await call()
            taken[name].append((time.process_time_ns() - began) / 1000 / CPU_CALLS)
    return {name: median(each) for name, each in taken.items()}
