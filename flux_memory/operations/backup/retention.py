"""Chooses which backups of a store to keep, and removes the others."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flux_memory.errors import BackupError
from flux_memory.operations.backup.manifest import SUFFIX, Manifest, manifest_path, read_manifest


@dataclass(frozen=True)
class Retention:
    """How many backups to keep; of neither, all are kept."""

    daily: int | None = None
    """The newest backup of each of the last days that have one, in UTC."""
    weekly: int | None = None
    """The newest backup of each of the last ISO weeks that have one."""

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is removed."""
        return self.daily is None and self.weekly is None

    def choose(self, times: Iterable[datetime]) -> set[datetime]:
        """Return the times of the backups to keep, among them the newest."""
        newest_first = sorted(set(times), reverse=True)
        if self.keeps_all:
            return set(newest_first)
        days: dict[object, datetime] = {}
        weeks: dict[object, datetime] = {}
        for time in newest_first:
            days.setdefault(time.date(), time)
            weeks.setdefault(tuple(time.isocalendar())[:2], time)
        kept = [*list(days.values())[: self.daily or 0], *list(weeks.values())[: self.weekly or 0]]
        return {*newest_first[:1], *kept}


def find_series(directory: Path, like: Manifest) -> list[tuple[Path, Manifest]]:
    """Return the backups of the same store, name, kind and user in a directory, oldest first.

    A file belongs to them only if its own manifest says so, and names its size.
    """
    found = []
    for path in directory.glob(f"*{SUFFIX}"):
        backup = path.with_name(path.name.removesuffix(SUFFIX))
        with suppress(BackupError, OSError):
            manifest = read_manifest(path)
            if manifest.series == like.series and not backup.is_symlink() and backup.stat().st_size == manifest.size:
                found.append((backup, manifest))
    return sorted(found, key=lambda each: (each[1].created_at, each[0].name))


def choose_removed(
    directory: Path, like: Manifest, retention: Retention, *, coming: datetime | None = None
) -> list[Path]:
    """Return the backups that retention removes.

    Args:
        directory: The directory of the backups.
        like: The newest backup's manifest.
        retention: What to keep.
        coming: The time of a backup that does not exist yet, of a dry run.
    """
    if retention.keeps_all:
        return []
    series = find_series(directory, like)
    times = [manifest.created_at for _, manifest in series]
    kept = retention.choose([*times, coming] if coming is not None else times)
    return [path for path, manifest in series if manifest.created_at not in kept]


def remove_backup(path: Path) -> None:
    """Remove a backup and its manifest.

    Raises:
        OSError: The directory does not permit it.
    """
    path.unlink(missing_ok=True)
    manifest_path(path).unlink(missing_ok=True)


def remove_lost_manifests(directory: Path, like: Manifest) -> None:
    """Remove the manifests of this series whose backups a killed process did not write, or has removed."""
    for path in directory.glob(f"*{SUFFIX}"):
        with suppress(BackupError, OSError):
            if (
                not path.with_name(path.name.removesuffix(SUFFIX)).exists()
                and read_manifest(path).series == like.series
            ):
                path.unlink()
