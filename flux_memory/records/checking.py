"""Checks the arguments of a call, and makes the errors of calls to what is missing or taken."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

from flux_memory.errors import (
    ConflictError,
    FluxMemoryError,
    InvalidInputError,
    InvalidTypeError,
    SessionNotFoundError,
)
from flux_memory.records import timestamps
from flux_memory.records.building import describe_not_text
from flux_memory.records.ids import make_id
from flux_memory.records.limits import (
    MAX_BATCH_BYTES,
    MAX_METADATA_BYTES,
    MAX_USER_ID_LENGTH,
)
from flux_memory.records.metadata import TooLongError, encode_metadata, equal
from flux_memory.records.text import check_id, check_str, check_text, find_unstorable, shown

MAX_COUNT: Final = 2**62 - 1
"""The largest `limit` or `offset` that an engine gets: their sum still has 64 bits, which some engines add up."""
MAX_INTEGER: Final = 2**63 - 1
"""The largest integer of an engine, such as the number of a message."""

_ROW_PARTS: Final = 16
"""Parts of JSON that take as long to encode as a message without metadata takes to check."""
_PART_CHARACTERS: Final = 8
"""Characters of a part of JSON, roughly."""
_BATCH_KEYS: Final = frozenset({"role", "content", "metadata", "message_id"})


class SessionRow(NamedTuple):
    """A checked session to store; its metadata is JSON text."""

    id: str
    user_id: str
    title: str
    metadata: str


class MessageRow(NamedTuple):
    """A checked message to store; its metadata is JSON text."""

    id: str
    role: str
    content: str
    metadata: str

    def same_as(self, role: str, content: str, metadata: str | None) -> bool:
        """Return whether a stored message of the same id has this content, which makes this one a retry.

        Args:
            role: The stored role.
            content: The stored content.
            metadata: The stored metadata as JSON text; `None` is `{}`. Numbers are compared by value: 1 equals 1.0.

        Raises:
            FluxMemoryError: The stored message is corrupt.
        """
        metadata = metadata or "{}"
        try:
            if not type(role) is type(content) is type(metadata) is str:
                raise TypeError(describe_not_text(role, content, metadata))
            return (self.role, self.content) == (role, content) and equal(self.metadata, metadata)
        except (ValueError, TypeError, RecursionError) as error:
            raise FluxMemoryError(f"the stored message {self.id!r} cannot be read: {error}") from error


def check_new_session(
    session_id: object, user_id: object, title: object, metadata: object, *, most: int = MAX_METADATA_BYTES
) -> SessionRow:
    """Return the session to store for the arguments of `create_session`; its id is made if none is given.

    Args:
        session_id: The id, or `None`.
        user_id: The owner.
        title: The title.
        metadata: The metadata, or `None`.
        most: See `encode_metadata`.

    Raises:
        InvalidInputError: An argument is invalid, which the error names; `InvalidTypeError` if its type is wrong.
        TooLongError: The metadata has more than `most` parts.
    """
    return SessionRow(
        _own_id("session_id", session_id),
        check_owner(user_id),
        check_text("title", title),
        encode_metadata(metadata, most=most),
    )


def check_new_message(
    role: object,
    content: object,
    metadata: object,
    message_id: object,
    place: str = "",
    *,
    most: int = MAX_METADATA_BYTES,
) -> MessageRow:
    """Return the message to store for the arguments of `add_message`; its id is made if none is given.

    Args:
        role: The role, which must not be empty.
        content: The content.
        metadata: The metadata, or `None`.
        message_id: The id, or `None`.
        place: A prefix of the arguments' names in errors, such as `messages[3].`.
        most: See `encode_metadata`.

    Raises:
        InvalidInputError: An argument is invalid, which the error names; `InvalidTypeError` if its type is wrong.
        TooLongError: The metadata has more than `most` parts.
    """
    role = check_text(f"{place}role", role)
    if not role:
        raise InvalidInputError(f"{place}role is empty; name the speaker, such as 'user' or 'assistant'")
    return MessageRow(
        _own_id(f"{place}message_id", message_id),
        role,
        check_text(f"{place}content", content),
        encode_metadata(metadata, f"{place}metadata", most=most),
    )


def check_owner(user_id: object) -> str:
    """Return the owner of a session to store: at most 255 characters, and `""` for none.

    Args:
        user_id: The argument.

    Raises:
        InvalidTypeError: The value is not a `str`.
        InvalidInputError: The text is too long, or it has a NUL or a lone surrogate.
    """
    return check_id("user_id", user_id, min_length=0, max_length=MAX_USER_ID_LENGTH)


def list_messages(messages: object) -> list[Any]:
    """Return the elements of a batch, unchecked; they can be checked twice, while an iterator has them once."""
    if isinstance(messages, str | bytes | bytearray | Mapping) or not isinstance(messages, Iterable):
        raise InvalidTypeError(f"messages must be a sequence of mappings, not {type(messages).__name__}")
    return list(messages)


def check_batch(messages: object, *, most: int = MAX_METADATA_BYTES) -> list[MessageRow]:
    """Return the messages to store for the argument of `add_messages`, in order, repeated ones included.

    Args:
        messages: The batch.
        most: Parts of JSON at which encoding stops; see `encode_metadata`.

    Raises:
        InvalidTypeError: The batch is not an iterable of mappings.
        TooLongError: The batch has more than `most` parts of JSON, which may be less than the default.
        InvalidInputError: An element is not a message, which the error names, or the batch is too large.
        ConflictError: Two elements have the same id and different contents.
    """
    rows = []
    bounded, left = most < MAX_METADATA_BYTES, most
    for index, item in enumerate(list_messages(messages)):
        rows.append(_batch_element(item, f"messages[{index}]", left))
        if bounded:
            left -= _ROW_PARTS + len(rows[-1].metadata) // _PART_CHARACTERS
            if left < 0:
                raise TooLongError
    characters = sum(map(len, chain.from_iterable(rows)))
    if characters * 4 > MAX_BATCH_BYTES and sum(len(part.encode()) for row in rows for part in row) > MAX_BATCH_BYTES:
        raise InvalidInputError(f"messages are larger than {MAX_BATCH_BYTES:,} bytes; add them in several batches")
    first: dict[str, MessageRow] = {}
    for row in rows:
        if not row.same_as(*first.setdefault(row.id, row)[1:]):
            raise ConflictError(f"the batch has two messages with the id {row.id!r} and different contents")
    return rows


def drop_repeats(rows: Iterable[MessageRow]) -> list[MessageRow]:
    """Return a batch without its repeated messages, in order.

    Args:
        rows: What `check_batch` returned.
    """
    return list({row.id: row for row in rows}.values())


def check_lookup(name: str, value: object) -> str:
    """Return an id or a user to look up as plain `str`.

    Every text is valid. One that cannot be stored becomes a longer one than any id or user, so that every database
    takes it and no record has it.

    Args:
        name: The argument's name, for the error.
        value: The argument.

    Raises:
        InvalidTypeError: The value is not a `str`.
    """
    text = check_str(name, value)
    return ascii(text).ljust(MAX_USER_ID_LENGTH + 1, "?") if find_unstorable(text) else text


def check_session_id(session_id: object) -> str:
    """Return the id of a session to write to as plain `str`.

    Check the other arguments first, because an invalid one is reported before a missing session.

    Args:
        session_id: The argument.

    Raises:
        InvalidTypeError: The id is not a `str`.
        SessionNotFoundError: The id cannot be stored, so that no session has it.
    """
    text = check_str("session_id", session_id)
    if find_unstorable(text):
        raise session_not_found(text)
    return text


def session_not_found(session_id: str) -> SessionNotFoundError:
    """Return the error to raise for a write to a session that does not exist.

    Args:
        session_id: The session's id.
    """
    return SessionNotFoundError(
        f"session {session_id!r:.80} does not exist; create it with create_session(), or add with create=True"
    )


def session_id_taken(session_id: str) -> ConflictError:
    """Return the error to raise for a new session whose id is taken.

    Args:
        session_id: The id.
    """
    return ConflictError(f"a session with the id {session_id!r} exists; it is left as it was")


def message_id_taken(session_id: str, message_id: str) -> ConflictError:
    """Return the error to raise for a message whose id is taken by another content; see `MessageRow.same_as`.

    Args:
        session_id: The session's id.
        message_id: The message's id.
    """
    return ConflictError(
        f"session {session_id!r} has another message with the id {message_id!r}; give this one an id of its own"
    )


def check_count(name: str, value: object) -> int:
    """Return a number of rows, such as an `offset`; one above 2**62 - 1 becomes that.

    Args:
        name: The argument's name, for the error.
        value: The argument.

    Raises:
        InvalidTypeError: The value is not an `int`, or it is a `bool`.
        InvalidInputError: The value is negative.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidTypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < 0:
        raise InvalidInputError(f"{name} is {shown(value)}; it must be 0 or more")
    return min(int(value), MAX_COUNT)


def check_seconds(name: str, value: object) -> float:
    """Return a deadline in seconds.

    Args:
        name: The argument's name, for the error.
        value: The argument.

    Raises:
        InvalidTypeError: The value is not a number, or it is a `bool`.
        InvalidInputError: The value is not positive and finite.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidTypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    # An integer can be finite and larger than any float.
    if not 0 < value <= sys.float_info.max:
        raise InvalidInputError(f"{name} is {shown(value)}; it must be more than 0 and finite")
    return float(value)


def check_limit(value: object) -> int:
    """Return a `limit` as `check_count` does; `None`, which means all, becomes 2**62 - 1.

    Args:
        value: The argument.

    Raises:
        InvalidTypeError: The value is not an `int`, or it is a `bool`.
        InvalidInputError: The value is negative.
    """
    return MAX_COUNT if value is None else check_count("limit", value)


def check_session_time(session_id: str, value: object) -> str:
    """Return a session's stored time if it has the records' form.

    Raises:
        FluxMemoryError: The row is corrupt; the message names it.
    """
    try:
        return timestamps.check(value)
    except ValueError as error:
        raise FluxMemoryError(f"session {session_id!r} cannot be read: {error}") from error


def _own_id(name: str, value: object) -> str:
    return make_id() if value is None else check_id(name, value)


def _batch_element(item: object, place: str, most: int) -> MessageRow:
    if not isinstance(item, Mapping):
        raise InvalidTypeError(f"{place} must be a mapping, not {type(item).__name__}")
    if unknown := [key for key in item if key not in _BATCH_KEYS]:
        raise InvalidInputError(f"{place} has the unknown key {shown(unknown[0])}; known are {sorted(_BATCH_KEYS)}")
    if missing := [key for key in ("role", "content") if key not in item]:
        raise InvalidInputError(f"{place} has no {missing[0]!r}")
    return check_new_message(
        item["role"], item["content"], item.get("metadata"), item.get("message_id"), f"{place}.", most=most
    )
