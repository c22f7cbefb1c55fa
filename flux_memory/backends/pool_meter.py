"""Counts what a pool of connections does, for `pool_stats()` and for the observers of a handle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from flux_memory.backends.observation import Observers
from flux_memory.backends.pool_stats import Counters, Occupancy


class MeteredPool:
    """A pool, or the connection of a thread, with a meter.

    Args:
        observers: The observers of the handle that the pool belongs to; their figures include this pool's from now on.
    """

    def __init__(self, observers: Observers) -> None:
        self.meter: Final = PoolMeter(observers)
        observers.add_pool(self, self.meter)

    def occupancy(self) -> Occupancy:
        """Return the connections at this moment."""
        raise NotImplementedError


class PoolMeter(Counters):
    """The counters of one pool, and its reports to the observers of its handle.

    Args:
        observers: The observers of the handle that the pool belongs to.
    """

    def __init__(self, observers: Observers) -> None:
        super().__init__()
        self.observers = observers
        self.waiting = 0
        self.taken: dict[Any, float] = {}
        """When each connection in use was taken; filled only while there is an observer."""

    def note_taken(self, connection: Any, waited_seconds: float = 0.0) -> None:
        """Count a connection that a call has taken."""
        self.acquired += 1
        self.waits.append(waited_seconds)
        if (observer := self.observers.active) is not None:
            observer.waited(self.observers, waited_seconds)
            self.taken[connection] = time.perf_counter()

    def note_returned(self, connection: Any) -> None:
        """Report for how long a call used a connection; needed only if `taken` has any."""
        since = self.taken.pop(connection, None)
        if since is not None and (observer := self.observers.active) is not None:
            observer.used(self.observers, time.perf_counter() - since)

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
