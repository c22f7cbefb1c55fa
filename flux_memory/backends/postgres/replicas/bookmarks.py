"""Remembers what the next reads of a handle must show: its own writes, and what it has read before."""

from __future__ import annotations

import time
from threading import Lock
from typing import Final, NamedTuple


class Need(NamedTuple):
    """What a replica must have replayed before it may answer a read."""

    moment: float
    """A time of `time.monotonic()`: everything that was committed by then."""
    position: int
    """A position in the primary's log."""


class Bookmarks:
    """The bookmarks of a handle by session, shared by its twins on other event loops.

    A bookmark that is older than the largest lag allowed needs nothing: any read shows what was committed by then.

    Args:
        max_lag: The largest lag in seconds of a read behind the commits of other handles.
    """

    def __init__(self, max_lag: float) -> None:
        self._max_lag: Final = max_lag
        self._lock = Lock()
        self._written: dict[str | None, float] = {}
        """When the last write of each session ended, in order; `None` stands for writes to any session."""
        self._seen: dict[str | None, tuple[float, int]] = {}
        """When each session was last read, in order, and the position of the read; `None` stands for listings."""
        self._last_write = float("-inf")

    def note_write(self, session_id: str | None) -> None:
        """Note that a write has ended, also if it failed: its outcome may be unknown.

        Args:
            session_id: The session that it changed; `None` for several.
        """
        with self._lock:
            self._last_write = now = time.monotonic()
            self._written.pop(session_id, None)
            self._written[session_id] = now
            while (oldest := next(iter(self._written))) != session_id and self._written[oldest] < now - self._max_lag:
                del self._written[oldest]

    def note_read(self, session_id: str | None, position: int) -> None:
        """Note that a read has ended.

        Args:
            session_id: The session; `None` for a listing or a count.
            position: A position in the log, at or after the snapshot of the read.
        """
        with self._lock:
            now = time.monotonic()
            _, earlier = self._seen.pop(session_id, (now, 0))
            self._seen[session_id] = now, max(position, earlier)
            while (oldest := next(iter(self._seen))) != session_id and self._seen[oldest][0] < now - self._max_lag:
                del self._seen[oldest]

    def needed(self, session_id: str | None) -> Need:
        """Return what a read of a session, or of a listing, must show."""
        with self._lock:
            since = time.monotonic() - self._max_lag
            own = self._last_write
            if session_id is not None:
                own = max(self._written.get(each, since) for each in (session_id, None))
            seen, position = self._seen.get(session_id, (since, 0))
            return Need(max(since, own), position if seen > since else 0)
