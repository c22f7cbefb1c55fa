"""Tests the spool: it returns its rows unchanged, in batches of any size."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_memory.transfer.rows.spool import SessionDigest, Spool

MESSAGES = st.lists(st.integers(1, 40).map(lambda length: b"m" * length), max_size=9)


@given(st.lists(MESSAGES, max_size=8), st.integers(1, 5), st.integers(1, 100))
def test_batches_hold_every_row_once_and_stay_small(
    sessions: list[list[bytes]], most_rows: int, most_bytes: int
) -> None:
    """Batches keep the order and the limit of rows, and exceed the limit of bytes by at most one row."""
    with Spool() as prepared:
        for number, messages in enumerate(sessions):
            prepared.add_messages(messages)
            prepared.add_session(
                SessionDigest(b"id", b"\0" * 32, len(messages), b"m" * 32), b"session-%d" % number, b"of %d" % number
            )
        batches = list(prepared.batches(most_rows, most_bytes))
    assert b"".join(piece for batch in batches for piece in batch.messages) == b"".join(map(b"".join, sessions))
    begun = [
        row
        for batch, continues in zip(batches, [False, *(batch.continues for batch in batches)], strict=False)
        for row in batch.sessions[continues:]
    ]
    assert begun == [b"session-%d" % number for number in range(len(sessions))]
    for batch in batches:
        assert batch.details == [row.replace(b"session-", b"of ") for row in batch.sessions]
    assert sum(batch.message_count for batch in batches) == sum(map(len, sessions))
    for batch in batches:
        assert 0 < len(batch.sessions) <= most_rows
        assert batch.message_count <= most_rows
        assert sum(map(len, batch.messages)) < most_bytes + 40


@given(st.lists(st.integers(0, 3), max_size=6))
def test_a_spool_for_a_dry_run_keeps_the_first_rows_and_all_digests(counts: list[int]) -> None:
    """A rehearsal needs some messages, but no more than a sample of a large file; a comparison needs every digest."""
    digests = [SessionDigest(b"%d" % n, b"r" * 32, count, b"%032d" % n) for n, count in enumerate(counts)]
    rows = [b"session %d" % n for n in range(len(counts))]
    with Spool() as prepared:
        prepared.keeps_rows = False
        for digest, row in zip(digests, rows, strict=True):
            prepared.add_messages([b"m" * 600_000] * digest.count)
            prepared.add_session(digest, row, b"details")
        assert list(prepared.digests()) == digests
        # Two messages are more than a megabyte.
        total = [sum(counts[:number]) for number in range(len(counts))]
        kept = [row for row, before in zip(rows, total, strict=True) if before < 2]
        assert prepared.kept_sessions == len(kept)
        batches = list(prepared.batches(10, 10**8))
        assert [row for batch in batches for row in batch.sessions] == kept
        assert sum(batch.message_count for batch in batches) == sum(counts[: len(kept)])
        assert prepared.size("messages") == sum(counts[: len(kept)]) * 600_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux frees parts of a file")
@pytest.mark.parametrize("in_batches", [False, True], ids=["pieces", "batches"])
def test_rows_that_were_sent_take_no_room_any_more(in_batches: bool) -> None:
    """Rows already read are freed, so that the disk need not write them, and arrive unchanged."""
    rows = [bytes([number]) * 100_000 for number in range(200)]
    with Spool() as prepared:
        prepared.add_messages(rows)
        prepared.add_session(SessionDigest(b"id", b"r" * 32, len(rows), b"m" * 32), b"row", b"details")
        pieces = (piece for batch in prepared.batches(7, 10**6) for piece in batch.messages)
        sent = b"".join(pieces if in_batches else prepared.chunks("messages"))
        assert sent == b"".join(rows)
        left = os.fstat(prepared.descriptors[3]).st_blocks * 512
    assert left < len(sent) // 2
