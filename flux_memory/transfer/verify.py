"""Proves by content that a source is in its target: digests side by side, then row by row where they differ."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from flux_memory.transfer.checked import RowChecker
from flux_memory.transfer.digests import DigestSpool, SessionDigest
from flux_memory.transfer.server_digests import server_digests
from flux_memory.transfer.source import Source
from flux_memory.transfer.target import NO_DEADLINES
from flux_memory.transfer.times import text as time_text
from flux_memory.transfer.wire import MESSAGE_DIGEST, MessageRow, SessionRow, message_digest

SELECT_SESSION: Final = """
SELECT
    user_id,
    title,
    metadata::text,
    to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
    to_char(updated_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
FROM sessions
WHERE id = $1
"""
SELECT_MESSAGES: Final = f"""
SELECT id, {MESSAGE_DIGEST.replace("messages.seq", "0::bigint")}
FROM messages
WHERE session_id = $1
ORDER BY seq
"""  # noqa: S608 - constants of ours

_FIRST: Final = 20
"""Differences that a report names."""
_PREFETCH: Final = 1_000


@dataclass
class Comparison:
    """What a comparison found, as seen from what was moved."""

    sessions: int = 0
    messages: int = 0
    """What should be there."""
    target_sessions: int = 0
    target_messages: int = 0
    """What is there."""
    differences: dict[str, int] = field(default_factory=dict)
    """How often each kind of difference was found."""
    first_differences: list[str] = field(default_factory=list)
    only_in_target: int = 0
    """Sessions that did not come from here."""
    added_since: int = 0
    """Messages of moved sessions that did not come from here."""

    @property
    def identical(self) -> bool:
        """Whether all that should be there is there, in its order, with its content."""
        return not self.differences

    def add(self, kind: str, id_: str) -> None:
        """Count a difference, and name it if it is one of the first."""
        self.differences[kind] = self.differences.get(kind, 0) + 1
        if len(self.first_differences) < _FIRST:
            self.first_differences.append(f"{kind}: {id_}")


async def compare(connection: Any, source: Source, checker: RowChecker, spool: DigestSpool) -> Comparison:
    """Compare a SQLite memory, as its digests were spooled, with a PostgreSQL memory."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(NO_DEADLINES)
        return await compare_in_transaction(connection, source, checker, spool)


async def compare_in_transaction(
    connection: Any, source: Source, checker: RowChecker, spool: DigestSpool
) -> Comparison:
    """Compare within the transaction that is open, so that it is the caller's snapshot that is compared."""
    found = Comparison()
    with DigestSpool() as differing:
        await _compare_digests(found, iter(spool), server_digests(connection), differing)
        for digest in differing:
            await _compare_session(found, connection, source, checker, digest.id.decode())
    return found


async def _compare_digests(
    found: Comparison,
    mine: Iterator[SessionDigest],
    theirs: AsyncIterator[tuple[SessionDigest, int]],
    differing: DigestSpool,
) -> None:
    """Walk both sides in the order of ids; put aside what differs."""
    own = next(mine, None)
    async for their, counter in theirs:
        found.target_sessions += 1
        found.target_messages += their.count
        if counter != their.count:
            found.add("message_count differs from the messages there are", their.id.decode())
        while own is not None and own.id < their.id:
            _missing(found, own)
            own = next(mine, None)
        if own is None or own.id != their.id:
            found.only_in_target += 1
            continue
        found.sessions += 1
        found.messages += own.count
        if own != their:
            differing.append(own)
        own = next(mine, None)
    while own is not None:
        _missing(found, own)
        own = next(mine, None)


def _missing(found: Comparison, own: SessionDigest) -> None:
    found.sessions += 1
    found.messages += own.count
    found.add("session missing", f"{own.id.decode()} with {own.count} messages")


async def _compare_session(
    found: Comparison, connection: Any, source: Source, checker: RowChecker, session_id: str
) -> None:
    raw = source.session(session_id)
    session = None if raw is None else checker.session(raw)
    assert isinstance(session, SessionRow)  # noqa: S101 - its digest was taken
    stored = dict[str, tuple[int, bytes]]()
    async for id_, digest in connection.cursor(SELECT_MESSAGES, session_id, prefetch=_PREFETCH):
        stored[id_] = len(stored), digest
    rows = (row for row in map(checker.message, source.messages_of(session_id)) if isinstance(row, MessageRow))
    matched = _compare_messages(found, session_id, rows, stored)
    added = len(stored) - matched
    found.added_since += added
    for column in _differing_columns(session, await connection.fetchrow(SELECT_SESSION, session_id), added):
        found.add(f"session's {column} differs", session_id)


def _compare_messages(
    found: Comparison, session_id: str, rows: Iterable[MessageRow], stored: dict[str, tuple[int, bytes]]
) -> int:
    matched = 0
    last = -1
    for row in rows:
        id_ = row.id.decode()
        place, digest = stored.get(id_, (-1, b""))
        if place < 0:
            found.add("message missing", f"{id_} of session {session_id}")
            continue
        matched += 1
        if digest != message_digest(0, row):
            found.add("message differs", f"{id_} of session {session_id}")
        if place < last:
            found.add("message out of order", f"{id_} of session {session_id}")
        last = max(last, place)
    return matched


def _differing_columns(session: SessionRow, stored: tuple[str, ...], added: int) -> list[str]:
    mine = (
        session.user_id.decode(),
        session.title.decode(),
        session.metadata.decode(),
        time_text(session.created_at),
        time_text(session.updated_at),
    )
    names = ("user_id", "title", "metadata", "created_at", "updated_at")
    pairs = zip(names, mine, stored, strict=True)
    # Who added messages since has changed the time of the last change, too.
    return [name for name, own, their in pairs if own != their and not (name == "updated_at" and added and their > own)]
