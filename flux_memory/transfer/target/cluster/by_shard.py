"""Groups the rows of a source by shard, so that each commit is that of one server of a cluster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final, NamedTuple

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.transfer.rows.pgcopy import read_session_id
from flux_memory.transfer.rows.spool import Batch

COUNT_SHARDS: Final = "SELECT count(*) FROM pg_dist_shard WHERE logicalrelid::oid = 'sessions'::regclass::oid"
SELECT_SHARDS: Final = """
SELECT id, get_shard_id_for_distribution_column('sessions'::regclass, id)
FROM unnest($1::text::text[]) AS wanted (id)
"""

_WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Size of the rows that are grouped at a time, to bound memory use."""
_GROUP_BYTES: Final = 2 * 1024 * 1024
"""Size at which a group ends even with fewer rows."""


class Piece(NamedTuple):
    """A session with some of its messages, or all of them, in COPY format."""

    id: str
    session: bytes
    details: bytes
    messages: bytes
    message_count: int
    begins: bool
    """Whether it is the first piece of the session."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.session) + len(self.details) + len(self.messages)


async def group_by_shard(connection: Any, batches: Iterable[Batch]) -> AsyncIterator[list[Piece]]:
    """Yield the rows of batches in groups, each of sessions of one shard and about as large as a batch.

    The pieces of a session keep their order. Groups of several shards come in any order.

    Args:
        connection: Connected to the coordinator.
        batches: The rows.
    """
    shards: int = await connection.fetchval(COUNT_SHARDS)
    for pieces, most in _windows(batches, shards):
        ids = dict.fromkeys(piece.id for piece in pieces)
        shard_of = dict(await connection.fetch(SELECT_SHARDS, write_texts(ids)))
        groups = defaultdict(list)
        for piece in pieces:
            groups[shard_of[piece.id]].append(piece)
        for group in groups.values():
            for part in _split(group, most):
                yield part


def _windows(batches: Iterable[Batch], shards: int) -> Iterator[tuple[list[Piece], int]]:
    """Yield the pieces of as many batches as there are shards, or of fewer large ones, and the most rows of a batch."""
    pieces: list[Piece] = []
    count = size = most = 0
    continues = False
    for batch in batches:
        for piece in _pieces(batch, continues=continues):
            pieces.append(piece)
            size += piece.size
        continues = batch.continues
        count += 1
        most = max(most, len(batch.sessions), batch.message_count)
        if count >= shards or size >= _WINDOW_BYTES:
            yield pieces, most
            pieces = []
            count = size = most = 0
    if pieces:
        yield pieces, most


def _pieces(batch: Batch, *, continues: bool) -> Iterator[Piece]:
    """Yield the pieces of a batch; `continues` is whether its first session began in the one before."""
    chunks = iter(batch.messages)
    begins = not continues
    for session, details, count in zip(batch.sessions, batch.details, batch.counts, strict=True):
        yield Piece(read_session_id(session), session, details, next(chunks) if count else b"", count, begins)
        begins = True


def _split(pieces: list[Piece], most: int) -> Iterator[list[Piece]]:
    """Yield pieces in groups of at most that many sessions and messages; a piece is not divided."""
    group: list[Piece] = []
    messages = size = 0
    for piece in pieces:
        is_full = len(group) >= most or messages + piece.message_count > most or size >= _GROUP_BYTES
        if group and is_full:
            yield group
            group = []
            messages = size = 0
        group.append(piece)
        messages += piece.message_count
        size += piece.size
    if group:
        yield group
