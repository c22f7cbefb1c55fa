"""Merges the parts of a source at once, each by its own connection, so that the server works on several processors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from flux_memory.dsn import SecretText
from flux_memory.transfer.progress import Advance
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.target.merge import BATCH_BYTES
from flux_memory.transfer.target.merge_result import MergeResult
from flux_memory.transfer.target.moves import MoveRecord
from flux_memory.transfer.target.server import open_connection
from flux_memory.transfer.target.transfer_path import TransferPath


async def merge_parts(
    dsn: str,
    connection: Any,
    parts: Sequence[Spool],
    record: MoveRecord | None,
    path: TransferPath,
    *,
    batch_size: int,
    restores_deleted: bool,
    advance: Advance,
) -> MergeResult:
    """Merge all parts as `merge` does.

    Args:
        dsn: Opens the connections of the parts after the first.
        connection: Merges the first part.
        parts: The spools.
        record: As for `merge`.
        path: The target's.
        batch_size: Messages per batch.
        restores_deleted: As for `merge`.
        advance: As for `merge`.
    """
    dsn = SecretText(dsn)
    merged = MergeResult()
    async with AsyncExitStack() as stack:
        connections = [connection, *[await stack.enter_async_context(open_connection(dsn)) for _ in parts[1:]]]
        tasks = [
            asyncio.create_task(
                path.merge(
                    own,
                    part.batches(batch_size, BATCH_BYTES),
                    record,
                    restores_deleted=restores_deleted,
                    advance=advance,
                )
            )
            for own, part in zip(connections, parts, strict=True)
        ]
        try:
            for part in await asyncio.gather(*tasks):
                merged.include(part)
        finally:
            await _cancel_all(tasks)
    return merged


async def _cancel_all(tasks: Sequence[asyncio.Task[MergeResult]]) -> None:
    """Cancel tasks and wait for their end, even if the wait is cancelled; `gather` has raised their errors."""
    cancelled: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
