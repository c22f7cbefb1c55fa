"""Loads the first rows of a source as a move would, so that a dry run meets what the move would meet."""

from __future__ import annotations

from itertools import islice
from typing import Any

from flux_memory.transfer.progress import NullWatcher, Watcher
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.target.load import Rows, load, replace
from flux_memory.transfer.target.merge import BATCH_BYTES, BATCH_ROWS
from flux_memory.transfer.target.moves import MoveRecord
from flux_memory.transfer.target.transfer_path import TransferPath


class _Lines(NullWatcher):
    """Passes on lines, but no phases: those of a rehearsal would look like those of a move."""

    def __init__(self, watcher: Watcher) -> None:
        self.say = watcher.say  # type: ignore[method-assign]


async def load_first(
    connection: Any,
    first: Spool,
    record: MoveRecord | None,
    path: TransferPath,
    *,
    replaces: bool,
    restores_deleted: bool,
    watcher: Watcher,
) -> bool:
    """Load the rows in a transaction that the caller rolls back; return whether the last session has all its messages.

    Args:
        connection: Connected to a target with the current schema.
        first: The first part of the source.
        record: As for `load` and `merge`.
        path: The target's.
        replaces: Whether the move replaces the target's rows.
        restores_deleted: Whether it restores deleted sessions.
        watcher: Receives what the move would say.
    """
    rows = Rows([first], PreflightResult(), _Lines(watcher), record, path.drops_keys)
    if replaces:
        await replace(connection, rows)
        return True
    skips = record is not None and record.known and not restores_deleted
    if not skips and await load(connection, rows):
        return True
    batches = list(islice(first.batches(BATCH_ROWS, BATCH_BYTES), 1))
    await path.merge(connection, batches, record, restores_deleted=restores_deleted, advance=lambda _: None)
    return not any(batch.continues for batch in batches)
