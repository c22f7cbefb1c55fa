"""Counts the rows that a transfer added, skipped, or found in conflict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_MAX_NAMED: Final = 20
"""Conflicting ids that a report names."""


@dataclass
class MergeResult:
    """How many rows were added to a target, skipped, or in conflict."""

    sessions: int = 0
    messages: int = 0
    skipped_sessions: int = 0
    skipped_messages: int = 0
    """Rows already stored with the same content."""
    conflicting_sessions: int = 0
    conflicting_messages: int = 0
    """Rows whose id is stored with different content, which was left unchanged."""
    held_back: int = 0
    """Messages of sessions in conflict."""
    first_conflicts: list[str] = field(default_factory=list)
    replaced_sessions: int = 0
    replaced_messages: int = 0
    """Rows of the target that were there before, and were replaced."""
    feedback: int = 0
    skipped_feedback: int = 0
    """Entries already stored, or deleted since an earlier run moved them."""
    replaced_feedback: int = 0

    def include(self, other: MergeResult) -> None:
        """Add the result of another part."""
        self.sessions += other.sessions
        self.messages += other.messages
        self.skipped_sessions += other.skipped_sessions
        self.skipped_messages += other.skipped_messages
        self.conflicting_sessions += other.conflicting_sessions
        self.conflicting_messages += other.conflicting_messages
        self.held_back += other.held_back
        self.first_conflicts = [*self.first_conflicts, *other.first_conflicts][:_MAX_NAMED]

    def name(self, kind: str, id_: str) -> None:
        """Name a conflict, if it is one of the first."""
        if len(self.first_conflicts) < _MAX_NAMED:
            self.first_conflicts.append(f"{kind} {id_}")
