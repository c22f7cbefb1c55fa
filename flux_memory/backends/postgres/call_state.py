"""Tracks how far a call has got, which decides whether a failed write may have been stored."""

from __future__ import annotations


class CallState:
    """The progress of one call. Calls that share a statement each have their own.

    Args:
        writes: Whether the call is a write.
    """

    __slots__ = ("blocked", "lost", "sent", "statements", "trouble", "writes")

    def __init__(self, *, writes: bool) -> None:
        self.writes = writes
        self.sent = False
        """A statement for it was sent, and has not failed."""
        self.lost = False
        """A statement for it was sent and its answer was lost."""
        self.blocked = False
        """It waits for a lock or for an earlier add to its session, not for a connection."""
        self.trouble: Exception | None = None
        """The error of its last statement that failed."""
        self.statements: dict[str, None] | None = None
        """The texts of its statements in order, kept only for the log of slow calls."""

    @property
    def unknown(self) -> bool:
        """Whether the server may have carried out the call."""
        return self.sent or self.lost

    def note_statement(self, sql: str) -> None:
        """Keep the text of a statement."""
        self.statements = self.statements or {}
        self.statements[sql] = None

    @property
    def waits_for_connection(self) -> bool:
        """Whether no statement for it was sent, although no lock is in its way."""
        return not self.unknown and not self.blocked and self.trouble is None

    def sending(self) -> None:
        """Note that a statement is about to be sent."""
        self.sent = True
        self.blocked = False

    def failed(self, error: Exception, *, lost: bool) -> None:
        """Note how a statement failed: its answer was lost, or else the server refused it."""
        self.lost = self.lost or lost
        self.sent = False
        # The error of an earlier attempt says more than the timeout that ended this one.
        if self.trouble is None or not isinstance(error, TimeoutError):
            self.trouble = error
