"""Writes arrays as text, which a statement casts.

For a parameter or a result that is an array, the driver asks the server for the array's type. Its query compares values
of different types, so an operator that another role made in a schema of search_path could be called.
"""

from __future__ import annotations

from collections.abc import Iterable


def write_texts(values: Iterable[str]) -> str:
    """Write an array of texts as PostgreSQL reads it."""
    items = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return '{"' + '","'.join(items) + '"}' if items else "{}"


def write_numbers(values: Iterable[int]) -> str:
    """Write an array of numbers as PostgreSQL reads it."""
    return "{" + ",".join(map(str, values)) + "}"
