"""JSON and text in the reference model: which values can be stored, and which contain each other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from flux_memory import MAX_METADATA_BYTES, MAX_METADATA_DEPTH

_INT_BOUND: Final = 10**4300
"""Integers of more digits cannot be stored. A constant, because Python would compute the power for each value."""


class NotJsonError(Exception):
    """A value that metadata cannot hold."""

    def __init__(self, reason: str, *, wrong_type: bool = False) -> None:
        super().__init__(reason)
        self.wrong_type = wrong_type


def problem_of_text(text: str) -> str | None:
    """Return what in a text cannot be stored, and where."""
    if "\x00" in text:
        return f"a NUL at offset {text.index(chr(0))}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate at offset {error.start}"
    return None


def problem_of_size(metadata: dict[str, Any]) -> str | None:
    """Return the problem if metadata is too large."""
    return f"larger than {MAX_METADATA_BYTES} bytes" if size(metadata) > MAX_METADATA_BYTES else None


def size(metadata: dict[str, Any]) -> int:
    """Return the size of metadata as JSON, in bytes."""
    return len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode())


def plain_json(value: object, depth: int = 1) -> Any:
    """Return a copy made of plain types; -0.0 becomes 0.0, a tuple a list.

    Raises:
        NotJsonError: The value is not JSON that can be stored.
    """
    if isinstance(value, Mapping):
        _check_depth(depth)
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise NotJsonError(f"a key that is a {type(wrong[0]).__name__}", wrong_type=True)
        return {_plain_scalar(key): plain_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        _check_depth(depth)
        return [plain_json(item, depth + 1) for item in value]
    return _plain_scalar(value)


def copy_json(value: Any) -> Any:
    """Return a copy of what `plain_json` made, in a quarter of the time of `copy.deepcopy`."""
    if type(value) is dict:
        return {key: copy_json(item) for key, item in value.items()}
    return [copy_json(item) for item in value] if type(value) is list else value


def _check_depth(depth: int) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise NotJsonError(f"more than {MAX_METADATA_DEPTH} levels")


def _plain_scalar(value: object) -> Any:
    if isinstance(value, str):
        if problem := problem_of_text(value):
            raise NotJsonError(f"text with {problem}")
        return str.__str__(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) >= _INT_BOUND:
            raise NotJsonError("an integer of more than 4,300 digits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotJsonError("a number that is not finite")
        return float(value) + 0.0
    raise NotJsonError(f"a {type(value).__name__}, which JSON does not have", wrong_type=True)


def count_values(value: object, *, in_array: bool = False) -> tuple[int, int]:
    """Return how many values a value holds at any depth, and how many of them are within arrays."""
    if not isinstance(value, dict | list):
        return 0, 0
    in_array = in_array or isinstance(value, list)
    items = list(value.values()) if isinstance(value, dict) else value
    below = [count_values(item, in_array=in_array) for item in items]
    return (
        len(items) + sum(everywhere for everywhere, _ in below),
        len(items) * in_array + sum(within_arrays for _, within_arrays in below),
    )


def contains(whole: object, part: object) -> bool:
    """Return whether one JSON value contains another, like PostgreSQL's `jsonb @>` below the top level."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(key in whole and contains(whole[key], item) for key, item in part.items())
    if isinstance(whole, list) and isinstance(part, list):
        return all(any(contains(candidate, item) for candidate in whole) for item in part)
    return equal(whole, part)


def equal(one: object, other: object) -> bool:
    """Return whether two JSON values are equal: numbers by their exact value; `True` is not a number."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if _is_number(one) and _is_number(other):
        return _exact(one) == _exact(other)
    return type(one) is type(other) and one == other


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _exact(number: Any) -> Decimal:
    # The shortest text of a float counts, because that text is stored.
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
