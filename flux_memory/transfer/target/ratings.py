"""Loads feedback into a target, overwriting nothing, and proves that it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from flux_memory.backends.postgres.arrays import write_texts
from flux_memory.transfer.rows.ratings import FEEDBACK_DIGEST, FeedbackSpool, ValidFeedback, as_json
from flux_memory.transfer.target.merge import count_rows
from flux_memory.transfer.target.moves import LOCK_MIGRATIONS, ensure_tables
from flux_memory.transfer.target.server import write_transaction
from flux_memory.transfer.target.verify import FEEDBACK_MISSING, Comparison

_ITEMS: Final = """
WITH item AS (
    SELECT *
    FROM jsonb_to_recordset($1::text::jsonb) AS item (
        id text, session_id text, message_id text, user_id text, rating smallint, comment text, corrected_answer text,
        metadata text, created_at text
    )
)"""
INSERT_FEEDBACK: Final = f"""{_ITEMS}
INSERT INTO feedback (
    id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata, created_at
)
SELECT
    id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata::jsonb, created_at::timestamp
FROM item
ON CONFLICT (id) DO NOTHING
"""  # noqa: S608 - constants of ours
# Deleted entries stay in the record, so it refers to no other table.
CREATE_RECORD: Final = "CREATE TABLE flux_memory_moved_feedback (feedback_id TEXT NOT NULL PRIMARY KEY)"
SELECT_GIVE_TO_OWNER: Final = """
SELECT pg_catalog.format('ALTER TABLE flux_memory_moved_feedback OWNER TO %s', relowner::regrole)
FROM pg_class
WHERE oid = 'sessions'::regclass::oid AND current_setting('is_superuser')::boolean
"""
HAS_RECORD: Final = """
SELECT count(*) = 1
FROM pg_class
WHERE relname = 'flux_memory_moved_feedback' AND pg_table_is_visible(oid)
"""
MAY_READ_RECORD: Final = "SELECT has_table_privilege('flux_memory_moved_feedback', 'SELECT')"
MAY_WRITE_RECORD: Final = "SELECT has_table_privilege('flux_memory_moved_feedback', 'INSERT')"
RECORD_IDS: Final = f"""{_ITEMS}
INSERT INTO flux_memory_moved_feedback (feedback_id)
SELECT id FROM item
ON CONFLICT DO NOTHING
"""  # noqa: S608 - constants of ours
SELECT_RECORDED: Final = """
SELECT feedback_id FROM flux_memory_moved_feedback WHERE feedback_id = ANY ($1::text::text[])
"""
COUNT_FEEDBACK: Final = "SELECT count(*) FROM feedback"
DELETE_FEEDBACK: Final = "DELETE FROM feedback"
SELECT_DIGESTS: Final = f'SELECT id, {FEEDBACK_DIGEST} FROM feedback ORDER BY id COLLATE "C"'  # noqa: S608 - constants of ours

_PAGE_ROWS: Final = 1_000


async def open_feedback_record(connection: Any) -> bool:
    """Return whether the target records which feedback was moved; create the table if the role may.

    Call it in a transaction, once the target has its record of moves.
    """
    await connection.execute(LOCK_MIGRATIONS)
    if not await ensure_tables(connection, HAS_RECORD, CREATE_RECORD, SELECT_GIVE_TO_OWNER):
        return False
    return bool(await connection.fetchval(MAY_READ_RECORD) and await connection.fetchval(MAY_WRITE_RECORD))


async def load_feedback(
    connection: Any, spool: FeedbackSpool, *, recorded: bool, restores_deleted: bool, most: int | None = None
) -> int:
    """Add entries that the target does not have, in committed batches, and return their number.

    Args:
        connection: Connected to a target with the current schema.
        spool: The entries.
        recorded: Whether the target records which feedback was moved.
        restores_deleted: Whether entries that were moved before, and deleted since, are moved again.
        most: The number of batches; `None` means all.
    """
    added = 0
    for number, batch in enumerate(spool.batches()):
        if number == most:
            break
        async with write_transaction(connection):
            wanted = batch
            if recorded and not restores_deleted:
                moved = await _recorded(connection, [row.id for row in batch])
                wanted = [row for row in batch if row.id not in moved]
            added += count_rows(await connection.execute(INSERT_FEEDBACK, as_json(wanted)))
            if recorded:
                await connection.execute(RECORD_IDS, as_json(batch))
    return added


async def replace_feedback(connection: Any, spool: FeedbackSpool, *, recorded: bool) -> int:
    """Replace the target's entries, in the caller's transaction, and return how many it had."""
    before: int = await connection.fetchval(COUNT_FEEDBACK)
    await connection.execute(DELETE_FEEDBACK)
    await load_feedback(connection, spool, recorded=recorded, restores_deleted=True)
    return before


async def compare_feedback(
    found: Comparison, connection: Any, spool: FeedbackSpool, *, skips_deleted: bool = False
) -> None:
    """Compare the entries of both sides, in the caller's transaction.

    Args:
        found: Receives the differences.
        connection: Connected to PostgreSQL, in a transaction.
        spool: The entries of the source, ordered by id.
        skips_deleted: Whether entries that were deleted in the target since a move are not missing there.
    """
    mine = spool.rows()
    own = next(mine, None)
    missing: list[str] = []

    def advance() -> ValidFeedback | None:
        found.feedback += 1
        return next(mine, None)

    async for id_, digest in connection.cursor(SELECT_DIGESTS, prefetch=_PAGE_ROWS):
        found.target_feedback += 1
        while own is not None and own.id.encode() < id_.encode():
            missing.append(own.id)
            own = advance()
        if own is None or own.id != id_:
            found.feedback_only_in_target += 1
            continue
        if own.digest() != digest:
            found.add("feedback differs", id_)
        own = advance()
    while own is not None:
        missing.append(own.id)
        own = advance()
    deleted = await _recorded(connection, missing)
    for id_ in missing:
        if id_ in deleted and skips_deleted:
            found.feedback_deleted_since += 1
        else:
            found.add(FEEDBACK_MISSING, f"{id_}{', deleted since it was moved' if id_ in deleted else ''}")


async def _recorded(connection: Any, ids: list[str]) -> set[str]:
    """Return the ids that the record of moves has."""
    found: set[str] = set()
    if not ids or not await connection.fetchval(HAS_RECORD) or not await connection.fetchval(MAY_READ_RECORD):
        return found
    for page in _pages(ids):
        found.update(id_ for (id_,) in await connection.fetch(SELECT_RECORDED, write_texts(page)))
    return found


def _pages(ids: list[str]) -> Iterator[list[str]]:
    return (ids[at : at + _PAGE_ROWS] for at in range(0, len(ids), _PAGE_ROWS))
