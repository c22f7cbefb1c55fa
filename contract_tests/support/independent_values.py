"""Checks of arguments for `IndependentMemory`, written from the contract's text alone."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

from flux_memory import InvalidInputError

MEBIBYTE: Final = 1024 * 1024
INT_BOUND: Final = 10**4300


class WrongTypeError(InvalidInputError, TypeError):
    """The argument has the wrong type."""


class NewRow(NamedTuple):
    """A checked message."""

    id: str
    role: str
    content: str
    metadata: str


class Change(NamedTuple):
    """The checked parts of a change of a session."""

    title: str | None
    merged: str | None
    removed: set[str]
    truncate_from: str | None
    truncate_all: bool
    rows: list[NewRow]


def require_str(name: str, value: object) -> str:
    """Return the value as a plain str, which may not be storable."""
    if not isinstance(value, str):
        raise WrongTypeError(f"{name} must be a str, not {type(value).__name__}")
    return str.__str__(value)


def check_text(name: str, value: object, shortest: int = 0, longest: int = 64 * MEBIBYTE) -> str:
    """Return a text that can be stored."""
    plain = require_str(name, value)
    if not shortest <= len(plain) <= longest:
        raise InvalidInputError(f"{name} must have {shortest} to {longest} characters, not {len(plain)}")
    if "\x00" in plain:
        raise InvalidInputError(f"{name} has a NUL at {plain.index(chr(0))}")
    try:
        if len(plain.encode()) > 64 * MEBIBYTE:
            raise InvalidInputError(f"{name} is larger than 64 MiB")
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{name} has a lone surrogate at {error.start}") from None
    return plain


def check_key(name: str, value: object) -> str:
    """Return a text to look up; a text that SQLite cannot bind becomes an id that does not exist."""
    plain = require_str(name, value)
    return plain if plain.encode(errors="ignore").decode() == plain else "\x00"


def check_row_count(name: str, value: object) -> int:
    """Return a number of rows, capped at the largest that SQLite can count."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongTypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < 0:
        raise InvalidInputError(f"{name} is negative; it must be 0 or more")
    return min(value, sys.maxsize // 2)


def encode_json(name: str, value: object) -> str:
    """Return metadata as it is stored."""
    if value is not None and not isinstance(value, Mapping):
        raise WrongTypeError(f"{name} must be a mapping, not {type(value).__name__}")
    return measure_metadata(name, copy_json(name, {} if value is None else value))


def measure_metadata(name: str, value: object) -> str:
    """Return metadata of plain types as it is stored, unless it is too large."""
    stored = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(stored.encode()) > 16 * MEBIBYTE:
        raise InvalidInputError(f"{name} is larger than 16 MiB")
    return stored


def copy_json(name: str, value: object, depth: int = 1) -> Any:
    """Return a copy of a JSON value, built from plain types."""
    if isinstance(value, Mapping | list | tuple) and depth > 100:
        raise InvalidInputError(f"{name} is nested deeper than 100")
    if isinstance(value, Mapping):
        return {
            check_text(f"{name}, in a key,", each): copy_json(name, item, depth + 1) for each, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [copy_json(name, each, depth + 1) for each in value]
    if isinstance(value, str):
        return check_text(f"{name}, in a text,", value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < INT_BOUND:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value) + 0.0
    if isinstance(value, int | float):
        raise InvalidInputError(f"{name} has a number that cannot be kept")
    raise WrongTypeError(f"{name} has a {type(value).__name__}, which JSON does not have")


def refuse_long_filter(name: str, part: Any) -> None:
    """Raise if a filter has more than 100 values, or more than 16 within arrays."""
    levels = [(part, False)]
    everywhere = within_arrays = 0
    while levels:
        value, in_array = levels.pop()
        items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        in_array = in_array or isinstance(value, list)
        everywhere, within_arrays = everywhere + len(items), within_arrays + len(items) * in_array
        levels += [(item, in_array) for item in items]
    if everywhere > 100 or within_arrays > 16:
        raise InvalidInputError(f"{name} has too many values for a filter")


def wrap_number(number: str) -> tuple[Decimal]:
    """Wrap a number so that equal numbers are equal, and none equals a boolean."""
    return (Decimal(number),)


def parse_exact(stored: str) -> Any:
    """Return stored metadata with every number wrapped."""
    return json.loads(stored, parse_int=wrap_number, parse_float=wrap_number)


def contains_json(whole: Any, part: Any) -> bool:
    """Return whether a JSON value contains another one, with wrapped numbers."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(each in whole and contains_json(whole[each], part[each]) for each in part)
    if isinstance(whole, list) and isinstance(part, list):
        return all(any(contains_json(mine, each) for mine in whole) for each in part)
    return bool(whole == part)


def check_row(role: object, content: object, metadata: object, message_id: object, place: str = "") -> NewRow:
    """Return a checked message."""
    return NewRow(
        make_id() if message_id is None else check_text(f"{place}message_id", message_id, 1, 255),
        check_text(f"{place}role", role, 1),
        check_text(f"{place}content", content),
        encode_json(f"{place}metadata", metadata),
    )


def check_rows(messages: object) -> Iterator[NewRow]:
    """Yield the checked messages of a batch."""
    if isinstance(messages, str | bytes | bytearray | Mapping) or not isinstance(messages, Iterable):
        raise WrongTypeError(f"messages must be an iterable of mappings, not {type(messages).__name__}")
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise WrongTypeError(f"messages[{at}] must be a mapping, not {type(message).__name__}")
        missing = {"role", "content"} - set(message)
        unknown = set(message) - {"role", "content", "metadata", "message_id"}
        if missing or unknown:
            raise InvalidInputError(f"messages[{at}] has no {missing or '{}'} and must not have {unknown or '{}'}")
        optional = message.get("metadata"), message.get("message_id")
        yield check_row(message["role"], message["content"], *optional, f"messages[{at}].")


def check_change(
    title: Any = None,
    merge_metadata: Any = None,
    remove_metadata: Any = (),
    truncate_from: Any = None,
    truncate_all: Any = False,
    messages: Any = (),
) -> Change:
    """Return the checked parts of a change."""
    if isinstance(remove_metadata, str | bytes | bytearray | Mapping) or not isinstance(remove_metadata, Iterable):
        raise WrongTypeError(f"remove_metadata must be an iterable of keys, not {type(remove_metadata).__name__}")
    change = Change(
        None if title is None else check_text("title", title),
        None if merge_metadata is None else encode_json("merge_metadata", merge_metadata),
        {require_str("a key of remove_metadata", key) for key in remove_metadata},
        None if truncate_from is None else check_key("truncate_from", truncate_from),
        check_flag("truncate_all", truncate_all),
        list(check_rows(messages)),
    )
    if change.truncate_all and change.truncate_from is not None:
        raise InvalidInputError("truncate_from and truncate_all exclude each other")
    if change == (None, None, set(), None, False, []):
        raise InvalidInputError("update_session needs a part: a title, metadata, a truncation or messages")
    return change


def check_flag(name: str, value: object) -> bool:
    """Return `True` or `False`."""
    if not isinstance(value, bool):
        raise WrongTypeError(f"{name} must be a bool, not {type(value).__name__}")
    return value


def check_place(name: str, value: object) -> tuple[str, str] | None:
    """Return the time and the id of a session's record."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise WrongTypeError(f"{name} must be the record of a session, not {type(value).__name__}")
    try:
        moment, session = (require_str(f"{name}[{key!r}]", value[key]) for key in ("updated_at", "id"))
        datetime.fromisoformat(moment)
    except WrongTypeError:
        raise
    except (KeyError, ValueError) as error:
        raise InvalidInputError(f"{name} is not the record of a session: {error!r}") from error
    return moment, check_key(name, session)


def check_moment(name: str, value: object) -> str:
    """Return a time with a time zone as it is stored."""
    if not isinstance(value, datetime):
        raise WrongTypeError(f"{name} must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidInputError(f"{name} has no time zone")
    try:
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    except OverflowError:
        raise InvalidInputError(f"{name} is before the year 1 or after the year 9999") from None


def make_id() -> str:
    """Return a UUIDv7: the time in milliseconds, then random bits."""
    number = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10))
    return str(UUID(int=number & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62))
