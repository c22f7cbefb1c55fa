"""The manifest beside each backup: what the file holds, of which store, and how to recognise both again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from flux_memory.errors import BackupError
from flux_memory.operations.backup.contents import Contents
from flux_memory.transfer.threads import Stopped

SUFFIX: Final = ".manifest.json"
FORMAT: Final = 1
_STAMP: Final = "%Y%m%dT%H%M%SZ"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CHUNK_BYTES: Final = 1024 * 1024
_MAX_BYTES: Final = 1024 * 1024
"""A manifest is smaller; a larger file is not one."""


class Kind(StrEnum):
    """The kind of a backup."""

    SQLITE = "sqlite"
    """A copy of a SQLite file."""
    DUMP = "dump"
    """A file of `pg_dump --format=custom`."""
    ARCHIVE = "archive"
    """JSON lines, which either engine restores."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup holds."""

    kind: Kind
    name: str
    """The beginning of the file's name."""
    store: str
    """The address of the store without user and password."""
    user: str | None
    """The only user whose sessions it has, or `None` for all."""
    created_at: datetime
    engine: str
    """`sqlite` or `postgres`, with the version."""
    schema_version: int
    contents: Contents | None
    """`None` for tables of an earlier schema, whose digests this version cannot compute."""
    tables: dict[str, str]
    """The number of rows and a checksum of each table, of a dump."""
    schema: str | None
    """The schema of the tables, of a dump."""
    library: str
    size: int = 0
    sha256: str = ""
    verified: bool = False

    @property
    def series(self) -> tuple[str, str, Kind, str | None]:
        """Equal for the backups among which retention chooses."""
        return self.store, self.name, self.kind, self.user

    def describe(self) -> str:
        """Return the counts in words."""
        return "an earlier schema's tables" if self.contents is None else str(self.contents)

    def sealed(self, size: int, sha256: str, *, verified: bool) -> Manifest:
        """Return the manifest of a complete file."""
        return replace(self, size=size, sha256=sha256, verified=verified)

    def as_header(self) -> dict[str, Any]:
        """Return what the first line of an archive says; the counts and digests follow at its end."""
        return {
            "name": self.name,
            "store": self.store,
            "user": self.user,
            "created_at": self.created_at.isoformat(),
            "engine": self.engine,
            "schema_version": self.schema_version,
            "library": self.library,
        }

    def to_json(self) -> str:
        """Return the text of the manifest's file."""
        record = {
            "flux_memory_backup": FORMAT,
            "kind": str(self.kind),
            "name": self.name,
            "store": self.store,
            "user": self.user,
            "created_at": self.created_at.isoformat(),
            "engine": self.engine,
            "schema_version": self.schema_version,
            "contents": None if self.contents is None else self.contents.as_dict(),
            "tables": self.tables,
            "schema": self.schema,
            "library": self.library,
            "size": self.size,
            "sha256": self.sha256,
            "verified": self.verified,
        }
        return json.dumps(record, indent=1) + "\n"


def manifest_path(backup: Path) -> Path:
    """Return the path of a backup's manifest."""
    return backup.with_name(backup.name + SUFFIX)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        BackupError: The file is not a manifest of this version; the message says why.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    try:
        record = json.loads(raw)
        if len(raw) > _MAX_BYTES or not isinstance(record, dict) or "flux_memory_backup" not in record:
            raise ValueError("it has another form")
        if record["flux_memory_backup"] != FORMAT:
            raise BackupError(
                f"{path} has the format {str(record['flux_memory_backup'])!r:.20}, and this flux-memory reads "
                f"{FORMAT}; use the release that made the backup, or a later one"
            )
        return _parse(record)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BackupError(f"{path} is not the manifest of a backup: {error}; copy it again with its backup") from None


def _parse(record: dict[str, Any]) -> Manifest:
    texts = {key: record[key] for key in ("name", "store", "engine", "library", "sha256")}
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(record["tables"], dict):
        raise ValueError("a value has another type")
    created_at = datetime.fromisoformat(record["created_at"])
    if (
        created_at.tzinfo is None
        or not isinstance(record["size"], int)
        or not isinstance(record["schema_version"], int)
    ):
        raise ValueError("a value has another type")
    return Manifest(
        kind=Kind(record["kind"]),
        user=_optional(record["user"]),
        created_at=created_at.astimezone(UTC),
        schema_version=record["schema_version"],
        contents=None if record["contents"] is None else Contents.from_dict(record["contents"]),
        tables={str(table): str(value) for table, value in record["tables"].items()},
        schema=_optional(record["schema"]),
        size=record["size"],
        verified=record["verified"] is True,
        **texts,
    )


def _optional(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError("a value has another type")


def check_name(name: str) -> str:
    """Return the name, if a file's name may begin with it.

    Raises:
        BackupError: It has other characters than letters, digits, `.`, `_` and `-`.
    """
    if not _NAME.fullmatch(name):
        raise BackupError(
            f"the name {name!r:.60} cannot begin the names of backups; give --name 1 to 100 letters, digits, '.', '_' "
            "and '-'"
        )
    return name


def clean_name(text: str) -> str:
    """Return a text with `_` for what a backup's name cannot have."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:60].lstrip("._-")
    return cleaned or "memory"


def file_name(manifest: Manifest, suffix: str) -> str:
    """Return the name of a backup's file."""
    # A user's name stays out of a directory's listing.
    user = "" if manifest.user is None else f"-user-{hashlib.sha256(manifest.user.encode()).hexdigest()[:8]}"
    return f"{manifest.name}{user}-{manifest.created_at.strftime(_STAMP)}{suffix}"


def hash_file(path: Path, stopped: Stopped) -> tuple[int, str]:
    """Return the size of a file and its SHA-256 in hexadecimal.

    Raises:
        BackupError: `stopped` returned true.
        OSError: The file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            if stopped():
                raise BackupError("it was cancelled")
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
