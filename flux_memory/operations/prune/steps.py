"""Prunes a store in steps, of which each deletes the oldest sessions that are left and takes about a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from flux_memory.backends.deadlines import deadline

if TYPE_CHECKING:
    from flux_memory.protocol import Memory

_FIRST_STEP: Final = 200
"""Sessions of the first step."""
_STEP_SECONDS: Final = 0.5
"""Seconds below which the next step has twice as many sessions."""
_LARGEST_STEP: Final = 20_000
"""Sessions of a step at most."""
_RESOLUTION: Final = timedelta(microseconds=1)
"""The distance of two times of a record."""


@dataclass(frozen=True)
class PruneCriteria:
    """Which sessions to delete; at least one criterion is given."""

    user_id: str | None = None
    inactive_since: datetime | None = None
    """Only sessions whose last change is before this time, which has a time zone."""

    @property
    def erases_feedback(self) -> bool:
        """Whether the user's feedback goes, too: a retention by time keeps it."""
        return bool(self.user_id) and self.inactive_since is None


@dataclass(frozen=True)
class Doomed:
    """The sessions that meet the criteria, and what goes with them."""

    sessions: int
    messages: int
    feedback: int = 0
    """Entries of feedback that are erased with a user, also those on sessions that are gone."""
    hidden_by: tuple[str, ...] = ()
    """Tables whose policies may hide rows from the role."""


@dataclass
class Pruned:
    """The result so far. Other processes may delete or use sessions meanwhile, so it may differ from `Doomed`."""

    sessions: int = 0
    """Sessions whose deletion was acknowledged."""
    finished: bool = False
    """Whether no session that met the criteria is left."""


@dataclass(frozen=True)
class Vacuumed:
    """The result of a vacuum, in sentences, and the sizes in bytes of the tables or the file before and after it."""

    before: int
    after: int
    done: tuple[str, ...]
    left: tuple[str, ...]
    """Remains that the vacuum could not reach, each with the next step."""


class PrunedStore(Protocol):
    """A store as the command sees it beside the memory."""

    shown: str
    """The file, or the DSN without its password."""
    remains: str
    """A sentence about what a deletion leaves behind."""

    async def check_schema(self) -> None:
        """Check that the store has current tables, and change nothing.

        Raises:
            FluxMemoryError: The store is missing, of an earlier version, or cannot be used.
        """
        ...

    async def count(self, criteria: PruneCriteria) -> Doomed:
        """Count the sessions that meet the criteria, and their messages, in one snapshot."""
        ...

    async def find_cut(self, criteria: PruneCriteria, sessions: int) -> datetime | None:
        """Return the last change of the session with this many older ones that meet the criteria; `None` if fewer."""
        ...

    async def read_clock(self) -> datetime:
        """Return the time, by the clock that dates the sessions."""
        ...

    async def vacuum(self) -> Vacuumed:
        """Remove the remains of deleted rows from the store's own files, as far as possible."""
        ...


async def prune(
    memory: Memory,
    store: PrunedStore,
    criteria: PruneCriteria,
    pruned: Pruned,
    *,
    step_seconds: float,
    advance: Callable[[int], None] = lambda _: None,
    must_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Delete the sessions that meet the criteria, oldest first.

    A step is a call of `delete_sessions`, which works in bounded batches and tests each session again: one that is used
    meanwhile stays.

    Args:
        memory: The memory.
        store: The same store.
        criteria: Which sessions to delete.
        pruned: Counts the sessions of each step that is done; true also after an error.
        step_seconds: The deadline of a step.
        advance: Called with the sessions of each step.
        must_stop: Returns whether to end after the step.

    Raises:
        FluxMemoryError: A step failed; the earlier ones stay done, and the same call goes on where this one ended.
    """
    wanted = _FIRST_STEP
    while not must_stop():
        began = time.monotonic()
        cut = await store.find_cut(criteria, wanted)
        last = cut is None
        since = criteria.inactive_since if cut is None else cut + _RESOLUTION
        with deadline(step_seconds):
            deleted = await memory.delete_sessions(user_id=criteria.user_id, inactive_since=since)
        pruned.sessions += deleted
        advance(deleted)
        if last:
            pruned.finished = True
            break
        if time.monotonic() - began < _STEP_SECONDS:
            wanted = min(wanted * 2, _LARGEST_STEP)
        elif time.monotonic() - began > 4 * _STEP_SECONDS:
            wanted = max(wanted // 2, 1)
