"""Keeps the result of `initdb` in the user's cache directory, because creating a cluster takes most of a start.

An archive belongs to this user, and only this user can read it. The server's account packs and unpacks a cluster
through files that this user has opened, so neither of them opens files in a directory of the other.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

CACHE_VARIABLE: Final = "FLUX_MEMORY_PG_CACHE"
"""The environment variable with the directory of the archives, or `off`."""
_FORMAT: Final = "1"
_SUFFIX: Final = ".tar"
_PASSWORD_BYTES: Final = 100
"""The longest first line: each byte is a call of the system, and a damaged file may be one line."""
_KEPT_DAYS: Final = 30
"""Days after its last use for which an archive is kept."""


@dataclass(frozen=True)
class ClusterArchive:
    """The archive of one cluster: its password is the first line of the file, and a tar archive follows."""

    path: Path

    def open(self) -> tuple[IO[bytes], str] | None:
        """Open the archive for reading, at the beginning of its tar archive.

        Returns:
            The file and the password of the cluster's role; None if there is no such archive, or if another user could
            have written it.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        file = os.fdopen(descriptor, "rb", buffering=0)
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
            file.close()
            return None
        with suppress(OSError):
            # The time of the last use; see `_prune`.
            os.utime(descriptor)
        return file, file.readline(_PASSWORD_BYTES).decode(errors="replace").strip()

    @contextmanager
    def rewrite(self, password: str) -> Iterator[IO[bytes]]:
        """Yield a new file to write the tar archive to; it replaces the archive unless the block raises.

        Raises:
            OSError: The cache directory cannot be written.
        """
        directory = self.path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{self.path.stem}-", suffix=".draft", dir=directory)
        draft = Path(name)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                file.write(f"{password}\n".encode())
                yield file
                # After a power cut, the archive could have its name and length, but not its content.
                os.fsync(file.fileno())
            draft.replace(self.path)
        finally:
            draft.unlink(missing_ok=True)
        self._prune()

    def discard(self) -> None:
        """Remove the archive, because no server starts from it."""
        with suppress(OSError):
            self.path.unlink()

    def _prune(self) -> None:
        """Remove archives and drafts that have not been used for a month."""
        oldest = time.time() - _KEPT_DAYS * 86400
        for path in self.path.parent.glob("cluster-*"):
            with suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    path.unlink()


def archive_of(programs: Path, options: list[str]) -> ClusterArchive | None:
    """Return the archive of the cluster that these programs create with these options, whether or not it exists.

    Args:
        programs: The directory of `initdb` and `postgres`.
        options: The options of `initdb`.

    Returns:
        None if the cache is switched off, or if this user has no home directory.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen == "off":
        return None
    try:
        directory = Path(chosen).expanduser() if chosen else _user_cache() / "flux-memory"
        identity = [_FORMAT, *options, *(_digest_of(programs / name) for name in ("initdb", "postgres"))]
    except (OSError, RuntimeError):
        return None
    key = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    return ClusterArchive(directory / f"cluster-{key}{_SUFFIX}")


def _digest_of(program: Path) -> str:
    # By content, because each environment has a copy of a wheel's programs.
    with program.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _user_cache() -> Path:
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
