"""Moves conversation memory between SQLite and PostgreSQL, and proves by content that nothing was lost.

Names are imported on first use, since the helper process, which reads half of a large file, needs few of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from flux_memory.transfer.migration import migrate
    from flux_memory.transfer.plan import Mode, OnInvalid, Plan
    from flux_memory.transfer.progress import Watcher
    from flux_memory.transfer.report import Report, Status
    from flux_memory.transfer.rows.problems import ProblemKind, Tally
    from flux_memory.transfer.to_sqlite import migrate_back

__all__ = [
    "Mode",
    "OnInvalid",
    "Plan",
    "ProblemKind",
    "Report",
    "Status",
    "Tally",
    "Watcher",
    "migrate",
    "migrate_back",
]

_MODULES: Final = {
    "Mode": "plan",
    "ProblemKind": "rows.problems",
    "OnInvalid": "plan",
    "Plan": "plan",
    "Report": "report",
    "Status": "report",
    "Tally": "rows.problems",
    "Watcher": "progress",
    "migrate": "migration",
    "migrate_back": "to_sqlite",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
