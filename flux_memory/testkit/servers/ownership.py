"""Marks that name the owning process of a throwaway resource, so that a later run can remove leftovers."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


def own_mark() -> str:
    """Return this process's mark."""
    return mark_of(os.getpid())


def mark_of(pid: int) -> str:
    """Return a process's mark: host, pid and start time, usable in file names and labels."""
    return f"{_host()}-{pid}-{_start_of(pid)}"


def is_dead(mark: str) -> bool:
    """Return whether the process of the mark has ended. Processes of other hosts count as alive."""
    try:
        host, pid, start = mark.split("-")
        return host == _host() and _start_of(int(pid)) != start
    except ValueError:
        return False


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    return _start_of(pid) is not None


@cache
def _host() -> str:
    # A pid is valid in one boot and one pid namespace only; engines and /dev/shm can be shared by several.
    boot = _PROC / "sys/kernel/random/boot_id"
    namespace = _PROC / "self/ns/pid"
    seen = [
        platform.node(),
        boot.read_text() if boot.exists() else "",
        str(namespace.readlink()) if namespace.is_symlink() else "",
    ]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:6]


def _start_of(pid: int) -> str | None:
    if not (_PROC / "self/stat").exists():
        return _start_by_ps(pid)
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may contain spaces and parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else fields[18]


def _start_by_ps(pid: int) -> str | None:
    seen = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],  # noqa: S607 - its path differs between systems
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split(maxsplit=1)
    if len(seen) != 2 or seen[0].startswith("Z"):
        return None
    return hashlib.sha256(seen[1].encode()).hexdigest()[:8]
