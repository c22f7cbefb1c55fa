"""What a store has in the end, read through a handle and, where a binding can, past the backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flux_memory import Memory, Message, Session

Numbers = Mapping[str, Sequence[tuple[int, str]]]
"""Of each session, by its id: the number and the id of each of its messages, as they are in the store."""


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One session and all its messages, in their order."""

    record: Session
    history: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything in a store, while nobody writes to it."""

    sessions: Mapping[str, StoredSession]
    numbers: Numbers | None = None
    """Where a raw reader gave them."""


async def read_stored(memory: Memory, numbers: Numbers | None = None) -> Stored:
    """Read everything through a handle.

    Args:
        memory: A handle that nobody else uses, best a new one.
        numbers: What a raw reader of the binding found, to look for gaps and repeats.
    """
    sessions = await memory.get_sessions(None)
    return Stored({row["id"]: StoredSession(row, await memory.get_history(row["id"])) for row in sessions}, numbers)
