"""The contenders: one class for each way of storing conversations. This module imports only the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, Protocol

from harness.samples import Sample

Reply = Any
"""The return value of a call: an awaitable, or the result of a synchronous contender."""


class Contender(Protocol):
    """One way of storing conversations, in its own process.

    `synchronous` means that `add`, `history` and `listing` are plain functions: their calls run one after another,
    at any concurrency.
    """

    synchronous: bool

    async def open(self, target: str, connections: int) -> None:
        """Open an empty store, given a DSN or the path of a file, and the size of the pool."""
        ...

    async def fill(self, session: str, samples: Sequence[Sample]) -> None:
        """Create a session with these messages."""
        ...

    def add(self, session: str, sample: Sample) -> Reply:
        """Append one message, as durably as the contender does by default."""
        ...

    def history(self, session: str, limit: int) -> Reply:
        """Return the newest messages."""
        ...

    def listing(self, limit: int) -> Reply:
        """Return the sessions with the newest activity; called only if the catalogue lists `list`."""
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that it measures."""
        ...

    async def close(self) -> None:
        """Close the store."""
        ...


class Partial:
    """Defaults of a contender."""

    synchronous = False

    def versions(self) -> dict[str, str]:
        """Return no versions."""
        return {}


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of packages."""
    return {package: version(package) for package in packages}


def load(name: str) -> Any:
    """Return a contender by `module:Class` below this package."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)()
