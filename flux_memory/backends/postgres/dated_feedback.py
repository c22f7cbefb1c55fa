"""Adds many entries of feedback with their own times to PostgreSQL, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import asyncpg

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.locking import in_transaction
from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.errors import SchemaError
from flux_memory.records.ratings import DatedFeedback, FeedbackRow, ImportOutcome

SELECT_OWNED: Final = "SELECT id FROM sessions WHERE id::text = ANY ($1::text::text[]) AND user_id <> ''"
# The lock keeps the session until the entry is stored: an erasure of its user, which deletes the sessions first, finds
# the entry. Adds of messages do not wait for it.
LOCK_OWNER: Final = "SELECT user_id FROM sessions WHERE id::text = $1 FOR KEY SHARE"
_INSERT_DATED: Final = """
INSERT INTO feedback (id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at)
SELECT
    id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata::jsonb, created_at::timestamp
FROM jsonb_to_recordset($1::text::jsonb) AS item (
    id text, session_id text, message_id text, user_id text, rating smallint, comment text, corrected_answer text,
    metadata text, created_at text
)
"""
INSERT_ENTRIES: Final = _INSERT_DATED + "ON CONFLICT (id) DO NOTHING\nRETURNING id"
INSERT_ENTRY: Final = _INSERT_DATED + "RETURNING id"
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

    Raises:
        SchemaError: A trigger drops an entry; others may be stored.
    """
    outcomes = await executor.run_on_any_lock(
        state, lambda connection: in_transaction(connection, partial(_add, executor, connection, entries))
    )
    stored = [outcome for outcome in outcomes if outcome is not None]
    if len(stored) < len(entries):
        raise dropped(entries[outcomes.index(None)].row.id)
    return stored


async def lock_owner(executor: RetryingExecutor, connection: Any, session_id: str) -> str:
    """Return the owner of a session, which stays until the transaction ends; empty without one."""
    owner = await connection.fetch(executor.path.statement(LOCK_OWNER), session_id)
    return (owner[0][0] or "") if owner else ""


def dropped(feedback_id: str) -> SchemaError:
    """Return the error to raise for an entry that the table neither takes nor refuses.

    Args:
        feedback_id: The id of the entry.
    """
    return SchemaError(
        f"a trigger on the table 'feedback' dropped the feedback {feedback_id!r:.80}, which is not stored; let it "
        "through, or drop the trigger"
    )


async def _add(
    executor: RetryingExecutor, connection: Any, entries: Sequence[DatedFeedback]
) -> list[ImportOutcome | None]:
    """Add entries; `None` in place of an outcome means that a trigger drops the entry."""
    first: dict[str, DatedFeedback] = {}
    for entry in entries:
        first.setdefault(entry.row.id, entry)
    sessions = write_texts({entry.row.session_id for entry in first.values()})
    owned = sorted(id_ for (id_,) in await connection.fetch(SELECT_OWNED, sessions))
    owners = {id_: await lock_owner(executor, connection, id_) for id_ in owned}
    objects = [
        {**row._asdict(), "user_id": owners.get(row.session_id, ""), "created_at": created_at}
        for row, created_at in first.values()
    ]
    added = {id_ for (id_,) in await connection.fetch(INSERT_ENTRIES, _write_items(objects))}
    others = write_texts(first.keys() - added)
    stored = {id_: parts for id_, *parts in await connection.fetch(SELECT_STORED, others)}
    unseen = [item for item in objects if item["id"] not in added and item["id"] not in stored]
    alone = {item["id"]: await _add_alone(connection, item) for item in unseen}
    outcomes: list[ImportOutcome | None] = []
    for entry in entries:
        row, own = entry.row, first[entry.row.id]
        if entry is own and row.id in added:
            outcomes.append(ImportOutcome.ADDED)
        elif row.id in added:
            outcomes.append(_outcome(row, own.row[1:]))
        elif row.id in stored:
            outcomes.append(_outcome(row, stored[row.id]))
        else:
            outcomes.append(alone[row.id])
    return outcomes


async def _add_alone(connection: Any, item: dict[str, Any]) -> ImportOutcome | None:
    """Add an entry that was neither added nor found, and return what became of it; `None` if a trigger drops it."""
    await connection.execute("SAVEPOINT entry")
    try:
        return ImportOutcome.ADDED if await connection.fetch(INSERT_ENTRY, _write_items([item])) else None
    except asyncpg.UniqueViolationError:
        # The role does not see every entry.
        await connection.execute("ROLLBACK TO SAVEPOINT entry")
        return ImportOutcome.TAKEN


def _write_items(items: Sequence[dict[str, Any]]) -> str:
    return json.dumps(items, ensure_ascii=False)


def _outcome(row: FeedbackRow, stored: Sequence[Any]) -> ImportOutcome:
    return ImportOutcome.PRESENT if row.same_as(stored) else ImportOutcome.TAKEN
