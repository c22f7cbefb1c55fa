"""Routes the reads of a handle: to a replica that has replayed enough, otherwise to the primary."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import cache
from itertools import cycle, islice
from operator import methodcaller
from typing import Any, Final, NamedTuple, overload
from zlib import crc32

from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.observation import Observers, name_server
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.replicas.bookmarks import Bookmarks
from flux_memory.backends.postgres.replicas.log import FLUSHED, PrimaryLog
from flux_memory.backends.postgres.replicas.replica import Replica, show_address
from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.dsn import Dsn, parse_dsn
from flux_memory.errors import InvalidInputError
from flux_memory.records import check_seconds

_LOOK_INTERVAL_SECONDS: Final = 0.25
"""Seconds between two looks at the replicas while there are reads."""
_UNREAD_SECONDS: Final = 2.0
"""Seconds after the last read at which the looks end, until the next read."""
_REPLICA_SHARE: Final = 0.5
"""Share of the deadline for an answer of a replica; the rest is for the primary."""
_SAMPLE_SHARE: Final = 0.5
"""Share of the largest lag after which a read begins a new sample, so that the next reads need not wait for it."""

# The position is negative on a primary. Of a read without rows, one row with NULL arrives. A join without a condition
# keeps the order of its only input.
WITH_POSITION: Final = """
SELECT place.position, answer.*
FROM (
    SELECT CASE
        WHEN pg_catalog.pg_is_in_recovery() THEN (pg_catalog.pg_last_wal_replay_lsn() - '0/0')::bigint
        ELSE ('0/0' - {flushed})::bigint
    END AS position
    OFFSET 0
) AS place
LEFT JOIN LATERAL ({read}) AS answer ON TRUE
"""


class ReplicaOptions(NamedTuple):
    """What a handle and its twins share to read on replicas."""

    target: Dsn
    """The DSN with all replicas."""
    max_size: int
    """The largest number of connections for reads to each."""
    max_lag: float
    """The largest lag in seconds behind the commits of other handles."""
    timeout: float
    """The deadline of a call in seconds."""
    bookmarks: Bookmarks
    observers: dict[str, Observers]
    """The observers of each replica's connections, by its host and port."""


def choose_replicas(
    dsn: object,
    max_size: int,
    max_lag: float,
    timeout: float,
) -> ReplicaOptions:
    """Return the replicas that a DSN names.

    Args:
        dsn: A DSN in which each host is a replica.
        max_size: The largest number of connections for reads to each.
        max_lag: The largest lag in seconds.
        timeout: The deadline of a call in seconds.

    Raises:
        InvalidInputError: The DSN is invalid; the message never shows a password.
    """
    try:
        target = parse_dsn(dsn)
    except InvalidInputError as error:
        raise type(error)(f"replica_dsn: {error}") from None
    observers = {
        show_address(address): Observers(name_server(target._replace(addresses=(address,))))
        for address in target.addresses
    }
    return ReplicaOptions(target, max_size, max_lag, timeout, Bookmarks(max_lag), observers)


def check_lag(value: object) -> float:
    """Return `max_replica_lag`, which may be 0.

    Raises:
        InvalidInputError: The value is not a number of seconds, 0 or more.
    """
    if value == 0 and not isinstance(value, bool):
        return 0.0
    return check_seconds("max_replica_lag", value)


class ReplicaReads:
    """Runs reads on replicas, and watches these while there are reads.

    A replica may answer if it has replayed the primary's log up to a sample that is not older than the largest lag
    allowed, than the session's last write through the handle, and than what the handle read of it before.

    Args:
        options: The replicas, and what the handle shares with its twins.
        executor: Runs statements on the primary.
    """

    def __init__(self, options: ReplicaOptions, executor: RetryingExecutor) -> None:
        self._max_lag = options.max_lag
        self._timeout = options.timeout
        self._bookmarks = options.bookmarks
        self._executor = executor
        self._log = PrimaryLog(executor)
        target = options.target
        self.replicas: Final = [
            Replica(target._replace(addresses=(address,)), options.max_size, options.observers[show_address(address)])
            for address in target.addresses
        ]
        # Listings of different handles use different replicas.
        self._offset = random.randrange(len(self.replicas))  # noqa: S311 - no secret
        self._timeline: int | None = None
        self._watching: asyncio.Task[None] | None = None
        self._read_at = 0.0
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self.loop_end: AsyncGenerator[None, None] | None = None
        """Closes the connections at the end of the event loop."""

    async def look(self) -> None:
        """Look at the replicas that are in use or due; each look ends within a second or so."""
        sample = await self._log.since(time.monotonic() - _UNREAD_SECONDS)
        if sample is not None:
            self._follow_timeline(sample.timeline)
            await asyncio.gather(*(replica.look(sample) for replica in self.replicas if replica.is_due))

    async def fetch(
        self, state: CallState, session_id: str | None, sql: str, values: Sequence[object]
    ) -> Sequence[Any]:
        """Run a read and return its rows.

        Args:
            state: The state of the call.
            session_id: The session that it reads; `None` for a listing or a count.
            sql: The statement.
            values: The values of its parameters.
        """
        located = _with_position(sql)
        found = None
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_for(self._timeout) * _REPLICA_SHARE):
                found = await self._fetch_from_replica(state, session_id, located, values)
        rows: list[Any] = (
            await self._executor.run(state, methodcaller("fetch", located, *values)) if found is None else found
        )
        position, first, *_ = rows[0]
        self._bookmarks.note_read(session_id, abs(position or 0))
        return [] if first is None else _Answer(rows)

    async def close(self, seconds: float) -> None:
        """Stop watching, and close the connections to the replicas."""
        self._closing = True
        try:
            # Tasks of another event loop, which has ended, end with it.
            if self._loop is asyncio.get_running_loop():
                if self._watching is not None and not self._watching.done():
                    self._watching.cancel()
                    await asyncio.wait([self._watching])
                await self._log.close()
                await asyncio.gather(*(replica.close(seconds) for replica in self.replicas))
        finally:
            self.terminate()

    def terminate(self) -> None:
        """Drop the connections to the replicas."""
        self._closing = True
        for replica in self.replicas:
            replica.terminate()

    async def _fetch_from_replica(
        self, state: CallState, session_id: str | None, sql: str, values: Sequence[object]
    ) -> list[Any] | None:
        self._keep_watching()
        if not any(replica.in_use for replica in self.replicas):
            return None
        need = self._bookmarks.needed(session_id)
        sample = self._log.find(need.moment)
        if sample is None:
            sample = await self._log.since(need.moment)
        elif self._log.age > self._max_lag * _SAMPLE_SHARE:
            self._log.begin()
        newest = self._log.newest
        if sample is None or newest is None:
            return None
        self._follow_timeline(newest.timeline)
        position = max(sample.position, need.position)
        replica = self._choose(session_id, position)
        return None if replica is None else await replica.read(state, sql, values, position)

    def _choose(self, session_id: str | None, position: int) -> Replica | None:
        """Return a replica that has replayed enough, or else any that is in use; the session's own one if possible."""
        first = (crc32((session_id or "").encode()) + self._offset) % len(self.replicas)
        ordered = [each for each in islice(cycle(self.replicas), first, first + len(self.replicas)) if each.in_use]
        return next((each for each in ordered if each.replayed >= position), next(iter(ordered), None))

    def _follow_timeline(self, timeline: int) -> None:
        if self._timeline not in {None, timeline}:
            for replica in self.replicas:
                replica.distrust()
        self._timeline = timeline

    def _keep_watching(self) -> None:
        # The task may have been cancelled together with all tasks of the application.
        self._read_at = time.monotonic()
        if not self._closing and (self._watching is None or self._watching.done()):
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while not self._closing and time.monotonic() - self._read_at < _UNREAD_SECONDS:
            await self.look()
            await asyncio.sleep(_LOOK_INTERVAL_SECONDS)


class _Answer(Sequence[Any]):
    """The rows of a read without its position, cut when they are used: long results are built in a thread."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> tuple[Any, ...]: ...

    @overload
    def __getitem__(self, at: slice) -> list[tuple[Any, ...]]: ...

    def __getitem__(self, at: int | slice) -> tuple[Any, ...] | list[tuple[Any, ...]]:
        return [row[1:] for row in self._rows[at]] if isinstance(at, slice) else self._rows[at][1:]


@cache
def _with_position(sql: str) -> str:
    return WITH_POSITION.format(flushed=FLUSHED, read=sql)
