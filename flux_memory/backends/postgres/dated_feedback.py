"""Adds many entries of feedback with their own times to PostgreSQL, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.locking import in_transaction
from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.records.ratings import DatedFeedback, FeedbackRow, ImportOutcome

SELECT_OWNERS: Final = "SELECT id, user_id FROM sessions WHERE id::text = ANY ($1::text::text[])"
INSERT_ENTRIES: Final = """
INSERT INTO feedback (id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at)
SELECT
    id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata::jsonb, created_at::timestamp
FROM jsonb_to_recordset($1::text::jsonb) AS item (
    id text, session_id text, message_id text, user_id text, rating smallint, comment text, corrected_answer text,
    metadata text, created_at text
)
ON CONFLICT (id) DO NOTHING
RETURNING id
"""
SELECT_STORED: Final = """
SELECT id, session_id, message_id, rating, comment, corrected_answer, metadata::text
FROM feedback
WHERE id::text = ANY ($1::text::text[])
"""


async def add_entries(
    executor: RetryingExecutor, state: CallState, entries: Sequence[DatedFeedback]
) -> list[ImportOutcome]:
    """Add entries that are not stored, and return what became of each.

    Args:
        executor: Runs the statements.
        state: The state of the call.
        entries: The entries; of several with one id, the first one is added.
    """
    return await executor.run_on_any_lock(
        state, lambda connection: in_transaction(connection, partial(_add, connection, entries))
    )


async def _add(connection: Any, entries: Sequence[DatedFeedback]) -> list[ImportOutcome]:
    first: dict[str, DatedFeedback] = {}
    for entry in entries:
        first.setdefault(entry.row.id, entry)
    sessions = write_texts({entry.row.session_id for entry in first.values()})
    owners = {id_: user_id or "" for id_, user_id in await connection.fetch(SELECT_OWNERS, sessions)}
    objects = [
        {**row._asdict(), "user_id": owners.get(row.session_id, ""), "created_at": created_at}
        for row, created_at in first.values()
    ]
    items = json.dumps(objects, ensure_ascii=False)
    added = {id_ for (id_,) in await connection.fetch(INSERT_ENTRIES, items)}
    others = write_texts(first.keys() - added)
    stored = {id_: parts for id_, *parts in await connection.fetch(SELECT_STORED, others)}
    outcomes: list[ImportOutcome] = []
    for entry in entries:
        row, own = entry.row, first[entry.row.id]
        if entry is own and row.id in added:
            outcomes.append(ImportOutcome.ADDED)
        elif row.id in added:
            outcomes.append(_outcome(row, own.row[1:]))
        else:
            # One that was deleted since the insertion is not the same either.
            outcomes.append(_outcome(row, stored[row.id]) if row.id in stored else ImportOutcome.TAKEN)
    return outcomes


def _outcome(row: FeedbackRow, stored: Sequence[Any]) -> ImportOutcome:
    return ImportOutcome.PRESENT if row.same_as(stored) else ImportOutcome.TAKEN
