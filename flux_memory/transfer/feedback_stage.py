"""The feedback of one migration: reads it, loads it beside the sessions, and proves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flux_memory.transfer.plan import Plan
from flux_memory.transfer.rows.ratings import FeedbackSpool
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.source.ratings import read_feedback
from flux_memory.transfer.source.reader import Source
from flux_memory.transfer.target.ratings import compare_feedback, load_feedback, open_feedback_record, replace_feedback
from flux_memory.transfer.target.server import write_transaction
from flux_memory.transfer.target.verify import Comparison


@dataclass
class FeedbackStage:
    """The steps of a migration that concern feedback."""

    plan: Plan
    spool: FeedbackSpool
    recorded: bool = False
    """Whether the target records which entries were moved, so that a later run recognises deleted ones."""

    def read(self, source: Source, validator: RowValidator, refused: Spool, found: PreflightResult) -> None:
        """Read the entries of the source."""
        read_feedback(source, validator, self.spool, refused, found)

    async def prepare(self, connection: Any, *, has_record: bool) -> None:
        """Open the record of moved entries, if the target has one of sessions."""
        async with write_transaction(connection):
            self.recorded = has_record and await open_feedback_record(connection)

    async def rehearse(self, connection: Any) -> None:
        """Load what a move would load, or its first entries, in a transaction that the caller rolls back."""
        if self.plan.replace:
            await self.replace(connection)
        else:
            await self.load(connection, most=1)

    async def load(self, connection: Any, *, most: int | None = None) -> int:
        """Add the entries that the target does not have, of all batches or the first ones, and return their number."""
        return await load_feedback(
            connection, self.spool, recorded=self.recorded, restores_deleted=self.plan.restore_deleted, most=most
        )

    async def replace(self, connection: Any) -> int:
        """Replace the target's entries in the caller's transaction, and return how many it had."""
        return await replace_feedback(connection, self.spool, recorded=self.recorded)

    async def compare(self, found: Comparison, connection: Any) -> None:
        """Compare the entries of both sides in the caller's transaction."""
        await compare_feedback(found, connection, self.spool, skips_deleted=self.plan.skips_deleted)
