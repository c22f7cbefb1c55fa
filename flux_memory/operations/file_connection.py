"""Gives an operator's command a connection to a SQLite file in a thread, with the library's errors and a deadline."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from flux_memory.backends.sqlite.errors import translate_errors
from flux_memory.backends.sqlite.file import can_only_be_read, check_usable, hint_at_original, refuse_special_files
from flux_memory.errors import BackendUnavailableError
from flux_memory.schema import sqlite as schema

Result = TypeVar("Result")

_LOCK_SHARE: Final = 0.9
"""Share of the deadline to wait for another process's lock; the rest lets the caller report it."""
_CLOCK_INSTRUCTIONS: Final = 10_000
"""Instructions of SQLite's virtual machine between two checks of the clock."""


async def run_on_file(
    path: str,
    work: Callable[[sqlite3.Connection], Result],
    timeout: float,  # noqa: ASYNC109 - bounds a thread
    *,
    writes: bool = False,
    lock_seconds: float | None = None,
) -> Result:
    """Open an existing file in a thread, run work on the connection, and close it.

    Args:
        path: The file.
        work: Takes the connection, which is in autocommit mode.
        timeout: Seconds until a statement that still runs is interrupted.
        writes: Whether the work may write.
        lock_seconds: Seconds to wait for another process's lock; by default nearly the timeout.

    Raises:
        FluxMemoryError: There is no such file, it cannot be used, or the work did not end in time.
    """
    waits = timeout * _LOCK_SHARE if lock_seconds is None else lock_seconds
    limits = _Limits(time.monotonic() + timeout, waits, writes, threading.Event())
    running = asyncio.ensure_future(asyncio.to_thread(_run, Path(path), work, limits))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        # The thread closes the file before the call ends.
        limits.cancelled.set()
        await asyncio.wait([running])
        raise


class _Limits(NamedTuple):
    """The limits of one work; the lock's are in seconds."""

    ends: float
    lock_seconds: float
    writes: bool
    cancelled: threading.Event

    def are_over(self) -> bool:
        return self.cancelled.is_set() or time.monotonic() >= self.ends


def _run(path: Path, work: Callable[[sqlite3.Connection], Result], limits: _Limits) -> Result:
    file = path.absolute()
    refuse_special_files(file)
    if not file.exists():
        hint = hint_at_original(path)
        raise BackendUnavailableError(f"the file {file} does not exist; correct the path{f'; {hint}' if hint else ''}")
    is_frozen = not limits.writes and can_only_be_read(str(file))
    if not is_frozen:
        check_usable(file)
    # Not mode=ro alone: such a reader leaves the log's files behind.
    uri = f"{file.as_uri()}?{'mode=ro&immutable=1' if is_frozen else 'mode=rw'}"
    with (
        translate_errors(str(file)),
        closing(sqlite3.connect(uri, uri=True, timeout=limits.lock_seconds, isolation_level=None)) as db,
    ):
        db.set_progress_handler(limits.are_over, _CLOCK_INSTRUCTIONS)
        schema.distrust(db)
        if not limits.writes:
            db.execute("PRAGMA query_only = ON")
        return work(db)
