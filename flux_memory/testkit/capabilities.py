"""Capabilities: the features that a backend may declare missing, as a typed set.

A binding claims all of them by default:

    class TestMine(MemoryContract):
        capabilities = CORE & ~(Capability.METADATA_FILTER | Capability.USER_SCOPE)

A call that needs an unclaimed capability must not work: the memory lacks the method or the argument, or the call raises
`InvalidInputError` before it stores anything, with the method or the argument in the message; on a closed handle the
error for that comes first. Capabilities that are not calls (ids, times, durability, several handles or processes,
outages, a network) must be absent as well: refused with a `FluxMemoryError`, or without effect. Without `REVISIONS` the
`revision` of a session is empty. The clauses FM-CAP and FM-NET-001 check both directions, so an unclaimed capability
that works fails. A clause that needs an unclaimed capability does not count; clauses that need none always count.
"""

from __future__ import annotations

from enum import Flag, auto
from typing import Final


class Capability(Flag):
    """A feature that a backend may lack. Order, text, limits and closing are required of every memory."""

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
    NETWORKED = auto()
    MESSAGE_LOOKUP = auto()
    FORWARD_CURSOR = auto()
    CREATE_ON_ADD = auto()
    REVISIONS = auto()
    SESSION_UPDATES = auto()
    TRUNCATE = auto()
    POP = auto()
    FORK = auto()
    LIST_CURSOR = auto()
    COUNT_FILTER = auto()
    RETENTION = auto()
    FEEDBACK = auto()

    @property
    def words(self) -> str:
        """The names of its members, as shown in reports."""
        return ", ".join(str(each.name).lower().replace("_", " ") for each in self)


NOTHING: Final = Capability(0)
ALL: Final = ~NOTHING
CORE: Final = ALL & ~(
    Capability.MESSAGE_LOOKUP
    | Capability.FORWARD_CURSOR
    | Capability.CREATE_ON_ADD
    | Capability.REVISIONS
    | Capability.SESSION_UPDATES
    | Capability.TRUNCATE
    | Capability.POP
    | Capability.FORK
    | Capability.LIST_CURSOR
    | Capability.COUNT_FILTER
    | Capability.RETENTION
    | Capability.FEEDBACK
)
"""What keeps conversations: all capabilities but those that change them, find parts of them or rate them."""

MEANING: Final[dict[Capability, str]] = {
    Capability.BATCH: "`add_messages` adds several messages, all or none.",
    Capability.MESSAGE_IDS: "A message has an id, returned when it is added and shown in its history.",
    Capability.IDEMPOTENT_IDS: "`message_id` makes a retry safe.",
    Capability.MESSAGE_METADATA: "A message has metadata.",
    Capability.CURSOR: "`before` pages backwards through a history.",
    Capability.SESSIONS: "Sessions can be looked up, listed and counted; a missing one is an error.",
    Capability.SESSION_IDS: "`session_id` names a new session.",
    Capability.SESSION_METADATA: "A session has metadata.",
    Capability.METADATA_FILTER: "`get_sessions` filters sessions by their metadata.",
    Capability.USER_SCOPE: "A session belongs to a user, and `get_sessions` lists those of one user.",
    Capability.TITLES: "A session has a title that can be changed.",
    Capability.CLEAR_ALL: "`clear_all` empties the store.",
    Capability.TIMESTAMPS: "Messages and sessions have timestamps.",
    Capability.DURABLE: "Acknowledged writes outlive the process that made them.",
    Capability.SEVERAL_HANDLES: "Several handles of one process share the store.",
    Capability.SEVERAL_PROCESSES: "Several processes share the store.",
    Capability.OUTAGES: "The store can be unreachable for a while; a call waits for it until its deadline.",
    Capability.NETWORKED: "A handle reaches the store by connections to a server, and the network between can break.",
    Capability.MESSAGE_LOOKUP: "`get_message` returns one message.",
    Capability.FORWARD_CURSOR: "`after` reads a history forwards.",
    Capability.CREATE_ON_ADD: "`create` makes a missing session with its first message.",
    Capability.REVISIONS: "A session has a revision; `expected_revision` makes a change or a deletion conditional.",
    Capability.SESSION_UPDATES: "`update_session` changes title, metadata and messages in one atomic step.",
    Capability.TRUNCATE: "`update_session` removes the newest messages.",
    Capability.POP: "`pop_message` removes and returns the newest message.",
    Capability.FORK: "`fork_session` copies a session and its messages.",
    Capability.LIST_CURSOR: "`before` pages through `get_sessions`, and `with_metadata` leaves metadata out.",
    Capability.COUNT_FILTER: "`count_sessions` counts the sessions of a user, or with metadata.",
    Capability.RETENTION: "`delete_sessions` removes the sessions of a user, or inactive ones.",
    Capability.FEEDBACK: "`feedback` keeps ratings of answers, with comments and corrected answers.",
}
"""Each capability in a sentence."""
