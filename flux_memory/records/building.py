"""Builds `Message` and `Session` records from rows, for both backends, and names the row that is corrupt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar

from flux_memory.errors import FluxMemoryError
from flux_memory.protocol import Message, Session
from flux_memory.records import timestamps
from flux_memory.records.metadata import TooLongError, decode_all_metadata, decode_metadata

Record = TypeVar("Record", Message, Session)
Row: TypeAlias = Sequence[Any]

_MESSAGE_COLUMNS: Final = "id, role, content, metadata, created_at"
_SESSION_COLUMNS: Final = "id, user_id, title, created_at, updated_at, metadata, revision, message_count"
_ROW_CHARACTERS: Final = 400
"""Characters of JSON that take as long to decode as a record without metadata takes to build."""
_CHUNK_ROWS: Final = 128
"""Rows that are checked column by column at once; more would need more memory."""


def build_messages(session_id: str, rows: Sequence[Row], *, most: int = sys.maxsize) -> list[Message]:
    """Return the records of a history, oldest first.

    Args:
        session_id: The session's id, for the error.
        rows: Sequences of (id, role, content, metadata, created_at), newest first: metadata as JSON text or `None`, the
            time as `format_time` returns it.
        most: Characters of JSON to decode at most.

    Raises:
        TooLongError: It would take as long as decoding more than `most` characters of JSON.
        FluxMemoryError: A row is corrupt; the message names it.
        TypeError: A row is not a sequence of five values.
    """
    return _build_in_chunks(rows[::-1], most, _sound_messages, partial(_message, session_id))


def _sound_messages(rows: Sequence[Row], most: int) -> list[Message]:
    """Build records, checked column by column: several times as fast as row by row.

    Raises:
        ValueError, TypeError, RecursionError: A row is corrupt, or has no metadata.
    """
    ids, roles, contents, metadata, times = _all_text(*zip(*rows, strict=True))
    timestamps.check_all(times)
    return [
        {"id": id_, "role": role, "content": content, "metadata": value, "created_at": created_at}
        for id_, role, content, value, created_at in zip(
            ids, roles, contents, decode_all_metadata(metadata, most=most), times, strict=True
        )
    ]


def _message(session_id: str, row: Row, most: int) -> Message:
    try:
        id_, role, content, metadata, created_at = row
    except (ValueError, TypeError) as error:
        raise _not_a_row(row, _MESSAGE_COLUMNS) from error
    try:
        if not type(id_) is type(role) is type(content) is str:
            raise TypeError(describe_not_text(id_, role, content))
        return {
            "id": id_,
            "role": role,
            "content": content,
            "metadata": decode_metadata(metadata, most=most),
            "created_at": timestamps.check(created_at),
        }
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(row, Mapping):
            raise _not_a_row(row, _MESSAGE_COLUMNS) from error
        raise FluxMemoryError(f"message {id_!r} of session {session_id!r} cannot be read: {error}") from error


def build_session(row: Row, *, most: int = sys.maxsize) -> Session:
    """Return a session's record.

    Args:
        row: A sequence of (id, user_id, title, created_at, updated_at, metadata, revision, message_count): metadata as
            JSON text or `None`, the times as `format_time` returns them.
        most: Characters of JSON to decode at most.

    Raises:
        TooLongError: The metadata has more than `most` characters.
        FluxMemoryError: The row is corrupt; the message names it.
        TypeError: The row is not a sequence of eight values.
    """
    try:
        id_, user_id, title, created_at, updated_at, metadata, revision, message_count = row
    except (ValueError, TypeError) as error:
        raise _not_a_row(row, _SESSION_COLUMNS) from error
    try:
        if not type(id_) is type(user_id) is type(title) is type(revision) is str:
            raise TypeError(describe_not_text(id_, user_id, title, revision))
        return {
            "id": id_,
            "user_id": user_id,
            "title": title,
            "created_at": timestamps.check(created_at),
            "updated_at": timestamps.check(updated_at),
            "metadata": decode_metadata(metadata, most=most),
            "message_count": message_count,
            "revision": revision,
        }
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(row, Mapping):
            raise _not_a_row(row, _SESSION_COLUMNS) from error
        raise FluxMemoryError(f"session {id_!r} cannot be read: {error}") from error


def build_sessions(rows: Sequence[Row], *, most: int = sys.maxsize) -> list[Session]:
    """Return the records of rows as `build_session` takes them, in their order.

    Args:
        rows: The rows.
        most: Characters of JSON to decode at most.

    Raises:
        TooLongError: It would take as long as decoding more than `most` characters of JSON.
        FluxMemoryError: A row is corrupt; the message names it.
        TypeError: A row is not a sequence of eight values.
    """
    return _build_in_chunks(rows, most, _sound_sessions, lambda row, most: build_session(row, most=most))


def _build_in_chunks(
    rows: Sequence[Row],
    most: int,
    build_sound: Callable[[Sequence[Row], int], list[Record]],
    build: Callable[[Row, int], Record],
) -> list[Record]:
    """Build records together where they are sound, and else one by one, which names the corrupt row."""
    result: list[Record] = []
    if len(rows) * _ROW_CHARACTERS > most:
        raise TooLongError
    for at in range(0, len(rows), _CHUNK_ROWS):
        some = rows[at : at + _CHUNK_ROWS]
        try:
            result += build_sound(some, most)
        except (ValueError, TypeError, RecursionError):
            result += [build(row, most) for row in some]
    return result


def _sound_sessions(rows: Sequence[Row], most: int) -> list[Session]:
    """Build records, checked column by column.

    Raises:
        ValueError, TypeError, RecursionError: A row is corrupt, or has no metadata.
    """
    *texts, counts = zip(*rows, strict=True)
    ids, users, titles, created, updated, metadata, revisions = _all_text(*texts)
    timestamps.check_all(created + updated)
    return [
        {
            "id": id_,
            "user_id": user_id,
            "title": title,
            "created_at": created_at,
            "updated_at": updated_at,
            "metadata": value,
            "message_count": message_count,
            "revision": revision,
        }
        for id_, user_id, title, created_at, updated_at, value, revision, message_count in zip(
            *(ids, users, titles, created, updated, decode_all_metadata(metadata, most=most), revisions, counts),
            strict=True,
        )
    ]


def _all_text(*columns: tuple[Any, ...]) -> tuple[tuple[str, ...], ...]:
    # A list of types is counted faster than a set of them is made.
    types = list(map(type, chain.from_iterable(columns)))
    if types.count(str) != len(types):
        raise TypeError("a value is not text")
    return columns


def _not_a_row(row: object, columns: str) -> TypeError:
    """Return the error for what a query selected instead of these columns."""
    if isinstance(row, Sized) and not isinstance(row, Mapping | str):
        found = f"this one has {len(row)}"
    else:
        found = f"this one is of type {type(row).__name__}"
    return TypeError(f"a row is a sequence of the values ({columns}), and {found}; select these columns in this order")


def describe_not_text(*values: object) -> str:
    """Return what is wrong with the first value that is not text."""
    return f"{next(value for value in values if type(value) is not str)!r:.60} where text belongs"
