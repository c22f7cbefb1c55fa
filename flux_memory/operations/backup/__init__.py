"""Backs up a conversation memory, proves each backup by restoring it, and removes old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flux_memory.errors import BackupError
from flux_memory.lazy import import_on_use

if TYPE_CHECKING:
    from flux_memory.operations.backup.compression import Compression
    from flux_memory.operations.backup.creating import BackupReport, create_backup
    from flux_memory.operations.backup.planning import BackupPlan
    from flux_memory.operations.backup.retention import Retention

__all__ = ["BackupPlan", "BackupReport", "Compression", "Retention", "create_backup"]

_load, __dir__ = import_on_use(
    __name__,
    {
        "compression": ("Compression",),
        "creating": ("BackupReport", "create_backup"),
        "planning": ("BackupPlan",),
        "retention": ("Retention",),
    },
)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        raise BackupError(
            "a backup needs the file locks of Linux or macOS, which this system lacks; run it there, in WSL or in a "
            "container"
        ) from None
