"""Samples how far the primary has written its log, with one statement for all reads that ask at the same time."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final, NamedTuple

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.connecting import DRIVER_ERRORS
from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.errors import FluxMemoryError

_SAMPLE_SECONDS: Final = 1.0
"""Seconds that a sample may take; then the reads that wait for it go to the primary."""
_KEPT_SAMPLES: Final = 256

# A commit that does not wait for the disk is acknowledged before the log is flushed.
FLUSHED: Final = """CASE current_setting('synchronous_commit')
    WHEN 'off' THEN pg_catalog.pg_current_wal_insert_lsn()
    ELSE pg_catalog.pg_current_wal_flush_lsn()
END"""
# The same on both servers only if they are one cluster, and the statements mean the same tables, functions and rows.
IDENTITY: Final = """pg_catalog.concat_ws(
    ' ',
    (SELECT system_identifier FROM pg_catalog.pg_control_system()),
    (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()),
    current_schemas(TRUE),
    pg_catalog.to_regclass('sessions')::oid,
    pg_catalog.to_regclass('session_details')::oid,
    pg_catalog.to_regclass('messages')::oid,
    CASE
        WHEN pg_catalog.row_security_active(pg_catalog.to_regclass('sessions')::oid)
            OR pg_catalog.row_security_active(pg_catalog.to_regclass('session_details')::oid)
            OR pg_catalog.row_security_active(pg_catalog.to_regclass('messages')::oid)
        THEN current_user
    END
)"""
SELECT_PRIMARY: Final = (
    f"SELECT {FLUSHED}, substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 1, 8), {IDENTITY}"
)


class Sample(NamedTuple):
    """The log of the primary at a moment."""

    began: float
    """A time of `time.monotonic()`: everything that was acknowledged by then is in the log before `position`."""
    position: int
    timeline: int
    """The number of the timeline; a promotion begins a new one."""
    identity: str
    """The cluster, the database, the search path and the tables."""


class PrimaryLog:
    """The samples of the primary's log.

    Args:
        executor: Runs statements on the primary.
    """

    def __init__(self, executor: RetryingExecutor) -> None:
        self._executor = executor
        self._samples: deque[Sample] = deque(maxlen=_KEPT_SAMPLES)
        self._sampling: asyncio.Task[None] | None = None
        self._began: float | None = None
        """When the running sample was sent; `None` while it waits for a connection."""

    @property
    def newest(self) -> Sample | None:
        """The last sample, if any."""
        return self._samples[-1] if self._samples else None

    @property
    def age(self) -> float:
        """Seconds since the last sample began."""
        return time.monotonic() - self._samples[-1].began if self._samples else math.inf

    async def since(self, moment: float) -> Sample | None:
        """Return the earliest sample that began after a moment, or else a new one; `None` if it failed."""
        found = self.find(moment)
        while found is None:
            is_late = self._sampling is not None and self._began is not None and self._began < moment
            sampling = self.begin()
            await asyncio.wait([sampling])
            found = self.find(moment)
            if found is None and not is_late:
                return None
        return found

    def find(self, moment: float) -> Sample | None:
        """Return the earliest sample that began after a moment."""
        found = None
        if self._samples and self._samples[0].began >= moment:
            return self._samples[0]
        for sample in reversed(self._samples):
            if sample.began < moment:
                break
            found = sample
        return found

    def begin(self) -> asyncio.Task[None]:
        """Begin a sample, unless one runs, and return its task."""
        if self._sampling is None or self._sampling.done():
            self._began = None
            self._sampling = asyncio.get_running_loop().create_task(self._sample())
        return self._sampling

    async def close(self) -> None:
        """Cancel a sample that runs."""
        if self._sampling is not None and not self._sampling.done():
            self._sampling.cancel()
            await asyncio.wait([self._sampling])

    async def _sample(self) -> None:
        with suppress(*DRIVER_ERRORS, FluxMemoryError):
            async with asyncio.timeout(_SAMPLE_SECONDS):
                sample = await self._executor.run(CallState(writes=False), self._select)
                if self._samples and sample.timeline != self._samples[-1].timeline:
                    # Positions of different timelines cannot be compared.
                    self._samples.clear()
                self._samples.append(sample)

    async def _select(self, connection: Any) -> Sample:
        self._began = began = time.monotonic()
        position, timeline, identity = (await connection.fetch(SELECT_PRIMARY))[0]
        return Sample(began, position, int(timeline, 16), identity)
