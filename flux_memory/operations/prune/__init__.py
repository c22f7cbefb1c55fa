"""Deletes inactive sessions, or those of one user, in steps that can be interrupted."""

from __future__ import annotations

from flux_memory.operations.prune.durations import parse_duration
from flux_memory.operations.prune.steps import Doomed, PruneCriteria, Pruned, PrunedStore, Vacuumed, prune

__all__ = ["Doomed", "PruneCriteria", "Pruned", "PrunedStore", "Vacuumed", "parse_duration", "prune"]
