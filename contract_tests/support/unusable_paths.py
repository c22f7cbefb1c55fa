"""Paths at which a SQLite memory cannot be opened."""

from __future__ import annotations

from pathlib import Path


def write_notes(path: Path) -> Path:
    """Write a file that is not a database."""
    path.write_bytes(b"These are notes, no database. " * 100)
    return path


def make_directory(path: Path) -> Path:
    """Create a directory with the name of the file."""
    path.mkdir()
    return path


def make_file_as_parent(path: Path) -> Path:
    """Create a file, and return a path below it."""
    path.touch()
    return path / "chat.db"
