"""Checks the arguments of changes, cursors and bulk deletions, and makes the errors of changes that are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from os import urandom
from typing import NamedTuple

from flux_memory.errors import ConflictError, InvalidInputError, InvalidTypeError
from flux_memory.records import timestamps
from flux_memory.records.checking import (
    MessageRow,
    check_batch,
    check_lookup,
    check_owner,
    drop_repeats,
)
from flux_memory.records.ids import make_id
from flux_memory.records.limits import MAX_METADATA_BYTES
from flux_memory.records.metadata import encode_metadata
from flux_memory.records.text import check_id, check_str, check_text, find_unstorable


class SessionUpdate(NamedTuple):
    """The checked arguments of `update_session`; `None` is a part that is not given."""

    expected_revision: str | None
    title: str | None
    merge_metadata: str | None
    """JSON text of the object to merge."""
    remove_metadata: tuple[str, ...]
    truncate_from: str | None
    truncate_all: bool
    messages: list[MessageRow]
    """Without repeats."""


class Fork(NamedTuple):
    """The checked arguments of `fork_session`; `None` keeps the original's value."""

    through: str | None
    new_id: str
    user_id: str | None
    title: str | None


def check_update(
    *,
    expected_revision: object,
    title: object,
    merge_metadata: object,
    remove_metadata: object,
    truncate_from: object,
    truncate_all: object,
    messages: object,
    most: int = MAX_METADATA_BYTES,
) -> SessionUpdate:
    """Return the change to make for the arguments of `update_session`.

    Args:
        expected_revision: The revision, or `None`.
        title: The title, or `None`.
        merge_metadata: The metadata to merge, or `None`.
        remove_metadata: The keys to remove.
        truncate_from: The message's id, or `None`.
        truncate_all: Whether to remove all messages.
        messages: The messages to append.
        most: See `encode_metadata`.

    Raises:
        InvalidInputError: An argument is invalid, which the error names, or none of them is a part of a change;
            `InvalidTypeError` if the type is wrong.
        TooLongError: The arguments have more than `most` parts of JSON.
        ConflictError: Two messages have the same id and different contents.
    """
    keys = check_keys(remove_metadata)
    cuts_all = check_flag("truncate_all", truncate_all)
    if cuts_all and truncate_from is not None:
        raise InvalidInputError("truncate_from and truncate_all are both given; give one of them")
    update = SessionUpdate(
        check_revision(expected_revision),
        None if title is None else check_text("title", title),
        None if merge_metadata is None else encode_metadata(merge_metadata, "merge_metadata", most=most),
        tuple(key for key in keys if not find_unstorable(key)),  # no stored key has such a text
        None if truncate_from is None else check_lookup("truncate_from", truncate_from),
        cuts_all,
        drop_repeats(check_batch(messages, most=most)),
    )
    given = [part is not None for part in (update.title, update.merge_metadata, update.truncate_from)]
    if not any((*given, keys, update.truncate_all, update.messages)):
        raise InvalidInputError(
            "update_session has nothing to change; give title, merge_metadata, remove_metadata, truncate_from, "
            "truncate_all or messages"
        )
    return update


def check_keys(value: object) -> tuple[str, ...]:
    """Return the keys to remove from metadata, each once."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise InvalidTypeError(f"remove_metadata must be a sequence of keys, not {type(value).__name__}")
    return tuple(dict.fromkeys(check_str("a key of remove_metadata", key) for key in value))


def check_fork(through: object, new_session_id: object, user_id: object, title: object) -> Fork:
    """Return the copy to make for the arguments of `fork_session`; its id is made if none is given.

    Args:
        through: The id of the last message to copy, or `None`.
        new_session_id: The id of the copy, or `None`.
        user_id: The owner of the copy, or `None`.
        title: The title of the copy, or `None`.

    Raises:
        InvalidInputError: An argument is invalid, which the error names; `InvalidTypeError` if its type is wrong.
    """
    return Fork(
        None if through is None else check_lookup("through", through),
        make_id() if new_session_id is None else check_id("new_session_id", new_session_id),
        None if user_id is None else check_owner(user_id),
        None if title is None else check_text("title", title),
    )


def check_flag(name: str, value: object) -> bool:
    """Return an argument that is `True` or `False`.

    Args:
        name: The argument's name, for the error.
        value: The argument.

    Raises:
        InvalidTypeError: The value is not a `bool`.
    """
    if not isinstance(value, bool):
        raise InvalidTypeError(f"{name} must be a bool, not {type(value).__name__}")
    return value


def check_revision(expected_revision: object) -> str | None:
    """Return the `expected_revision` of a call; a text that cannot be stored becomes one that no session has.

    Args:
        expected_revision: The argument, or `None`.

    Raises:
        InvalidTypeError: The value is not a `str`.
    """
    return None if expected_revision is None else check_lookup("expected_revision", expected_revision)


def check_cursors(before: object, after: object) -> tuple[str | None, str | None]:
    """Return the cursors of `get_history`.

    Args:
        before: A message's id, or `None`.
        after: A message's id, or `None`.

    Raises:
        InvalidTypeError: A cursor is not a `str`.
        InvalidInputError: Both are given.
    """
    if before is not None and after is not None:
        raise InvalidInputError("before and after are both given; give one of them")
    return (
        None if before is None else check_lookup("before", before),
        None if after is None else check_lookup("after", after),
    )


def check_session_cursor(before: object) -> tuple[str, str] | None:
    """Return the `updated_at` and the id of the `before` argument of `get_sessions`; `None` stays `None`.

    Args:
        before: A session's record, or `None`.

    Raises:
        InvalidTypeError: The value is not a mapping.
        InvalidInputError: The mapping is not a session's record.
    """
    if before is None:
        return None
    if not isinstance(before, Mapping):
        raise InvalidTypeError(f"before must be a session's record, not {type(before).__name__}")
    try:
        return timestamps.check(before["updated_at"]), check_lookup("before['id']", before["id"])
    except (KeyError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InvalidInputError(f"before must be a record that get_sessions() returned: {reason!s:.200}") from error


def check_moment(name: str, value: object) -> str:
    """Return a time in the form of the records.

    Args:
        name: The argument's name, for the error.
        value: The argument.

    Raises:
        InvalidTypeError: The value is not a `datetime`.
        InvalidInputError: The time has no time zone, or is outside the years 1 to 9999.
    """
    if not isinstance(value, datetime):
        raise InvalidTypeError(f"{name} must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidInputError(f"{name} has no time zone; use datetime.now(UTC) or .replace(tzinfo=UTC)")
    try:
        return timestamps.format_time(value)
    except OverflowError as error:
        raise InvalidInputError(f"{name} is outside the years 1 to 9999 in UTC") from error


def check_deletion(user_id: object, inactive_since: object) -> tuple[str | None, str | None]:
    """Return the criteria of `delete_sessions`: a user, and a time in the form of the records.

    Args:
        user_id: The owner, or `None`.
        inactive_since: The time, or `None`.

    Raises:
        InvalidTypeError: An argument has the wrong type.
        InvalidInputError: No criterion is given, or the time is invalid.
    """
    if user_id is None and inactive_since is None:
        raise InvalidInputError("delete_sessions needs user_id or inactive_since; clear_all() removes every session")
    return (
        None if user_id is None else check_lookup("user_id", user_id),
        None if inactive_since is None else check_moment("inactive_since", inactive_since),
    )


def make_revision() -> str:
    """Return a new revision for a session: a random UUID."""
    # Each add makes one, and `uuid4()` takes five times as long.
    digits = urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def revision_conflict(session_id: str) -> ConflictError:
    """Return the error to raise for a session whose revision is not the expected one.

    Args:
        session_id: The session's id.
    """
    return ConflictError(
        f"session {session_id!r:.80} has changed since the expected revision; read it again and decide anew"
    )


def owner_conflict(session_id: str) -> ConflictError:
    """Return the error to raise for an add whose `user_id` is not the owner of the session.

    Args:
        session_id: The session's id.
    """
    return ConflictError(f"session {session_id!r:.80} belongs to another user; nothing was stored")


def message_not_found(session_id: str, message_id: str) -> ConflictError:
    """Return the error to raise for a truncation or a fork at a message that the session does not have.

    Args:
        session_id: The session's id.
        message_id: The message's id.
    """
    return ConflictError(f"session {session_id!r:.80} has no message {message_id!r:.80}; nothing was changed")


def metadata_too_large(session_id: str) -> InvalidInputError:
    """Return the error to raise for a merge after which the metadata would be too large.

    Args:
        session_id: The session's id.
    """
    return InvalidInputError(
        f"merge_metadata would make the metadata of session {session_id!r:.80} larger than {MAX_METADATA_BYTES:,} "
        "bytes; remove keys, or store less of it"
    )
