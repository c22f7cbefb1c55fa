"""Proves that a target holds a source's content: compares digests of sessions, then the rows of those that differ."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final
from uuid import UUID

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.schema.postgres.inspection import missing_keys
from flux_memory.transfer.rows.pgcopy import (
    MESSAGE_DIGEST,
    MessagesDigest,
    ValidMessage,
    ValidSession,
    message_digest,
    prepare_messages,
    session_digest,
)
from flux_memory.transfer.rows.postgres_time import time_text
from flux_memory.transfer.rows.spool import SessionDigest, Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.reader import Source
from flux_memory.transfer.target.server import SELECT_SESSIONS
from flux_memory.transfer.target.server_digests import ServerSession, read_digests

COUNT_MESSAGES: Final = "SELECT count(*) FROM messages WHERE session_id::text = $1"
SELECT_MESSAGES: Final = f"""
SELECT id, seq, {MESSAGE_DIGEST.replace("messages.seq", "0::bigint")}
FROM messages
WHERE session_id::text = $1 AND id::text = ANY($2::text::text[])
"""  # noqa: S608 - constants of ours

SESSION_MISSING: Final = "session missing"
MESSAGE_MISSING: Final = "message missing"
FEEDBACK_MISSING: Final = "feedback missing"
SESSION_VANISHED: Final = "session differs, and is not in the file as it is now"
SESSION_CHANGED: Final = "session differs, and was changed in the file since it was read"

_MAX_NAMED: Final = 20
"""Sessions and differences that a report names."""
_PAGE_MESSAGES: Final = 1_000
"""Messages compared at a time, in a session that differs."""


@dataclass
class Comparison:
    """Differences between a source and its target."""

    sessions: int = 0
    messages: int = 0
    """Rows of the source."""
    target_sessions: int = 0
    target_messages: int = 0
    """Rows of the target."""
    differences: dict[str, int] = field(default_factory=dict)
    """The number of differences of each kind."""
    first_differences: list[str] = field(default_factory=list)
    only_in_target: int = 0
    """Sessions that are not in the source."""
    messages_only_in_target: int = 0
    """Messages of these sessions."""
    added_since: int = 0
    """Messages of moved sessions that are not in the source."""
    first_only_in_target: list[str] = field(default_factory=list)
    """The first sessions with such rows."""
    deleted_since: int = 0
    """Sessions that an earlier run moved and that were deleted in the target since; the run skipped them."""
    messages_deleted_since: int = 0
    feedback: int = 0
    target_feedback: int = 0
    feedback_only_in_target: int = 0
    feedback_deleted_since: int = 0
    """Entries that an earlier run moved and that were deleted in the target since; the run skipped them."""
    first_deleted_since: list[str] = field(default_factory=list)
    is_one_moment: bool = True
    """Whether all sessions of the target were read at the same moment; each of them was, in any case."""

    @property
    def identical(self) -> bool:
        """Whether both sides have the same rows, in the same order, with the same content."""
        return self.same_rows and self.is_one_moment

    @property
    def same_rows(self) -> bool:
        """Whether both sides have the same rows, although perhaps at different moments."""
        more = self.only_in_target or self.added_since or self.feedback_only_in_target
        return self.contained and not (more or self.skipped)

    @property
    def skipped(self) -> bool:
        """Whether something was deleted in the target since an earlier run moved it."""
        return bool(self.deleted_since or self.feedback_deleted_since)

    @property
    def contained(self) -> bool:
        """Whether the target holds each row of the source that was not skipped, in order, with its content."""
        return not self.differences

    def add(self, kind: str, id_: str) -> None:
        """Count a difference, and name it if it is one of the first."""
        self.differences[kind] = self.differences.get(kind, 0) + 1
        _name(self.first_differences, f"{kind}: {id_}")

    def add_only_in_target(self, id_: str, messages: int) -> None:
        """Count a session that is not in the source."""
        self.only_in_target += 1
        self.messages_only_in_target += messages
        _name(self.first_only_in_target, id_)

    def add_messages(self, id_: str, messages: int) -> None:
        """Count messages that are not in the source, of a session that is."""
        self.added_since += messages
        if messages:
            _name(self.first_only_in_target, id_)

    def add_deleted(self, id_: str, messages: int) -> None:
        """Count a session that was deleted in the target."""
        self.deleted_since += 1
        self.messages_deleted_since += messages
        _name(self.first_deleted_since, id_)


@dataclass
class Losses(Comparison):
    """What a target loses if its rows are replaced with a source's; rows that it would gain are not counted."""

    columns: list[str] = field(default_factory=list)
    """Columns, as `table.column`, that are not the library's, and lose their values."""

    def add(self, kind: str, id_: str) -> None:
        """Count a difference of rows that are on both sides."""
        if kind not in {SESSION_MISSING, MESSAGE_MISSING, FEEDBACK_MISSING}:
            super().add(kind, id_)


class Forecast(Losses):
    """The differences that a move would leave, before it adds to the target."""

    def add(self, kind: str, id_: str) -> None:
        """Count a difference of rows that are on both sides; an application may go on writing to the file."""
        if kind not in {SESSION_VANISHED, SESSION_CHANGED}:
            super().add(kind, id_)


def _name(first: list[str], name: str) -> None:
    if len(first) < _MAX_NAMED:
        first.append(name)


async def compare(
    found: Comparison,
    connection: Any,
    source: Callable[[], Awaitable[Source]],
    validator: RowValidator,
    digests: Iterator[SessionDigest],
    *,
    statement: Callable[[str], str] = str,
    source_ids: Sequence[UUID] | None = None,
    skips_deleted: bool = False,
) -> None:
    """Compare digests of a SQLite memory with a PostgreSQL memory, in the caller's transaction.

    Args:
        found: Receives the differences.
        connection: Connected to PostgreSQL, in a transaction that sees one snapshot.
        source: Returns the SQLite memory; called only if sessions differ, to compare their rows.
        validator: Validates its rows.
        digests: The digests of its sessions, ordered by id.
        statement: See `TransferPath.statement`.
        source_ids: The ids that the memory may have in the target's record of moves; `None` leaves it unread.
        skips_deleted: Whether sessions that were deleted in the target since a move are not missing there.
    """
    with Spool() as differing:
        both = _DigestComparison(found, digests, differing, skips_deleted=skips_deleted)
        await read_digests(connection, both.take, source_ids, statement)
        both.end()
        rows: Source | None = None
        for digest in differing.digests():
            if rows is None:
                rows = await source()
            await _compare_session(found, connection, rows, validator, digest, statement=statement)


async def check_keys(found: Comparison, connection: Any) -> None:
    """Count the keys that the library requires and the tables lack."""
    for key in await missing_keys(connection):
        found.add("key missing", key)


class _DigestComparison:
    """Compares both sides in the order of ids; collects sessions that differ."""

    def __init__(
        self, found: Comparison, mine: Iterator[SessionDigest], differing: Spool, *, skips_deleted: bool
    ) -> None:
        self._found = found
        self._skips_deleted = skips_deleted
        self._mine = mine
        self._own = next(mine, None)
        self._differing = differing

    def take(self, session: ServerSession) -> None:
        """Compare the server's next session."""
        found, their = self._found, session.digest
        id_ = their.id.decode()
        found.target_messages += their.count
        while self._own is not None and self._own.id < their.id:
            self._missing(self._own)
        own = self._own if self._own is not None and self._own.id == their.id else None
        if not session.exists:
            if their.count:
                found.add("messages without their session", id_)
            elif own is not None:
                # If the source does not have it either, both sides agree.
                self._deleted(own)
            return
        found.target_sessions += 1
        if not session.counted:
            found.add("message_count differs from the messages there are", id_)
        if not session.numbered:
            found.add("seq does not count the messages from 1 on", id_)
        if own is None:
            found.add_only_in_target(id_, their.count)
            if session.by_source:
                found.add("session deleted in the file since it was moved", id_)
            return
        if own != their:
            self._differing.add_session(own, b"", b"")
        self._advance(own)

    def end(self) -> None:
        """Count the sessions that the server does not have."""
        while self._own is not None:
            self._missing(self._own)

    def _deleted(self, own: SessionDigest) -> None:
        if self._skips_deleted:
            self._found.add_deleted(own.id.decode(), own.count)
            self._advance(own)
        else:
            self._missing(own, ", deleted since it was moved")

    def _missing(self, own: SessionDigest, why: str = "") -> None:
        self._found.add(SESSION_MISSING, f"{own.id.decode()} with {own.count} messages{why}")
        self._advance(own)

    def _advance(self, own: SessionDigest) -> None:
        self._found.sessions += 1
        self._found.messages += own.count
        self._own = next(self._mine, None)


async def _compare_session(
    found: Comparison,
    connection: Any,
    source: Source,
    validator: RowValidator,
    own: SessionDigest,
    *,
    statement: Callable[[str], str],
) -> None:
    session_id = own.id.decode()
    raw = source.session(session_id)
    session = None if raw is None else validator.validate_session(raw)
    if not isinstance(session, ValidSession):
        found.add(SESSION_VANISHED, session_id)
        return
    matched = last = count = 0
    in_file = MessagesDigest()
    rows = (
        row for row in map(validator.validate_message, source.messages_of(session_id)) if isinstance(row, ValidMessage)
    )
    while page := list(islice(rows, _PAGE_MESSAGES)):
        in_file.update(prepare_messages(b"", count + 1, page)[1])
        count += len(page)
        digests = {row.id.decode(): message_digest(0, row) for row in page}
        stored_rows = await connection.fetch(statement(SELECT_MESSAGES), session_id, write_texts(digests))
        stored = {id_: (seq, digest) for id_, seq, digest in stored_rows}
        matched += len(stored)
        for id_, digest in digests.items():
            named = f"{id_} of session {session_id}"
            if id_ not in stored:
                found.add(MESSAGE_MISSING, named)
                continue
            seq, stored_digest = stored[id_]
            if digest != stored_digest:
                found.add("message differs", named)
            if seq < last:
                found.add("message out of order", named)
            last = max(last, seq)
    # The session before its messages: an add in between does not look like a change of the session.
    stored_row = await connection.fetchrow(statement(SELECT_SESSIONS), write_texts([session_id]))
    if stored_row is None:
        found.add(SESSION_MISSING, session_id)
        return
    _, *stored_session = stored_row
    added = await connection.fetchval(statement(COUNT_MESSAGES), session_id) - matched
    found.add_messages(session_id, added)
    for column in _differing_columns(session, stored_session, added, ahead=isinstance(found, Forecast)):
        found.add(f"session's {column} differs", session_id)
    if own != SessionDigest(own.id, session_digest(session), count, in_file.digest()):
        # The file has changed, so its rows now do not show how the rows moved differ.
        found.add(SESSION_CHANGED, session_id)


def _differing_columns(session: ValidSession, stored: list[str], added: int, *, ahead: bool) -> list[str]:
    mine = (
        session.user_id.decode(),
        session.title.decode(),
        session.metadata.decode(),
        time_text(session.created_at),
        time_text(session.updated_at),
    )
    names = ("user_id", "title", "metadata", "created_at", "updated_at")
    pairs = zip(names, mine, stored, strict=True)
    # Messages added since the migration have advanced updated_at, too. A move advances it to that of the file.
    return [
        name
        for name, own, their in pairs
        if own != their and not (name == "updated_at" and ((added and their > own) or (ahead and their < own)))
    ]
