"""Refuses the upgrades of a Citus cluster that would leave its servers with different tables."""

from __future__ import annotations

from typing import Any, Final

from flux_memory.errors import SchemaError

FIRST_DISTRIBUTED: Final = 6
"""The version from which files change no column by which tables are distributed."""
SELECT_ROLE: Final = """
SELECT
    citus_is_coordinator(),
    EXISTS (
        SELECT 1
        FROM pg_dist_partition
        JOIN pg_class ON pg_class.oid = logicalrelid::oid
        WHERE relname = 'sessions' AND pg_table_is_visible(pg_class.oid) AND partmethod = 'h'
    )
"""
DISTRIBUTE: Final = "run flux-memory distribute with the coordinator's DSN as the owner of the tables, then retry"


async def refuse_upgrade(reader: Any, version: int) -> None:
    """Raise `SchemaError` unless the server can upgrade the tables, which have a version, for its whole cluster."""
    ((is_coordinator, is_distributed),) = await reader.fetch(SELECT_ROLE)
    if not is_coordinator:
        raise SchemaError(
            f"this server is a worker of a Citus cluster, where tables are neither created nor upgraded; {DISTRIBUTE}"
        )
    if is_distributed and version < FIRST_DISTRIBUTED:
        raise SchemaError(
            f"the tables are of version {version} and distributed over a Citus cluster, which does not upgrade them; "
            "run SELECT undistribute_table('sessions', cascade_via_foreign_keys => true) as their owner, then "
            "flux-memory distribute"
        )


async def explain_fault(reader: Any, fault: SchemaError) -> SchemaError:
    """Return the error to raise for tables with a fault, which on a worker is one of the cluster."""
    ((is_coordinator, _),) = await reader.fetch(SELECT_ROLE)
    if is_coordinator:
        return fault
    return SchemaError(f"the tables on this worker of a Citus cluster are not those of the coordinator; {DISTRIBUTE}")
