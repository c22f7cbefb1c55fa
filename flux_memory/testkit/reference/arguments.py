"""Argument checks of the reference model, written from the contract and independent of the library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from flux_memory import (
    MAX_BATCH_BYTES,
    MAX_CONTENT_BYTES,
    MAX_FILTER_ELEMENTS,
    MAX_FILTER_VALUES,
    MAX_ID_LENGTH,
    MAX_USER_ID_LENGTH,
    InvalidInputError,
)
from flux_memory.testkit.reference import values

_MADE_ID: Final = "i" * 36
"""As long as an id that is made: a batch is checked before its ids are made."""


class WrongTypeError(InvalidInputError, TypeError):
    """An argument of the wrong type."""


class Draft(NamedTuple):
    """A checked message to add; its id is `None` if the caller gave none."""

    id: str | None
    role: str
    content: str
    metadata: dict[str, Any]


def plain_text(name: str, value: object) -> str:
    """Return a text as plain `str`."""
    if not isinstance(value, str):
        raise WrongTypeError(f"{name} must be a str, not {type(value).__name__}")
    return str.__str__(value)


def text(name: str, value: object) -> str:
    """Return a text that can be stored."""
    plain = plain_text(name, value)
    if problem := values.problem_of_text(plain):
        raise InvalidInputError(f"{name} has {problem}")
    if len(plain.encode()) > MAX_CONTENT_BYTES:
        raise InvalidInputError(f"{name} is larger than {MAX_CONTENT_BYTES} bytes")
    return plain


def identifier(name: str, value: object, *, shortest: int = 1, longest: int = MAX_ID_LENGTH) -> str:
    """Return an id that can be stored."""
    plain = plain_text(name, value)
    if not shortest <= len(plain) <= longest:
        raise InvalidInputError(f"{name} must have {shortest} to {longest} characters, not {len(plain)}")
    return text(name, plain)


def metadata(name: str, value: object) -> dict[str, Any]:
    """Return metadata as plain types, a copy."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise WrongTypeError(f"{name} must be a mapping, not {type(value).__name__}")
    try:
        copied: dict[str, Any] = values.plain_json(value)
    except values.NotJsonError as error:
        kind = WrongTypeError if error.wrong_type else InvalidInputError
        raise kind(f"{name} holds {error}") from None
    if problem := values.problem_of_size(copied):
        raise InvalidInputError(f"{name} is {problem}")
    return copied


def metadata_filter(name: str, value: object) -> dict[str, Any]:
    """Return metadata to filter by, which is short."""
    part = metadata(name, value)
    everywhere, within_arrays = values.count_values(part)
    if everywhere > MAX_FILTER_VALUES or within_arrays > MAX_FILTER_ELEMENTS:
        raise InvalidInputError(f"{name} has {everywhere} values, {within_arrays} within arrays: too many for a filter")
    return part


def count(name: str, value: object) -> int:
    """Return a checked number of rows."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongTypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < 0:
        raise InvalidInputError(f"{name} is negative; it must be 0 or more")
    return value


def rating(value: object) -> int:
    """Return a checked rating."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongTypeError(f"rating must be an int, not {type(value).__name__}")
    if not -1 <= value <= 1:
        raise InvalidInputError("rating must be -1, 0 or 1")
    return int(value)


def owner(value: object) -> str:
    """Return a checked owner of a session; the empty one is none."""
    return identifier("user_id", value, shortest=0, longest=MAX_USER_ID_LENGTH)


def flag(name: str, value: object) -> bool:
    """Return an argument that is `True` or `False`."""
    if not isinstance(value, bool):
        raise WrongTypeError(f"{name} must be a bool, not {type(value).__name__}")
    return value


def session_cursor(name: str, value: object) -> tuple[str, bytes] | None:
    """Return the place of a session's record in lists."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise WrongTypeError(f"{name} must be a session, not {type(value).__name__}")
    if "id" not in value or "updated_at" not in value:
        raise InvalidInputError(f"{name} is not a session: it has no id or no updated_at")
    moment, session = plain_text(f"{name}.updated_at", value["updated_at"]), plain_text(f"{name}.id", value["id"])
    try:
        datetime.fromisoformat(moment)
    except ValueError as error:
        raise InvalidInputError(f"{name} is not a session: {error}") from None
    return moment, session.encode(errors="surrogatepass")


def moment(name: str, value: object) -> str:
    """Return an aware time in the format of records."""
    if not isinstance(value, datetime):
        raise WrongTypeError(f"{name} must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidInputError(f"{name} has no time zone")
    try:
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    except OverflowError:
        raise InvalidInputError(f"{name} is not in the years 1 to 9999") from None


def keys(name: str, value: object) -> list[str]:
    """Return the keys to remove."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray | Mapping):
        raise WrongTypeError(f"{name} must be an iterable of str, not {type(value).__name__}")
    return [plain_text(f"a key of {name}", key) for key in value]


def draft(role: object, content: object, extra: object, message_id: object, place: str = "") -> Draft:
    """Return a checked message; `place` names it in a batch."""
    spoken_by = text(f"{place}role", role)
    if not spoken_by:
        raise InvalidInputError(f"{place}role is empty")
    return Draft(
        None if message_id is None else identifier(f"{place}message_id", message_id),
        spoken_by,
        text(f"{place}content", content),
        metadata(f"{place}metadata", extra),
    )


def drafts(messages: object) -> list[Draft]:
    """Return a checked batch."""
    if not isinstance(messages, Iterable) or isinstance(messages, str | bytes | bytearray | Mapping):
        raise WrongTypeError(f"messages must be an iterable of mappings, not {type(messages).__name__}")
    found = [_element(f"messages[{at}]", message) for at, message in enumerate(messages)]
    if sum(map(_size, found)) > MAX_BATCH_BYTES:
        raise InvalidInputError(f"messages are larger than {MAX_BATCH_BYTES} bytes")
    return found


def _size(message: Draft) -> int:
    texts = (message.id or _MADE_ID, message.role, message.content)
    return sum(len(part.encode()) for part in texts) + values.size(message.metadata)


def _element(place: str, message: object) -> Draft:
    if not isinstance(message, Mapping):
        raise WrongTypeError(f"{place} must be a mapping, not {type(message).__name__}")
    for key in ("role", "content"):
        if key not in message:
            raise InvalidInputError(f"{place} has no {key}")
    for key in message:
        if key not in {"role", "content", "metadata", "message_id"}:
            raise InvalidInputError(f"{place} has an unknown key, {key!r}")
    return draft(message["role"], message["content"], message.get("metadata"), message.get("message_id"), f"{place}.")
