"""The settings of a backup, and the beginning of its manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from flux_memory import __version__
from flux_memory.operations.backup.compression import Compression
from flux_memory.operations.backup.contents import Contents
from flux_memory.operations.backup.manifest import Kind, Manifest, clean_name
from flux_memory.operations.backup.retention import Retention


@dataclass(frozen=True, kw_only=True)
class BackupPlan:
    """The settings of a backup."""

    directory: Path
    """Receives the backup and its manifest."""
    sqlite_path: Path | None = None
    postgres_dsn: str | None = field(default=None, repr=False)
    """Exactly one of the two."""
    archive: bool = False
    """Write an engine-neutral archive instead of a copy or a dump."""
    user: str | None = None
    """The only user whose sessions to archive."""
    name: str | None = None
    """The beginning of the file's name; by default that of the file or the database."""
    compression: Compression | None = None
    """Of an archive; by default zstd where it is available."""
    verify: bool = True
    retention: Retention = field(default_factory=Retention)
    dry_run: bool = False


def begin_manifest(
    plan: BackupPlan,
    kind: Kind,
    *,
    created_at: datetime,
    default_name: str,
    store: str,
    engine: str,
    schema_version: int,
    contents: Contents | None,
    tables: dict[str, str] | None = None,
    schema: str | None = None,
) -> Manifest:
    """Return the manifest of a backup whose file is not complete yet."""
    return Manifest(
        kind=kind,
        name=plan.name or clean_name(default_name),
        store=store,
        user=plan.user,
        created_at=created_at,
        engine=engine,
        schema_version=schema_version,
        contents=contents,
        tables=tables or {},
        schema=schema,
        library=__version__,
    )
