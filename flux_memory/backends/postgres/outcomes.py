"""The outcomes of a change of one session, as its statement returns them."""

from __future__ import annotations

from enum import StrEnum


class ChangeOutcome(StrEnum):
    """What became of a change; only after `DONE` anything is changed."""

    DONE = "done"
    APPLIED = "applied"
    """An earlier attempt of the same call had done it already."""
    UNKNOWN = "unknown"
    """The answer of an earlier attempt was lost, and nothing shows whether it took effect."""
    MISSING = "missing"
    """The session does not exist."""
    LOCKED = "locked"
    """The session was locked, so the statement skipped it."""
    STALE = "stale"
    """The session changed after the statement's snapshot, while it waited for the lock."""
    CONFLICT = "conflict"
    """The session has another revision than the expected one."""
    NO_MESSAGE = "no message"
    """The session does not have the message at which to cut."""
    TAKEN = "taken"
    """The session has another message with the id of a new one."""
    TOO_LARGE = "too large"
    """The metadata would become too large."""
    EMPTY = "empty"
    """The session has no message to remove."""
    KEPT = "kept"
    """A trigger or a policy of the application kept the session."""
    DAMAGED = "damaged"
    """The session, or the message to remove, cannot be read."""
