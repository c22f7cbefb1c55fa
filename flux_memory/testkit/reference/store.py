"""The reference model's store: a dict, or a file that several processes share under a lock."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Sessions = dict[str, dict[str, Any]]
"""Each session's record by its id, with its messages under the key `messages`; or each entry of feedback by its id."""


class ReferenceStore:
    """The data that the handles of one store share.

    Args:
        path: A file that keeps the data beyond this process; by default it is in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._sessions: Sessions = {}
        self._lock = threading.RLock()
        self._feedback: ReferenceStore | None = None

    @property
    def feedback(self) -> ReferenceStore:
        """The feedback on sessions, which outlives them: each entry by its id."""
        with self._lock:
            path = self._path and self._path.with_name(f"{self._path.stem}-feedback{self._path.suffix}")
            self._feedback = self._feedback or ReferenceStore(path)
            return self._feedback

    def share_feedback(self, other: ReferenceStore) -> None:
        """Use the feedback of another store."""
        self._feedback = other.feedback

    @contextmanager
    def reading(self) -> Iterator[Sessions]:
        """Yield the current sessions."""
        with self._lock:
            yield self._load() if self._path else self._sessions

    @contextmanager
    def writing(self) -> Iterator[Sessions]:
        """Yield the sessions to change; changes are kept if the block succeeds. Blocks check first, then change."""
        with self._lock:
            if self._path is None:
                yield self._sessions
                return
            with _locked(self._path.with_suffix(".lock")):
                sessions = self._load()
                yield sessions
                self._save(sessions)

    def _load(self) -> Sessions:
        assert self._path is not None
        try:
            sessions: Sessions = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        return sessions

    def _save(self, sessions: Sessions) -> None:
        """Replace the file atomically, so that a reader, or a crash, leaves the old state or the new one."""
        assert self._path is not None
        written = self._path.with_suffix(".new")
        with written.open("w", encoding="utf-8") as file:
            # `dumps` encodes in C, `dump` in Python.
            file.write(json.dumps(sessions))
            file.flush()
            os.fsync(file.fileno())
        written.replace(self._path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # noqa: PLC0415 - only file stores need it, and Windows does not have it

    # Opened each time: the lock belongs to the open file, which a forked process would share.
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
