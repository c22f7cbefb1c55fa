"""The figures of a memory's connections, and their sum over its pools."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

RECENT_WAITS: Final = 1_000
"""Waits for a connection that are kept for the median and the longest one."""


@dataclass(frozen=True)
class PoolStats:
    """A memory's connections at one moment, and what it has done with them; see `docs/operations/metrics.md`.

    On SQLite the pool is the one connection of the handle's thread: the calls that wait for it are those in its queues.
    """

    min_size: int
    """Connections that are kept open while no call uses them."""
    max_size: int
    """The largest number of connections; twice that of the handle once another event loop uses the memory.

    Like `min_size` it is 0 before the first call on SQLite and after `close()`.
    """
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
    replicas: Mapping[str, PoolStats] = field(default_factory=dict, hash=False)
    """The same of each replica, by host and port; the other figures are the primary's. Empty without replicas."""


class Occupancy(NamedTuple):
    """The connections of one pool at one moment; the names are those of `PoolStats`."""

    min_size: int = 0
    max_size: int = 0
    size: int = 0
    idle: int = 0
    waiting: int = 0


class Counters:
    """What one pool has done so far; the names are those of `PoolStats`. Each is changed by one thread only."""

    def __init__(self) -> None:
        self.acquired = 0
        self.timeouts = 0
        self.created = 0
        self.closed = 0
        self.waits: deque[float] = deque(maxlen=RECENT_WAITS)
        """The last waits for a connection in seconds, the newest at the end."""

    def absorb(self, ended: Counters) -> None:
        """Add what a pool that is gone has done."""
        self.acquired += ended.acquired
        self.timeouts += ended.timeouts
        self.created += ended.created
        self.closed += ended.closed
        self.waits.extend(ended.waits)


class CountingPool(Protocol):
    """A pool, or the connection of a thread, that counts what it does."""

    def occupancy(self) -> Occupancy:
        """Return the connections at this moment."""
        ...


def sum_stats(pools: Sequence[CountingPool], counters: Sequence[Counters]) -> PoolStats:
    """Return the sums of the figures of several pools.

    Args:
        pools: The pools that exist.
        counters: Their counters, and those of pools that are gone.
    """
    from statistics import median  # noqa: PLC0415 - loads more than the rest of the module, and few handles are asked

    now = [pool.occupancy() for pool in pools]
    waits = [seconds for each in counters for seconds in list(each.waits)]
    size, idle = sum(each.size for each in now), sum(each.idle for each in now)
    return PoolStats(
        min_size=sum(each.min_size for each in now),
        max_size=sum(each.max_size for each in now),
        size=size,
        idle=idle,
        in_use=max(size - idle, 0),
        waiting=sum(each.waiting for each in now),
        acquired=sum(each.acquired for each in counters),
        timeouts=sum(each.timeouts for each in counters),
        created=sum(each.created for each in counters),
        closed=sum(each.closed for each in counters),
        longest_wait_seconds=max(waits, default=0.0),
        median_wait_seconds=median(waits) if waits else 0.0,
    )
