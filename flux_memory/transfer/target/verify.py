"""Proves that a target holds a source's content: compares digests of sessions, then the rows of those that differ."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

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
from flux_memory.transfer.target.server import SELECT_SESSIONS, read_transaction
from flux_memory.transfer.target.server_digests import ServerSession, read_digests

COUNT_MESSAGES: Final = "SELECT count(*) FROM messages WHERE session_id::text = $1"
SELECT_MESSAGES: Final = f"""
SELECT id, seq, {MESSAGE_DIGEST.replace("messages.seq", "0::bigint")}
FROM messages
WHERE session_id::text = $1 AND id::text = ANY($2::text::text[])
"""  # noqa: S608 - constants of ours

_MAX_NAMED: Final = 20
"""Differences that a report names."""
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
    added_since: int = 0
    """Messages of moved sessions that are not in the source."""

    @property
    def identical(self) -> bool:
        """Whether the target holds each row of the source, in order, with its content."""
        return not self.differences

    def add(self, kind: str, id_: str) -> None:
        """Count a difference, and name it if it is one of the first."""
        self.differences[kind] = self.differences.get(kind, 0) + 1
        if len(self.first_differences) < _MAX_NAMED:
            self.first_differences.append(f"{kind}: {id_}")


async def compare(
    connection: Any, source: Callable[[], Awaitable[Source]], validator: RowValidator, digests: Iterator[SessionDigest]
) -> Comparison:
    """Compare digests of a SQLite memory with a PostgreSQL memory.

    Args:
        connection: Connected to PostgreSQL.
        source: Returns the SQLite memory; called only if sessions differ, to compare their rows.
        validator: Validates its rows.
        digests: The digests of its sessions, ordered by id.
    """
    async with read_transaction(connection):
        found = await compare_in_transaction(connection, source, validator, digests)
        for key in await missing_keys(connection):
            found.add("key missing", key)
        return found


async def compare_in_transaction(
    connection: Any, source: Callable[[], Awaitable[Source]], validator: RowValidator, digests: Iterator[SessionDigest]
) -> Comparison:
    """Compare in the caller's open transaction, so that both see the same snapshot."""
    found = Comparison()
    with Spool() as differing:
        both = _DigestComparison(found, digests, differing)
        await read_digests(connection, both.take)
        both.end()
        rows: Source | None = None
        for digest in differing.digests():
            if rows is None:
                rows = await source()
            await _compare_session(found, connection, rows, validator, digest)
    return found


class _DigestComparison:
    """Compares both sides in the order of ids; collects sessions that differ."""

    def __init__(self, found: Comparison, mine: Iterator[SessionDigest], differing: Spool) -> None:
        self._found = found
        self._mine = mine
        self._own = next(mine, None)
        self._differing = differing

    def take(self, session: ServerSession) -> None:
        """Compare the server's next session."""
        found, their = self._found, session.digest
        found.target_messages += their.count
        if not session.exists:
            found.add("messages without their session", their.id.decode())
            return
        found.target_sessions += 1
        if not session.counted:
            found.add("message_count differs from the messages there are", their.id.decode())
        if not session.numbered:
            found.add("seq does not count the messages from 1 on", their.id.decode())
        while self._own is not None and self._own.id < their.id:
            self._missing(self._own)
        if self._own is None or self._own.id != their.id:
            found.only_in_target += 1
            return
        found.sessions += 1
        found.messages += self._own.count
        if self._own != their:
            self._differing.add_session(self._own, b"")
        self._own = next(self._mine, None)

    def end(self) -> None:
        """Count the sessions that the server does not have."""
        while self._own is not None:
            self._missing(self._own)

    def _missing(self, own: SessionDigest) -> None:
        self._found.sessions += 1
        self._found.messages += own.count
        self._found.add("session missing", f"{own.id.decode()} with {own.count} messages")
        self._own = next(self._mine, None)


async def _compare_session(
    found: Comparison, connection: Any, source: Source, validator: RowValidator, own: SessionDigest
) -> None:
    session_id = own.id.decode()
    raw = source.session(session_id)
    session = None if raw is None else validator.validate_session(raw)
    if not isinstance(session, ValidSession):
        found.add("session differs, and is not in the file as it is now", session_id)
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
        stored_rows = await connection.fetch(SELECT_MESSAGES, session_id, write_texts(digests))
        stored = {id_: (seq, digest) for id_, seq, digest in stored_rows}
        matched += len(stored)
        for id_, digest in digests.items():
            named = f"{id_} of session {session_id}"
            if id_ not in stored:
                found.add("message missing", named)
                continue
            seq, stored_digest = stored[id_]
            if digest != stored_digest:
                found.add("message differs", named)
            if seq < last:
                found.add("message out of order", named)
            last = max(last, seq)
    added = await connection.fetchval(COUNT_MESSAGES, session_id) - matched
    found.added_since += added
    _, *stored_session = await connection.fetchrow(SELECT_SESSIONS, write_texts([session_id]))
    for column in _differing_columns(session, stored_session, added):
        found.add(f"session's {column} differs", session_id)
    if own != SessionDigest(own.id, session_digest(session), count, in_file.digest()):
        # The file has changed, so its rows now do not show how the rows moved differ.
        found.add("session differs, and was changed in the file since it was read", session_id)


def _differing_columns(session: ValidSession, stored: list[str], added: int) -> list[str]:
    mine = (
        session.user_id.decode(),
        session.title.decode(),
        session.metadata.decode(),
        time_text(session.created_at),
        time_text(session.updated_at),
    )
    names = ("user_id", "title", "metadata", "created_at", "updated_at")
    pairs = zip(names, mine, stored, strict=True)
    # Messages added since the migration have advanced updated_at, too.
    return [name for name, own, their in pairs if own != their and not (name == "updated_at" and added and their > own)]
