"""A run's temporary directories: named after their owner, removed together with the processes that use them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flux_memory.testkit.servers.ownership import is_dead, process_of, record_of

_PREFIX = "fm-"
_RECORD = "process"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - names there are random and the owner is checked
_MIN_FREE_BYTES = 1 << 30
_MAX_ROOT_BYTES = 50
"""The path of a Unix socket is limited to about 100 bytes, and our part needs about 50."""
_SHUTDOWN_SECONDS = 10.0


def new_directory(mark: str, *, in_memory: bool = False, executable: bool = False) -> Path:
    """Create a directory that only this user can enter.

    Args:
        mark: The owner's mark.
        in_memory: Prefer a file system in memory if it has space.
        executable: Programs will be run from it.
    """
    root = _root()
    if in_memory and _is_roomy(_SHARED_MEMORY) and not (executable and _forbids_programs(_SHARED_MEMORY)):
        root = _SHARED_MEMORY
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{mark}-", dir=root))


def named_directory(mark: str, name: str) -> Path:
    """Return the path of a directory that the processes of one run share, without creating it."""
    return _root() / f"{_PREFIX}{mark}-{name}"


def sweep_directories() -> list[Path]:
    """Remove the directories of runs that have ended; return the removed ones."""
    return [path for path in _ours() if _owner_is_dead(path) and remove_directory(path)]


def record_process(directory: Path, pid: int, user: int) -> None:
    """Record a process of this user that uses a directory, so that `remove_directory` ends it."""
    with (directory / _RECORD).open("a") as record:
        record.write(f"{record_of(pid, user)}\n")


def processes_of(directory: Path) -> list[int]:
    """Return the recorded processes that still run."""
    try:
        records = (directory / _RECORD).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [pid for record in records if (pid := process_of(record)) is not None]


def remove_directory(path: Path) -> bool:
    """End the processes that were recorded for the directory, then remove it. Another run may be doing the same."""
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    # Immediate shutdown first: PostgreSQL then ends its children and releases its shared memory.
    strength = signal.SIGQUIT
    while path.exists():
        for pid in processes_of(path):
            with suppress(ProcessLookupError):
                os.kill(pid, strength)
        if not _have_ended(path, deadline=time.monotonic() + _SHUTDOWN_SECONDS * 0.6) and strength != signal.SIGKILL:
            # Such as a stopped process. Its record goes with the directory, and no later run would find it.
            strength = signal.SIGKILL
            continue
        with suppress(FileNotFoundError):
            # Other users can no longer reach a subdirectory that was theirs, and add to it.
            path.chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)
        if time.monotonic() > deadline:
            return not path.exists()
    return True


def _have_ended(path: Path, deadline: float) -> bool:
    while processes_of(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _root() -> Path:
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) <= _MAX_ROOT_BYTES else Path("/tmp")  # noqa: S108 - as above


def _is_roomy(root: Path) -> bool:
    return root.is_dir() and os.access(root, os.W_OK | os.X_OK) and shutil.disk_usage(root).free >= _MIN_FREE_BYTES


def _forbids_programs(root: Path) -> bool:
    return bool(os.statvfs(root).f_flag & getattr(os, "ST_NOEXEC", 0))


def _ours() -> Iterator[Path]:
    for root in {_root(), _SHARED_MEMORY}:
        if root.is_dir():
            for path in root.glob(f"{_PREFIX}*"):
                with suppress(FileNotFoundError):
                    # Owned by this user and not a link.
                    if path.lstat().st_uid == os.geteuid() and path.is_dir() and not path.is_symlink():
                        yield path


def _owner_is_dead(path: Path) -> bool:
    return is_dead(path.name.removeprefix(_PREFIX).rpartition("-")[0])
