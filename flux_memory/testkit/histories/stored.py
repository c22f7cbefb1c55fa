"""The final state of a store, read through a handle and, if the binding can, without the backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flux_memory import Memory, Message, Session

Numbers = Mapping[str, Sequence[tuple[int, str]]]
"""By session id: the number and the id of each stored message."""


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session and all its messages, in order."""

    record: Session
    history: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything in a store, read while no client writes to it."""

    sessions: Mapping[str, StoredSession]
    numbers: Numbers | None = None
    """The numbers found by a raw reader, if there is one."""


async def read_stored(memory: Memory, numbers: Numbers | None = None) -> Stored:
    """Read everything through a handle.

    Args:
        memory: A handle without other users, preferably a new one.
        numbers: The numbers found by the binding's raw reader, to check for gaps and repeats.
    """
    sessions = await memory.get_sessions(None)
    return Stored({row["id"]: StoredSession(row, await memory.get_history(row["id"])) for row in sessions}, numbers)
