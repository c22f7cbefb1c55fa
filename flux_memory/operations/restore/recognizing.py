"""Recognises the kind of a backup by its content, and refuses one that is cut off or altered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flux_memory.backends.sqlite.file import refuse_special_files
from flux_memory.errors import BackupError
from flux_memory.operations.backup.archive_reader import open_archive
from flux_memory.operations.backup.compression import detect
from flux_memory.operations.backup.dumping import is_dump
from flux_memory.operations.backup.manifest import SUFFIX, Kind, Manifest, hash_file, manifest_path, read_manifest
from flux_memory.transfer.threads import Stopped

_SQLITE: Final = b"SQLite format 3\x00"


@dataclass(frozen=True)
class Backup:
    """A backup whose file is as it was made, as far as its manifest proves it."""

    path: Path
    kind: Kind
    manifest: Manifest | None
    user: str | None
    """The only user whose sessions it has."""
    made: str
    """When and of which store, in words."""


def recognize(path: Path, *, needs_manifest: bool, stopped: Stopped) -> Backup:
    """Read a file's first bytes and its manifest, and compare its size and its checksum.

    Args:
        path: The file.
        needs_manifest: Whether a copy or a dump without a manifest is refused.
        stopped: Whether the work was cancelled.

    Raises:
        BackupError: The file is not a backup, is cut off or altered, or has no manifest; the message says what to do.
    """
    kind = _kind_of(path)
    manifest = _manifest_of(path)
    if manifest is None:
        if kind is Kind.ARCHIVE:
            with open_archive(path) as reader:
                header = reader.header
            return Backup(path, kind, None, header.user, f"of {header.store}, made at {header.created_at}")
        if needs_manifest:
            raise BackupError(
                f"{path} has no manifest {path.name}{SUFFIX} beside it, so it may be cut off or altered; copy the "
                "manifest, too, or trust the file with --without-manifest"
            )
        return Backup(path, kind, None, None, "without a manifest")
    if manifest.kind is not kind:
        raise BackupError(f"{path} is not the {manifest.kind} that its manifest describes; copy both again")
    _compare(path, manifest, stopped)
    return Backup(
        path, kind, manifest, manifest.user, f"of {manifest.store}, made at {manifest.created_at.isoformat()}"
    )


def _kind_of(path: Path) -> Kind:
    try:
        refuse_special_files(path)
        with path.open("rb") as file:
            head = file.read(len(_SQLITE))
    except FileNotFoundError:
        raise BackupError(f"the file {path} does not exist; check the path") from None
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}; check the path and its rights") from error
    if head == _SQLITE:
        return Kind.SQLITE
    if is_dump(head):
        return Kind.DUMP
    if detect(head) is not None:
        return Kind.ARCHIVE
    if path.name.endswith(SUFFIX):
        raise BackupError(f"{path} is the manifest of a backup; give the backup, {path.name.removesuffix(SUFFIX)}")
    raise BackupError(
        f"{path} is neither a SQLite file, nor a dump of pg_dump --format=custom, nor an archive; give the file of a "
        "backup"
    )


def _manifest_of(path: Path) -> Manifest | None:
    try:
        return read_manifest(manifest_path(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BackupError(f"{manifest_path(path)} cannot be read: {error.strerror}; check its rights") from error


def _compare(path: Path, manifest: Manifest, stopped: Stopped) -> None:
    try:
        size = path.stat().st_size
        if size != manifest.size:
            what = "cut off" if size < manifest.size else "altered"
            raise BackupError(
                f"{path} is {what}: it has {size:,} bytes, and its manifest says {manifest.size:,}. Nothing was "
                "changed; copy it again from where it was made, or use another backup"
            )
        if hash_file(path, stopped)[1] != manifest.sha256:
            raise BackupError(
                f"{path} was altered: its SHA-256 is not that of its manifest. Nothing was changed; copy it again from "
                "where it was made, or use another backup"
            )
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror or error}; check the disk") from error
