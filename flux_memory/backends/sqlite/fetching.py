"""Fetches rows, also those with text that is not UTF-8."""

from __future__ import annotations

import sqlite3
from typing import Any


def fetch(sql: str, values: tuple[Any, ...] | dict[str, Any], db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Run a statement and return its rows; bytes that are not UTF-8 stay bytes."""
    try:
        return db.execute(sql, values).fetchall()
    except sqlite3.OperationalError as error:
        if "decode to UTF-8" not in str(error):
            raise
    # Read bytes, so that the error can name the corrupt record.
    db.text_factory = bytes
    try:
        rows = db.execute(sql, values).fetchall()
    finally:
        db.text_factory = str
    return [tuple(_decoded(cell) for cell in row) for row in rows]


def _decoded(cell: object) -> object:
    try:
        return cell.decode() if isinstance(cell, bytes) else cell
    except UnicodeDecodeError:
        return cell
