"""Refuses a SQLite file without current tables, for commands that create and upgrade none."""

from __future__ import annotations

import sqlite3

from flux_memory.errors import SchemaError
from flux_memory.operations.file_connection import run_on_file
from flux_memory.schema import history
from flux_memory.schema import sqlite as schema


async def check_file_tables(path: str, timeout: float) -> None:  # noqa: ASYNC109 - passed on
    """Check that a file has current tables.

    Raises:
        FluxMemoryError: The file or its tables are missing, of an earlier version, or unusable.
    """

    def check(db: sqlite3.Connection) -> None:
        applied = schema.applied_versions(db)
        schema.inspect(db, applied)
        if not applied and not schema.original_version(db):
            raise SchemaError(f"{path} has no conversation memory; check the path")
        if max(applied, default=0) < history("sqlite")[-1].version:
            raise SchemaError(
                f"the tables of {path} are of an earlier version; upgrade them first with flux-memory check --full"
            )

    await run_on_file(path, check, timeout)
