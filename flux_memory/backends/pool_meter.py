"""Counts what a pool of connections does, for `pool_stats()` and for the observers of a handle."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, Final

from flux_memory.backends.observation import Observers
from flux_memory.backends.pool_stats import PoolStats

RECENT_WAITS: Final = 1_000
"""Waits for a connection that are kept for the median and the longest one."""


class MeteredPool:
    """A pool, or the connection of a thread, with a meter.

    Args:
        meter: Counts what it does.
    """

    def __init__(self, meter: PoolMeter) -> None:
        self.meter: Final = meter

    @property
    def waits(self) -> deque[float]:
        """The last waits for a connection in seconds, the newest at the end."""
        return self.meter.waits


class PoolMeter:
    """The counters of one pool. Each counter is changed by one thread only.

    Args:
        observers: The observers of the handle that the pool belongs to.
    """

    def __init__(self, observers: Observers) -> None:
        self.observers = observers
        self.waiting = 0
        self.acquired = 0
        self.timeouts = 0
        self.created = 0
        self.closed = 0
        self.waits: deque[float] = deque(maxlen=RECENT_WAITS)
        """The last waits for a connection in seconds, the newest at the end."""
        self._taken: dict[Any, float] = {}
        """When each connection in use was taken; filled only while there is an observer."""

    def note_taken(self, connection: Any, waited_seconds: float = 0.0) -> None:
        """Count a connection that a call has taken."""
        self.acquired += 1
        self.waits.append(waited_seconds)
        if (observer := self.observers.active) is not None:
            observer.waited(self.observers, waited_seconds)
            self._taken[connection] = time.perf_counter()

    def note_returned(self, connection: Any) -> None:
        """Note that a call has given a connection back."""
        if self._taken and (since := self._taken.pop(connection, None)) is not None:
            self.note_used(time.perf_counter() - since)

    def note_used(self, seconds: float) -> None:
        """Report for how long a call used a connection."""
        if (observer := self.observers.active) is not None:
            observer.used(self.observers, seconds)

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Count a call as waiting."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def note_created(self, seconds: float) -> None:
        """Count a connection that was opened in so many seconds."""
        self.created += 1
        if (observer := self.observers.active) is not None:
            observer.connected(self.observers, seconds)

    def note_timeout(self) -> None:
        """Count a call whose deadline passed before it had a connection."""
        self.timeouts += 1
        if (observer := self.observers.active) is not None:
            observer.timed_out(self.observers)

    def note_retry(self, reason: str) -> None:
        """Report that a statement runs again."""
        if (observer := self.observers.active) is not None:
            observer.retried(self.observers, reason)

    def note_reconnect(self, reason: str) -> None:
        """Report that another connection is tried."""
        if (observer := self.observers.active) is not None:
            observer.reconnected(self.observers, reason)

    def note_batch(self, calls: int) -> None:
        """Report how many calls share a statement or a transaction."""
        if (observer := self.observers.active) is not None:
            observer.batched(self.observers, calls)

    def stats(self, limits: tuple[int, int], *, size: int, idle: int, waiting: int | None = None) -> PoolStats:
        """Return the figures.

        Args:
            limits: The number of connections that are kept, and the largest one.
            size: Open connections.
            idle: Those that no call uses.
            waiting: Calls that wait; by default those in `wait()`.
        """
        waits = list(self.waits)
        return PoolStats(
            min_size=limits[0],
            max_size=limits[1],
            size=size,
            idle=idle,
            in_use=max(size - idle, 0),
            waiting=self.waiting if waiting is None else waiting,
            acquired=self.acquired,
            timeouts=self.timeouts,
            created=self.created,
            closed=self.closed,
            longest_wait_seconds=max(waits, default=0.0),
            median_wait_seconds=median(waits) if waits else 0.0,
        )
