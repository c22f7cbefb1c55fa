"""Makes a backup: reads one state of a store, proves the file, names it, and applies retention."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from flux_memory.dsn import mask_dsn
from flux_memory.errors import BackupError, FluxMemoryError
from flux_memory.operations.backup import hidden
from flux_memory.operations.backup.compression import best_compression, require
from flux_memory.operations.backup.from_postgres import archive_database, dump_database
from flux_memory.operations.backup.from_sqlite import archive_file, copy_file
from flux_memory.operations.backup.manifest import (
    Manifest,
    check_name,
    file_name,
    hash_file,
    manifest_path,
)
from flux_memory.operations.backup.planning import BackupPlan
from flux_memory.operations.backup.retention import choose_removed, remove_backup, remove_lost_manifests
from flux_memory.transfer.progress import NullWatcher, Watcher
from flux_memory.transfer.tempfiles import publish
from flux_memory.transfer.threads import run_in_thread, run_stoppable


@dataclass
class BackupReport:
    """The outcome of a backup."""

    source: str
    """The store, without a password."""
    path: Path | None = None
    """The backup; `None` after a dry run."""
    manifest: Manifest | None = None
    removed: list[Path] = field(default_factory=list)
    """The backups that retention removed or, in a dry run, would remove."""
    seconds: float = 0.0
    dry_run: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dict that JSON can represent."""
        manifest = self.manifest
        return {
            "source": self.source,
            "path": None if self.path is None else str(self.path),
            "dry_run": self.dry_run,
            "verified": manifest is not None and manifest.verified,
            "size": None if manifest is None else manifest.size,
            "contents": None if manifest is None or manifest.contents is None else manifest.contents.as_dict(),
            "removed": [str(path) for path in self.removed],
            "seconds": round(self.seconds, 3),
        }


async def create_backup(plan: BackupPlan, watcher: Watcher | None = None) -> BackupReport:
    """Back up a memory, while applications may write to it, and prove the backup by restoring it.

    A backup that fails, or is cancelled, leaves no file behind; after a kill, the next backup removes the hidden one.

    Args:
        plan: The settings.
        watcher: Receives the progress.

    Raises:
        FluxMemoryError: The backup failed; the message says why, and what to do.
    """
    watcher = watcher or NullWatcher()
    if (plan.sqlite_path is None) == (plan.postgres_dsn is None):
        raise BackupError("a backup needs a SQLite path or a PostgreSQL DSN, not both; give one")
    if plan.user is not None and not plan.archive:
        raise BackupError("only an archive has the sessions of a single user; add --archive")
    if plan.name is not None:
        check_name(plan.name)
    if plan.compression is not None:
        require(plan.compression, "the archive is to be compressed by")
    source = str(plan.sqlite_path) if plan.postgres_dsn is None else mask_dsn(plan.postgres_dsn)
    report = BackupReport(source, dry_run=plan.dry_run)
    began = time.monotonic()
    try:
        _prepare(plan)
        await _back_up(plan, report, watcher)
    except FluxMemoryError:
        # An unreachable server is an OSError, too.
        raise
    except OSError as error:
        raise BackupError(
            f"the backup cannot be written to {plan.directory}: {error.strerror or error}; check the directory, its "
            "rights and its room. No file was left there"
        ) from error
    report.seconds = time.monotonic() - began
    return report


def _prepare(plan: BackupPlan) -> None:
    directory = plan.directory
    if directory.exists() and not directory.is_dir():
        raise BackupError(f"{directory} is not a directory; give the directory for the backups")
    if not directory.exists():
        if not directory.absolute().parent.is_dir():
            raise BackupError(
                f"{directory.absolute().parent} does not exist, perhaps because a disk is not mounted; mount it, or "
                "create the directory first"
            )
        if plan.dry_run:
            return
        directory.mkdir(mode=0o700)
    if not plan.dry_run:
        hidden.remove_leftovers(directory)


async def _back_up(plan: BackupPlan, report: BackupReport, watcher: Watcher) -> None:
    # Names have seconds.
    created_at = datetime.now(UTC).replace(microsecond=0)
    compression = plan.compression or best_compression()
    work: Callable[[Path | None], Awaitable[Manifest]]
    if plan.archive:
        archive = archive_file if plan.postgres_dsn is None else archive_database
        suffix, work = f".jsonl{compression.suffix}", partial(archive, plan, created_at, compression, watcher)
    else:
        suffix = ".db" if plan.postgres_dsn is None else ".dump"
        work = partial(copy_file if plan.postgres_dsn is None else dump_database, plan, created_at, watcher)
    if plan.dry_run:
        report.manifest = await work(None)
        report.removed = choose_removed(plan.directory, report.manifest, plan.retention, coming=created_at)
        return
    with hidden.hidden_file(plan.directory) as path:
        manifest = await work(path)
        watcher.phase("Seal", None)
        # Read again: the checksum is that of the file on the disk, not that of the bytes that were sent there.
        size, sha256 = await run_stoppable(lambda stopped: hash_file(path, stopped))
        manifest = manifest.sealed(size, sha256, verified=plan.verify)
        wanted = plan.directory / file_name(manifest, suffix)
        await run_in_thread(lambda: _name(path, wanted, manifest), lambda: None, undo=lambda: remove_backup(wanted))
    report.path, report.manifest = wanted, manifest
    report.removed = _remove_old(plan, manifest)


def _name(path: Path, wanted: Path, manifest: Manifest) -> None:
    """Give a complete file its name, after its manifest has one: a backup is never without a manifest."""
    with hidden.locked_directory(wanted.parent):
        remove_lost_manifests(wanted.parent, manifest)
        if wanted.exists() or manifest_path(wanted).exists():
            raise BackupError(f"{wanted} exists, from a backup in the same second; run again")
        hidden.write_file(wanted.parent, manifest_path(wanted), manifest.to_json())
        try:
            publish(path, wanted)
        except BaseException:
            manifest_path(wanted).unlink(missing_ok=True)
            raise


def _remove_old(plan: BackupPlan, manifest: Manifest) -> list[Path]:
    with hidden.locked_directory(plan.directory):
        removed = choose_removed(plan.directory, manifest, plan.retention)
        for path in removed:
            remove_backup(path)
    return removed
