"""Runs a block without root's privileges, so that tests of file permissions also work in a run by root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ORDINARY_UID = 65534


@contextmanager
def become_ordinary_user() -> Iterator[None]:
    """Become an ordinary user during the block. Import everything that the block needs before."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(_ORDINARY_UID, _ORDINARY_UID, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@contextmanager
def make_traversable(path: Path) -> Iterator[None]:
    """Let every user traverse the directories of a path during the block; pytest's are private."""
    modes = {parent: parent.stat().st_mode for parent in path.parents if parent.stat().st_mode & 0o001 == 0}
    for parent, mode in modes.items():
        parent.chmod(0o711 | mode)
    try:
        yield
    finally:
        for parent, mode in modes.items():
            parent.chmod(mode)
