"""aiosqlite's thread, as a place to run functions: the only use of names that aiosqlite does not promise.

aiosqlite has no public way to run a function on its thread, nor to make the thread a daemon. Without that, a handle
that was never closed would keep the interpreter from ending. `pyproject.toml` bounds the version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial

import aiosqlite

from flux_memory.errors import BackendUnavailableError


class DriverThread:
    """A thread that runs functions in the order in which they are sent.

    Raises:
        BackendUnavailableError: The process has no thread or memory left.
    """

    def __init__(self) -> None:
        self._connection = aiosqlite.Connection(partial(sqlite3.connect, ":memory:"), iter_chunk_size=64)
        self.thread = self._connection._thread  # noqa: SLF001
        self.thread.daemon = True
        try:
            self.thread.start()
        except RuntimeError as error:
            raise BackendUnavailableError(
                f"SQLite's thread cannot be started: {error}; raise the process's limit of threads or memory"
            ) from error

    def send(self, function: Callable[[], object]) -> None:
        """Run a function on the thread, after those sent before."""
        self._connection._tx.put_nowait((None, function))  # noqa: SLF001

    def stop(self) -> None:
        """End the thread after the functions sent before."""
        self._connection.stop()
