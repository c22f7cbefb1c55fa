"""Moves conversation memory between SQLite and PostgreSQL, and proves by content that nothing was lost."""

from flux_memory.transfer.migration import Extent, OnInvalid, Plan, migrate
from flux_memory.transfer.problems import Kind, Tally
from flux_memory.transfer.progress import Watcher
from flux_memory.transfer.report import Report, Status
from flux_memory.transfer.way_back import migrate_back

__all__ = ["Extent", "Kind", "OnInvalid", "Plan", "Report", "Status", "Tally", "Watcher", "migrate", "migrate_back"]
