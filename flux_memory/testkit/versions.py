"""Versions of the contract: whether a clause of a given version is binding."""

from __future__ import annotations

import re
from typing import Final

_VERSION: Final = re.compile(r"([1-9][0-9]*)\.([0-9]+)")


def parse_version(version: str) -> tuple[int, int]:
    """Return the two numbers of a version.

    Raises:
        ValueError: the version is not of the form `1.0`.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError(f"{version!r} is not a version of the contract; write 1.0")
    return int(match[1]), int(match[2])


def is_binding(since: str, *, current: str, pinned: str | None) -> bool:
    """Return whether a clause is binding for a backend.

    A clause that a minor version adds is advisory until the next one, so that an update of the kit alone never turns a
    green run red. A pinned run is held to exactly its version.
    """
    if pinned is not None:
        return parse_version(since) <= parse_version(pinned)
    added, now = parse_version(since), parse_version(current)
    return added < now or added[1] == 0


def check_pin(pinned: str, current: str) -> None:
    """Check that this release has the pinned version.

    Raises:
        ValueError: the pin is malformed, of another major version, or newer than this release's contract.
    """
    wanted, now = parse_version(pinned), parse_version(current)
    if wanted[0] != now[0] or wanted > now:
        raise ValueError(f"this release has the contract {now[0]}.0 to {current}, not {pinned}")
