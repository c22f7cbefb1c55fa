"""Moves conversation memory between SQLite and PostgreSQL, and proves by content that nothing was lost.

Names are imported on first use, since the helper process, which reads half of a large file, needs few of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from flux_memory.errors import MigrationError

if TYPE_CHECKING:
    from flux_memory.transfer.migration import Mode, OnInvalid, Plan, migrate
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
    "Mode": "migration",
    "ProblemKind": "rows.problems",
    "OnInvalid": "migration",
    "Plan": "migration",
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
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        raise MigrationError(
            "a migration needs the file locks of Linux or macOS, which this system lacks; run it there, in WSL or in a "
            "container"
        ) from None
