"""What a backend may lack, as a typed set, so that it can say so instead of failing.

A binding claims everything unless it says less:

    class TestMine(MemoryContract):
        capabilities = ALL & ~(Capability.METADATA_FILTER | Capability.USER_SCOPE)

A call that needs something not claimed raises `InvalidInputError`, with the method or the argument in its message,
before anything is stored; `close()` comes first, as ever. What is not a call (ids, times, durability, several handles
or processes, outages) must not be there either: it is refused with an error of the family, or has no effect. The
clauses FM-CAP hold a backend to both; what works and is not claimed fails them. A clause that needs something not
claimed does not count, and clauses that need nothing always count.
"""

from __future__ import annotations

from enum import Flag, auto
from typing import Final


class Capability(Flag):
    """What a backend may lack. Order, text, limits and closing are no capabilities: every memory has them."""

    BATCH = auto()
    MESSAGE_IDS = auto()
    IDEMPOTENT_IDS = auto()
    MESSAGE_METADATA = auto()
    CURSOR = auto()
    SESSIONS = auto()
    SESSION_IDS = auto()
    SESSION_METADATA = auto()
    METADATA_FILTER = auto()
    USER_SCOPE = auto()
    TITLES = auto()
    CLEAR_ALL = auto()
    TIMESTAMPS = auto()
    DURABLE = auto()
    SEVERAL_HANDLES = auto()
    SEVERAL_PROCESSES = auto()
    OUTAGES = auto()

    @property
    def words(self) -> str:
        """The names of the members in it, for people."""
        return ", ".join(str(each.name).lower().replace("_", " ") for each in self)


NOTHING: Final = Capability(0)
ALL: Final = ~NOTHING

MEANING: Final[dict[Capability, str]] = {
    Capability.BATCH: "`add_messages` adds several messages, all or none.",
    Capability.MESSAGE_IDS: "A message has an id; `add_message` returns it and `get_history` shows it.",
    Capability.IDEMPOTENT_IDS: "`message_id` makes a retry safe.",
    Capability.MESSAGE_METADATA: "A message has metadata.",
    Capability.CURSOR: "`before` pages back through a history.",
    Capability.SESSIONS: "Sessions can be looked up, listed and counted; adding to a missing one fails.",
    Capability.SESSION_IDS: "`session_id` names a new session.",
    Capability.SESSION_METADATA: "A session has metadata.",
    Capability.METADATA_FILTER: "`get_sessions` filters sessions by their metadata.",
    Capability.USER_SCOPE: "A session belongs to a user, and `get_sessions` lists one user's.",
    Capability.TITLES: "A session has a title, which can be changed.",
    Capability.CLEAR_ALL: "`clear_all` empties the store.",
    Capability.TIMESTAMPS: "Messages and sessions have timestamps.",
    Capability.DURABLE: "An acknowledged write outlives the process that made it.",
    Capability.SEVERAL_HANDLES: "Several handles of one process share the store.",
    Capability.SEVERAL_PROCESSES: "Several processes share the store.",
    Capability.OUTAGES: "The store can be out of reach for a while; a call waits for it until its deadline.",
}
"""Each capability in a sentence."""
