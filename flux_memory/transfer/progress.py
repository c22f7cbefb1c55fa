"""The interface through which a transfer reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Advance = Callable[[int], None]
"""Called with a number of rows done; negative before rows are read again."""


class Watcher(Protocol):
    """Receives phases, rows and lines; `advance` is called from any thread."""

    def phase(self, name: str, rows: int | None) -> None:
        """Begin a phase; `rows` is its number of rows, or `None` if unknown."""

    def advance(self, rows: int) -> None:
        """Add to the number of rows done; negative before rows are read again."""

    def say(self, line: str) -> None:
        """Show a line of text."""


class NullWatcher:
    """Ignores all progress."""

    def phase(self, name: str, rows: int | None) -> None:
        """Do nothing."""

    def advance(self, rows: int) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""
