"""What a transfer tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Advance = Callable[[int], None]
"""Counts rows that are done; fewer than 0 where they are read again."""


class Watcher(Protocol):
    """Told of phases and rows, the rows from any thread."""

    def phase(self, name: str, rows: int | None) -> None:
        """Begin a phase of so many rows, where that is known."""

    def advance(self, rows: int) -> None:
        """Count rows that are done."""

    def say(self, line: str) -> None:
        """Pass on a line of text."""


class NullWatcher:
    """Watches nothing."""

    def phase(self, name: str, rows: int | None) -> None:
        """Ignore it."""

    def advance(self, rows: int) -> None:
        """Ignore it."""

    def say(self, line: str) -> None:
        """Ignore it."""
