"""Reads the feedback of a source: counts problems, and spools valid entries."""

from __future__ import annotations

import sqlite3

from flux_memory.transfer.rows.ratings import FeedbackSpool, ValidFeedback
from flux_memory.transfer.rows.spool import RefusedRow, Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.source.reader import Source


def read_feedback(
    source: Source, validator: RowValidator, spool: FeedbackSpool, refused: Spool, found: PreflightResult
) -> None:
    """Read the feedback of a source; a source of an earlier version has none.

    Args:
        source: The source; `tolerant` is set on it as needed.
        validator: Validates the rows.
        spool: Receives the valid entries.
        refused: Receives the refused ones.
        found: Receives the counts.
    """
    while True:
        spool.clear()
        try:
            rows = [*_validate(source, validator, spool)]
        except sqlite3.OperationalError as error:
            if "decode to UTF-8" not in str(error) or source.tolerant:
                raise
            source.be_tolerant()
            found.tolerant = True
        else:
            break
    found.feedback, found.refused_feedback = spool.count, len(rows)
    for row in rows:
        found.add("feedback", str(row.row[0]), row.problems)
        refused.refuse(row)
    refused.flush()


def _validate(source: Source, validator: RowValidator, spool: FeedbackSpool) -> list[RefusedRow]:
    """Spool the valid entries, and return the refused ones: those of a damaged file, which are few."""
    refused: list[RefusedRow] = []
    last: object = None
    for raw in source.feedback():
        row = validator.validate_feedback(raw, repeated=raw[0] == last)
        last = raw[0]
        if isinstance(row, ValidFeedback):
            spool.add(row)
        else:
            refused.append(RefusedRow("feedback", raw, None, row))
    return refused
