"""Who is measured: one class for each way of keeping conversations. Only the standard library is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, Protocol

from harness.samples import Sample

Reply = Any
"""What a call gives back: something to await, or from a synchronous contender its result."""


class Contender(Protocol):
    """One way of keeping conversations, in a process of its own.

    `synchronous` says that `add`, `history` and `listing` are plain functions: their calls follow one another,
    whatever concurrency is asked for.
    """

    synchronous: bool

    async def open(self, target: str, connections: int) -> None:
        """Open an empty store: a DSN or the path of a file, and how many connections it may use."""
        ...

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        """Make a session that has these messages."""
        ...

    def add(self, session: str, sample: Sample) -> Reply:
        """Append one message; it is durable afterwards, as far as the contender cares."""
        ...

    def history(self, session: str, limit: int) -> Reply:
        """Return the newest messages."""
        ...

    def listing(self, limit: int) -> Reply:
        """Return the sessions of the newest activity; asked of those alone that the catalogue has list them."""
        ...

    def versions(self) -> dict[str, str]:
        """Name the packages that matter, and their versions."""
        ...

    async def close(self) -> None:
        """Let go of the store."""
        ...


class Partial:
    """What a contender has unless it says otherwise. It need not list sessions."""

    synchronous = False

    def versions(self) -> dict[str, str]:
        """Name nothing."""
        return {}


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of packages."""
    return {package: version(package) for package in packages}


def load(name: str) -> Any:
    """Return a contender by `module:Class` below this package."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)()
