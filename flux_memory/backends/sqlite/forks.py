"""Pauses SQLite's threads while the process forks.

SQLite keeps a process's locks in memory, and a child would believe that it holds the parent's. So no call runs while
the process is copied, and the child closes its copies of the connections.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final, Protocol

_FORK_SECONDS: Final = 5.0
"""Seconds that a fork waits for a thread to pause."""


class Worker(Protocol):
    """A thread that uses SQLite."""

    at_rest: threading.Lock

    def close_copy(self) -> None: ...


_LISTING: Final = threading.Lock()
"""Held to add a worker, and while the process forks."""
_WORKERS: Final[weakref.WeakSet[Worker]] = weakref.WeakSet()
_PAUSED: Final[list[Worker]] = []
"""The workers that are paused while the process forks."""


def pause_at_forks(worker: Worker) -> None:
    """Let forks wait for a worker that is going to use SQLite, after a fork that is under way."""
    with _LISTING:
        _WORKERS.add(worker)


def _pause_workers() -> None:
    _LISTING.acquire()
    for worker in list(_WORKERS):
        if worker.at_rest.acquire(timeout=_FORK_SECONDS):
            _PAUSED.append(worker)


def _release_workers() -> None:
    while _PAUSED:
        _PAUSED.pop().at_rest.release()
    _LISTING.release()


def _close_copies() -> None:
    while _PAUSED:
        _PAUSED.pop().close_copy()
    # A fork of the child does not wait for the parent's threads.
    _WORKERS.clear()
    _LISTING.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause_workers, after_in_parent=_release_workers, after_in_child=_close_copies)
