"""Moves conversation memory between SQLite and PostgreSQL, and proves by content that nothing was lost.

Names are imported on first use, since the helper process, which reads half of a large file, needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flux_memory.errors import MigrationError
from flux_memory.lazy import import_on_use

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

_load, __dir__ = import_on_use(
    __name__,
    {
        "migration": ("migrate",),
        "plan": (
            "Mode",
            "OnInvalid",
            "Plan",
        ),
        "progress": ("Watcher",),
        "report": (
            "Report",
            "Status",
        ),
        "rows.problems": (
            "ProblemKind",
            "Tally",
        ),
        "to_sqlite": ("migrate_back",),
    },
)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        raise MigrationError(
            "a migration needs the file locks of Linux or macOS, which this system lacks; run it there, in WSL or in a "
            "container"
        ) from None
