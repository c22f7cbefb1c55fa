"""Disks that fill up: a small file system in memory, and a limit on the size of this process's files."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from flux_memory.testkit.servers.binaries import server_account

_LARGEST_BYTES: Final = 4096
"""Size of a file that `limit_file_size` allows."""


@contextmanager
def mount_small_disk(size: str, *, for_server: bool = False) -> Iterator[Path]:
    """Mount a small file system during the block; fails the test if mounting is not permitted.

    Args:
        size: The size in the notation of `mount`.
        for_server: Whether the throwaway server's user owns it, rather than this process's.
    """
    account = server_account()
    own = (os.geteuid(), os.getegid())
    user, group = (account.user, account.group) if for_server and account.is_other else own
    rights = [] if os.geteuid() == 0 else ["sudo", "-n"]
    place = Path(tempfile.mkdtemp(prefix="flux-memory-disk-", dir="/var/tmp"))
    try:
        options = f"size={size},mode=0700,uid={user},gid={group}"
        try:
            subprocess.run(
                [*rights, "mount", "-t", "tmpfs", "-o", options, "tmpfs", place],
                check=True,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            pytest.fail(f"a small disk cannot be mounted, run this as root: {said}".strip(), pytrace=False)
        try:
            yield place
        finally:
            subprocess.run([*rights, "umount", "--lazy", place], check=True)
    finally:
        place.rmdir()


def fill_disk(disk: Path, *, leave: int = 0) -> Path:
    """Fill a disk until at most `leave` bytes are free, and return the file that fills it."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while (free := os.statvfs(disk)).f_bavail * free.f_frsize > leave:
            file.write(bytes(free.f_frsize))
    return filler


@contextmanager
def limit_file_size() -> Iterator[None]:
    """Limit the size of files that this process writes; to the process that is a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
