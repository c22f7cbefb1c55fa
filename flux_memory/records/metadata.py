"""Writes metadata as JSON text that both engines keep exactly, and compares it by `jsonb`'s rules."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from json.encoder import encode_basestring as _quote
from typing import Any, Final, NoReturn

import orjson

from flux_memory.errors import InvalidInputError, InvalidTypeError
from flux_memory.records.limits import MAX_METADATA_BYTES, MAX_METADATA_DEPTH
from flux_memory.records.text import find_unstorable, shown, type_name

_DIGITS_TO_ZERO: Final = bytes(ord("0") if chr(byte).isdecimal() else ord("-") for byte in range(256))
_LONG_NUMBER: Final = b"0" * 19
_SPACES: Final = " \t\n\r"
_INT_BOUND: Final = 10**4300
"""Python reads and writes integers of up to 4,300 digits (`sys.get_int_max_str_digits`)."""


def encode_metadata(value: object, name: str = "metadata", *, most: int = MAX_METADATA_BYTES) -> str:
    """Return the JSON text to store for a metadata argument; `None` is `{}`.

    Floats of 1e16 and up are written in full with `.0`, since `jsonb` would turn `1e+22` into an integer; -0.0 is
    written as 0.0, since `jsonb` has no negative zero.

    Args:
        value: The argument.
        name: Its name, for error messages.
        most: Parts of the JSON text at which encoding stops: keys, scalars, and the ends of arrays and objects.

    Raises:
        TooLongError: The text has more than `most` parts.
        InvalidInputError: The value is not a JSON object that both engines can hold; the message names the place.
    """
    if value is None:
        return "{}"
    if not isinstance(value, Mapping):
        raise InvalidTypeError(f"{name} must be a mapping or None, not {type_name(value)}")
    parts = _Parts()
    parts.most = most
    try:
        _encode_object(value, 1, parts)
    except TooLongError:
        if most < MAX_METADATA_BYTES:
            raise
        # Each part has at least one character. The JSON of a list that holds one list twice, and so on, never ends.
        raise _too_large(name) from None
    except _RefusedError as error:
        raise error.kind(f"{name}{error.place:.400} {error}") from None
    text = "".join(parts)
    if len(text) * 4 > MAX_METADATA_BYTES and len(text.encode()) > MAX_METADATA_BYTES:
        raise _too_large(name)
    return text


def decode_metadata(text: str | None, *, most: int = sys.maxsize) -> dict[str, Any]:
    """Return the metadata of a stored text, every number with its type and value; `None` is `{}`.

    Args:
        text: The text.
        most: The largest number of characters.

    Raises:
        TooLongError: The text has more than `most` characters.
        ValueError: The text is not a JSON object.
    """
    if text is None or text == "{}":
        return {}
    if type(text) is not str:
        raise ValueError(f"{text!r:.60} where text belongs")
    if len(text) > most:
        raise TooLongError
    value = _READER.decode(text) if _may_have_long_numbers(text) else orjson.loads(text)
    if type(value) is not dict:
        raise ValueError(f"a JSON {type(value).__name__} where an object belongs")
    return value


def decode_all_metadata(texts: Sequence[str], *, most: int = sys.maxsize) -> list[dict[str, Any]]:
    """Return the object of each text, faster than `decode_metadata` one by one.

    Raises:
        TooLongError: The texts together have more than `most` characters.
        ValueError: A text is not a JSON object.
    """
    together = ",".join(texts)
    if len(together) > most:
        raise TooLongError
    read = decode_metadata if _may_have_long_numbers(together) else orjson.loads
    values = list(map(read, texts))
    if set(map(type, values)) - {dict}:
        raise ValueError("a text is not a JSON object")
    return values


def merge_metadata(stored: str | None, merged: str | None, removed: Iterable[str] = ()) -> str:
    """Return the JSON text of metadata after a removal and a merge at its top level; every value keeps its text.

    Args:
        stored: The stored text; `None` is `{}`.
        merged: The text of the object to merge, as `encode_metadata` returns it; `None` merges nothing.
        removed: The keys to remove before the merge.

    Raises:
        TooLongError: The result has more than `MAX_METADATA_BYTES` bytes.
        ValueError: A text is not a JSON object.
        RecursionError: The stored text is nested too deeply.
    """
    members = _split_object(stored or "{}")
    for key in removed:
        members.pop(key, None)
    members |= _split_object(merged or "{}")
    text = "{" + ",".join(f"{_quote(key)}:{value}" for key, value in members.items()) + "}"
    if len(text) * 4 > MAX_METADATA_BYTES and len(text.encode()) > MAX_METADATA_BYTES:
        raise TooLongError
    return text


def _split_object(text: str) -> dict[str, str]:
    """Return the JSON text of each member of an object."""
    members: dict[str, str] = {}
    at = _skip_spaces(text, 0)
    if text[at : at + 1] != "{":
        raise ValueError("a JSON value where an object belongs")
    at = _skip_spaces(text, at + 1)
    more = text[at : at + 1] != "}"
    while more:
        if text[at : at + 1] != '"':
            raise ValueError("the text is not a JSON object")
        key, at = _READER.raw_decode(text, at)
        at = _skip_spaces(text, at)
        if text[at : at + 1] != ":":
            raise ValueError("the text is not a JSON object")
        start = _skip_spaces(text, at + 1)
        _, at = _READER.raw_decode(text, start)
        members[key] = text[start:at]
        at = _skip_spaces(text, at)
        if more := text[at : at + 1] == ",":
            at = _skip_spaces(text, at + 1)
    if text[at : at + 1] != "}" or text[at + 1 :].strip(_SPACES):
        raise ValueError("the text is not a JSON object")
    return members


def _skip_spaces(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACES:
        at += 1
    return at


def read_exactly(text: str) -> Any:
    """Return the value of a JSON text; numbers with a fraction or an exponent are `Decimal`.

    Raises:
        ValueError: The text is not JSON.
        RecursionError: The text is nested too deeply.
    """
    return _EXACT_READER.decode(text)


def equal(one: str, other: str) -> bool:
    """Return whether two texts are equal as `jsonb`: key order does not count, and `1` equals `1.0`."""
    return one == other or _equal(read_exactly(one), read_exactly(other))


def _may_have_long_numbers(text: str) -> bool:
    """Return whether the standard reader is needed: orjson reads integers beyond 64 bits as floats."""
    return _LONG_NUMBER in text.encode().translate(_DIGITS_TO_ZERO)


class TooLongError(Exception):
    """The JSON is longer than the `most` of the call: the work may block an event loop, and belongs in a thread."""


class _Parts(list[str]):
    """The parts of a JSON text, at most `most` of them."""

    __slots__ = ("most",)
    most: int

    def enter(self, depth: int, items: int) -> None:
        """Check the depth and the number of items of the next array or object."""
        if depth > MAX_METADATA_DEPTH:
            raise _RefusedError(f"is nested deeper than {MAX_METADATA_DEPTH}; flatten it")
        # Each item has two parts or more: a separator or a key, and a value.
        if len(self) + 2 * items > self.most:
            raise TooLongError


class _RefusedError(Exception):
    """A value that cannot be stored. Its place is built on the way out, so that valid values cost nothing."""

    def __init__(self, reason: str, kind: type[InvalidInputError] = InvalidInputError) -> None:
        super().__init__(reason)
        self.kind = kind
        self.place = ""


def _encode(value: object, depth: int, parts: _Parts) -> None:
    if isinstance(value, str):
        parts.append(_encode_text(value))
    elif value is None:
        parts.append("null")
    elif isinstance(value, bool):
        parts.append("true" if value else "false")
    elif isinstance(value, int):
        if not -_INT_BOUND < value < _INT_BOUND:
            raise _RefusedError("has more than 4,300 digits; store it as a string")
        parts.append(int.__repr__(value))
    elif isinstance(value, float):
        parts.append(_encode_float(value))
    elif isinstance(value, Mapping):
        _encode_object(value, depth, parts)
    elif isinstance(value, list | tuple):
        _encode_array(value, depth, parts)
    else:
        raise _RefusedError(
            f"is a {type_name(value)}, which JSON does not have; convert it to a str, int, float, bool, list or dict",
            InvalidTypeError,
        )


def _encode_object(value: Mapping[Any, Any], depth: int, parts: _Parts) -> None:
    parts.enter(depth, len(value))
    separator = "{"
    for key, item in value.items():
        if not isinstance(key, str):
            raise _RefusedError(f"has a key of type {type_name(key)}, {shown(key)}; keys must be str", InvalidTypeError)
        try:
            parts.append(separator + _encode_text(key) + ":")
            _encode(item, depth + 1, parts)
        except _RefusedError as error:
            error.place = f"[{shown(key)}]{error.place}"
            raise
        separator = ","
    parts.append("}" if separator == "," else "{}")


def _encode_array(value: list[Any] | tuple[Any, ...], depth: int, parts: _Parts) -> None:
    parts.enter(depth, len(value))
    separator = "["
    for index, item in enumerate(value):
        parts.append(separator)
        try:
            _encode(item, depth + 1, parts)
        except _RefusedError as error:
            error.place = f"[{index}]{error.place}"
            raise
        separator = ","
    parts.append("]" if separator == "," else "[]")


def _encode_text(value: str) -> str:
    if reason := find_unstorable(value):
        raise _RefusedError(f"has {reason}")
    return _quote(value)


def _encode_float(value: float) -> str:
    if not math.isfinite(value):
        raise _RefusedError(f"is {value!r}, which JSON does not have; use None or a string")
    text = float.__repr__(value)
    if "e+" in text:
        return f"{Decimal(text):f}.0"
    return "0.0" if value == 0 else text


def _too_large(name: str) -> InvalidInputError:
    return InvalidInputError(f"{name} is larger than {MAX_METADATA_BYTES:,} bytes as JSON; store less of it")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}, which JSON does not have")


_READER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_EXACT_READER: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse_constant)


def _kind(value: object) -> type:
    """Return the JSON type: Decimal and int are the same, bool is its own."""
    return int if isinstance(value, Decimal) else type(value)


def _equal(one: Any, other: Any) -> bool:
    if _kind(one) is not _kind(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(item, other[key]) for key, item in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
