"""Reads the activity of a store for `flux-memory top`, at little cost to the store and with few rights."""

from __future__ import annotations

from flux_memory.operations.top.readings import (
    ActiveSession,
    Activity,
    Application,
    LockWait,
    Reading,
    ReplicaLag,
    TableSize,
    with_pace,
)

__all__ = [
    "ActiveSession",
    "Activity",
    "Application",
    "LockWait",
    "Reading",
    "ReplicaLag",
    "TableSize",
    "with_pace",
]
