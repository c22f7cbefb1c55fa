"""Rehearses a move in a transaction that is rolled back, so that a dry run meets what the move would meet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Any

from flux_memory.transfer.progress import NullWatcher, Watcher
from flux_memory.transfer.rows.spool import Batch, Spool, all_digests
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.source.reader import Source
from flux_memory.transfer.target.load import load
from flux_memory.transfer.target.merge import BATCH_BYTES, BATCH_ROWS, merge
from flux_memory.transfer.target.server import missing_keys, prepare_schema, rehearsal
from flux_memory.transfer.target.verify import Comparison, compare_in_transaction


class _Lines(NullWatcher):
    """Passes on lines, but no phases: those of a rehearsal would look like those of a move."""

    def __init__(self, watcher: Watcher) -> None:
        self.say = watcher.say  # type: ignore[method-assign]


async def rehearse(
    connection: Any,
    parts: Sequence[Spool],
    found: PreflightResult,
    source: Callable[[], Awaitable[Source]],
    validator: RowValidator,
    *,
    watcher: Watcher,
) -> Comparison:
    """Prepare the schema, compare both sides, move the first conversation, and undo everything.

    Args:
        connection: Connected to the target.
        parts: The spools, in order.
        found: The numbers of rows.
        source: Returns the SQLite memory; called only if rows are compared.
        validator: Validates its rows.
        watcher: Receives what the move would say.

    Returns:
        The differences that a move would leave.
    """
    first = parts[0]
    async with rehearsal(connection):
        await prepare_schema(connection)
        # Before any row is locked: a large target takes long.
        differences = await compare_in_transaction(connection, source, validator, all_digests(parts), ahead=True)
        batches: list[Batch] = []
        if not await load(connection, [first], found, _Lines(watcher)):
            batches = list(islice(first.batches(BATCH_ROWS, BATCH_BYTES), 1))
            await merge(connection, batches, advance=lambda _: None)
        if not differences.target_sessions and not differences.target_messages:
            # The target was empty. A trigger may drop or change a row without an error.
            moved = islice(first.digests(), first.kept_sessions)
            partly = any(batch.continues for batch in batches)
            differences = await compare_in_transaction(connection, source, validator, moved, ahead=partly)
        for key in await missing_keys(connection):
            differences.add("key missing", key)
    return differences
