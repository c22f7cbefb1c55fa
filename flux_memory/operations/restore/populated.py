"""What a restore would replace in its target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Populated:
    """The rows of a target that a restore replaces: all, or those of the user to restore."""

    sessions: int = 0
    messages: int = 0
    feedback: int = 0
    tables: tuple[str, ...] = ()
    """Tables, and columns as `table.column`, of other programs, which the restore of a SQLite file removes."""
    exists: bool = True
    """Whether the target has a file, or tables."""

    def __bool__(self) -> bool:
        """Return whether anything would be lost."""
        return bool(self.sessions or self.messages or self.feedback or self.tables)

    def __str__(self) -> str:
        """Return in words what would be lost."""
        tables = f", and what is not conversation memory: {', '.join(self.tables)}" if self.tables else ""
        feedback = f", {self.feedback:,} feedback entries" * bool(self.feedback)
        return f"{self.sessions:,} sessions, {self.messages:,} messages{feedback}{tables}"
