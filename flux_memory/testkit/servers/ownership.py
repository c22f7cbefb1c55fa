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


def record_of(pid: int, user: int) -> str:
    """Return the mark of a process that was started as this user, by which a later run recognises it."""
    return f"{mark_of(pid)} {user}"


def process_of(record: str) -> int | None:
    """Return the pid of the recorded process, if it still runs here: same host, start time and user."""
    try:
        mark, user = record.split()
        host, pid, start = mark.split("-")
        alive = host == _host() and _start_of(int(pid)) == start and _user_of(int(pid)) == int(user)
    except ValueError:
        return None
    return int(pid) if alive else None


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
    seen = _ask_ps("stat=,lstart=", pid).split(maxsplit=1)
    if len(seen) != 2 or seen[0].startswith("Z"):
        return None
    return hashlib.sha256(seen[1].encode()).hexdigest()[:8]


def _user_of(pid: int) -> int | None:
    """Return a process's effective user; the owner of its directory in /proc can be root instead."""
    if not (_PROC / "self/stat").exists():
        found = _ask_ps("uid=", pid).strip()
        return int(found) if found else None
    try:
        status = (_PROC / str(pid) / "status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(status.partition("\nUid:")[2].split()[1])


def _ask_ps(columns: str, pid: int) -> str:
    command = ["ps", "-o", columns, "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
