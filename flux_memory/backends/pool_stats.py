"""The figures of a memory's connections, and their sum over its pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol


@dataclass(frozen=True)
class PoolStats:
    """A memory's connections at one moment, and what it has done with them; see `docs/operations/metrics.md`.

    On SQLite the pool is the one connection of the handle's thread: the calls that wait for it are those in its queues.
    """

    min_size: int
    """Connections that are kept open while no call uses them."""
    max_size: int
    """The largest number of connections; twice that of the settings once another event loop uses the memory."""
    size: int
    """Open connections."""
    idle: int
    """Open connections that no call uses."""
    in_use: int
    """Open connections that calls use, or that are being checked or given back."""
    waiting: int
    """Calls and statements that wait for a connection. On PostgreSQL, adds that share a statement count once."""
    acquired: int
    """Times that a connection was taken, since the handle was made."""
    timeouts: int
    """Calls whose deadline passed before they had a connection."""
    created: int
    """Connections that were opened."""
    closed: int
    """Connections that were closed, dropped or lost."""
    longest_wait_seconds: float
    """The longest of the last 1,000 waits for a connection; 0.0 before the first."""
    median_wait_seconds: float
    """The median of the last 1,000 waits for a connection, most of which are 0.0; 0.0 before the first."""


class CountingPool(Protocol):
    """A pool, or the connection of a thread, that counts what it does."""

    @property
    def waits(self) -> Sequence[float]:
        """The last waits for a connection in seconds, the newest at the end."""
        ...

    def stats(self) -> PoolStats:
        """Return the figures of this pool."""
        ...


def sum_stats(pools: Sequence[CountingPool]) -> PoolStats:
    """Return the sums of several pools' figures, and their waits together."""
    found = [pool.stats() for pool in pools]
    waits = [seconds for pool in pools for seconds in list(pool.waits)]

    def total(name: str) -> int:
        return sum(getattr(each, name) for each in found)

    return PoolStats(
        min_size=total("min_size"),
        max_size=total("max_size"),
        size=total("size"),
        idle=total("idle"),
        in_use=total("in_use"),
        waiting=total("waiting"),
        acquired=total("acquired"),
        timeouts=total("timeouts"),
        created=total("created"),
        closed=total("closed"),
        longest_wait_seconds=max(waits, default=0.0),
        median_wait_seconds=median(waits) if waits else 0.0,
    )
