"""A started server as plain data, so that another process of the run can attach to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class ServerUnavailable(Exception):  # noqa: N818 - a state of the machine, handled as often as raised
    """The requested PostgreSQL is not available; the message says why and what to do."""


@dataclass(frozen=True)
class Wishes:
    """How to start a server."""

    image: str
    durable: bool = False
    """True: on a disk with PostgreSQL's default durability, as benchmarks need. False: as fast as possible."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Additional settings of `postgresql.conf`."""

    def configuration(self) -> dict[str, str]:
        """Return all settings of the server, for every provider."""
        # Commits stay synchronous, so that acknowledged writes survive if the server, not the machine, is killed.
        fast = {} if self.durable else {"fsync": "off", "full_page_writes": "off"}
        return {"max_connections": "200", "log_checkpoints": "off", **fast, **self.settings}


class Running(Protocol):
    """A running server. Every implementation is a dataclass with fields that can be stored as JSON."""

    @property
    def dsn(self) -> str:
        """The maintenance database, as a role that may create databases and roles."""
        ...

    @property
    def socket_dsn(self) -> str | None:
        """The same database through a Unix socket, if there is one."""
        ...

    @property
    def origin(self) -> str:
        """Where the server comes from, for reports."""
        ...

    def log_tail(self, lines: int) -> str:
        """Return the newest lines of the server's log, or nothing if it cannot be read."""
        ...

    def stop(self) -> None:
        """Stop the server and remove its files. Stopping twice is not an error."""
        ...


@dataclass(frozen=True)
class Started:
    """The server of a run, and how it was chosen."""

    running: Running
    version: str
    seconds: float
    passed_over: tuple[str, ...] = ()
    """Why `auto` skipped the providers that it prefers."""

    def __str__(self) -> str:
        """Return what runs, where it comes from, and what was skipped."""
        text = f"{self.version}, from {self.running.origin}, ready in {self.seconds:.1f} s"
        return text + "".join(f" ({reason})" for reason in self.passed_over)
