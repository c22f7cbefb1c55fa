"""Checks text arguments: both engines must be able to store them byte for byte."""

from __future__ import annotations

import re
from typing import Final

from flux_memory.errors import InvalidInputError, InvalidTypeError
from flux_memory.records.limits import MAX_CONTENT_BYTES, MAX_ID_LENGTH

_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def find_unstorable(value: str) -> str | None:
    """Return a description of the first character that cannot be stored, or `None`.

    PostgreSQL's `text` has no NUL, and lone surrogates have no UTF-8 form.
    """
    return _measure(value)[0]


def _measure(value: str) -> tuple[str | None, int]:
    """Return what `find_unstorable` does, and the size of a storable text in bytes of UTF-8.

    Both come from one encoding, which takes a tenth of a second for the largest content.
    """
    if (at := value.find("\x00")) >= 0:
        return f"a NUL character at offset {at}, which PostgreSQL cannot store; remove it", 0
    if value.isascii():
        return None, len(value)
    try:
        return None, len(value.encode())
    except UnicodeEncodeError as error:
        if _PAIR.match(value, error.start):
            return (
                f"a surrogate pair at offset {error.start}, which is one character cut in two; join it with "
                ".encode('utf-16', 'surrogatepass').decode('utf-16')"
            ), 0
        return f"a lone surrogate at offset {error.start}, which is not text; decode it properly or remove it", 0


def shown(value: object) -> str:
    """Return the beginning of a value's repr for an error message, even if the repr raises."""
    try:
        return f"{value!r:.80}"
    except Exception:  # noqa: BLE001 - an integer of more than 4,300 digits, or a repr that raises
        return f"a value of type {type(value).__name__}"


def type_name(value: object) -> str:
    """Return the name of a value's type, with its module unless it is built in: NumPy has a `bool` of its own."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def check_str(name: str, value: object) -> str:
    """Return a text as plain `str`, so that a subclass does not leak into a record; it may not be storable.

    Args:
        name: The argument's name, for the error.
        value: The argument.

    Raises:
        InvalidTypeError: The value is not a `str`.
    """
    if type(value) is str:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    raise InvalidTypeError(f"{name} must be a str, not {type_name(value)}")


def check_text(name: str, value: object, *, max_bytes: int = MAX_CONTENT_BYTES) -> str:
    """Return a text to store as plain `str`: a content, a role or a title.

    Args:
        name: The argument's name, for the error.
        value: The argument.
        max_bytes: The largest size, in bytes of UTF-8.

    Raises:
        InvalidTypeError: The value is not a `str`.
        InvalidInputError: The text has a NUL or a lone surrogate, or is larger than `max_bytes` of UTF-8.
    """
    text = check_str(name, value)
    reason, size = _measure(text)
    if reason:
        raise InvalidInputError(f"{name} has {reason}")
    if size > max_bytes:
        raise InvalidInputError(f"{name} is larger than {max_bytes:,} bytes; store it elsewhere and keep a reference")
    return text


def check_id(name: str, value: object, *, max_length: int = MAX_ID_LENGTH, min_length: int = 1) -> str:
    """Return an id to store as plain `str`.

    Args:
        name: The argument's name, for the error.
        value: The argument.
        max_length: The largest length, in characters.
        min_length: The smallest length, in characters.

    Raises:
        InvalidTypeError: The value is not a `str`.
        InvalidInputError: The id's length is out of bounds, or it has a NUL or a lone surrogate.
    """
    text = check_str(name, value)
    if not min_length <= len(text) <= max_length:
        raise InvalidInputError(f"{name} has {len(text)} characters; it must have {min_length} to {max_length}")
    if reason := find_unstorable(text):
        raise InvalidInputError(f"{name} has {reason}")
    return text
