"""What a provider hands back: a started server as plain data, so that another process of the run can attach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class ServerUnavailable(Exception):  # noqa: N818 - a state of the machine, as often skipped over as raised
    """There is no PostgreSQL to be had in the way asked for; the message says why, and what to do."""


@dataclass(frozen=True)
class Wishes:
    """How a server is to be started."""

    image: str
    durable: bool = False
    """True: on a disk with PostgreSQL's own durability, as a benchmark needs it. False: as fast as can be."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of `postgresql.conf` that the server gets besides."""

    def configuration(self) -> dict[str, str]:
        """Return every setting to give the server, wherever it runs."""
        # Commits stay synchronous: a server that is killed, not the machine, keeps what it acknowledged.
        fast = {} if self.durable else {"fsync": "off", "full_page_writes": "off"}
        return {"max_connections": "200", "log_checkpoints": "off", **fast, **self.settings}


class Running(Protocol):
    """A server that runs. Every implementation is a dataclass whose fields survive JSON."""

    @property
    def dsn(self) -> str:
        """The maintenance database, as a role that may create databases and roles."""
        ...

    @property
    def socket_dsn(self) -> str | None:
        """The same through a Unix socket, where there is one."""
        ...

    @property
    def origin(self) -> str:
        """Where the server is from, for people."""
        ...

    def log_tail(self, lines: int) -> str:
        """Return the newest lines of the server's log; nothing where it cannot be read."""
        ...

    def stop(self) -> None:
        """Stop the server and remove what it used. Stopping twice is no error."""
        ...


@dataclass(frozen=True)
class Started:
    """A server that a run has got, and how."""

    running: Running
    version: str
    seconds: float
    passed_over: tuple[str, ...] = ()
    """Why `auto` did not take what it would have preferred."""

    def __str__(self) -> str:
        """Say what runs, where it is from, and what was passed over."""
        text = f"{self.version}, from {self.running.origin}, ready in {self.seconds:.1f} s"
        return text + "".join(f" ({reason})" for reason in self.passed_over)
