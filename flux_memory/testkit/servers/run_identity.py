"""The identity of a pytest run, by which its processes find the servers that they share."""

# ruff: noqa: PLC0415 - every pytest run imports this module, so the rest waits until a test needs a server
from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class RunIdentity(NamedTuple):
    """A pytest run; the controller passes it to its xdist workers."""

    owner: int
    """The pid of the controller, which stops the servers."""
    name: str
    secret: str
    """Known to the run's processes only; see `Databases`."""

    @classmethod
    def new(cls) -> RunIdentity:
        """Return the identity of a run whose controller is this process."""
        return cls(os.getpid(), os.urandom(4).hex(), os.urandom(16).hex())

    @property
    def mark(self) -> str:
        """The owner's mark; see `ownership`."""
        from flux_memory.testkit.servers.ownership import mark_of

        return mark_of(self.owner)

    def directory(self, version: str | None) -> Path:
        """Return the directory that the run's processes share for their server of a major version."""
        from flux_memory.testkit.servers.directories import named_directory

        return named_directory(self.mark, self.name if version is None else f"{self.name}v{version}")
