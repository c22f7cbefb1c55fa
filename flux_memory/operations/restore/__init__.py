"""Restores a backup into either engine, whole or for one user, and proves the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flux_memory.errors import BackupError
from flux_memory.lazy import import_on_use

if TYPE_CHECKING:
    from flux_memory.operations.restore.restoring import Outcome, RestorePlan, RestoreReport, restore_backup

__all__ = ["Outcome", "RestorePlan", "RestoreReport", "restore_backup"]

_load, __dir__ = import_on_use(__name__, {"restoring": ("Outcome", "RestorePlan", "RestoreReport", "restore_backup")})


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        raise BackupError(
            "a restore needs the file locks of Linux or macOS, which this system lacks; run it there, in WSL or in a "
            "container"
        ) from None
