"""A started server as plain data, so that another process of the run can attach to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

_CHOSEN: Final = frozenset({"data_directory", "listen_addresses", "port", "unix_socket_directories"})
"""The settings that say where the server is."""


class ServerUnavailable(Exception):  # noqa: N818 - a state of the machine, handled as often as raised
    """The requested PostgreSQL is not available; the message says why and what to do."""


class ServerFailed(ServerUnavailable):
    """A PostgreSQL is there and does not start, such as with a wrong setting. Its tests fail: a skip would hide it."""


class NotAnswered(Exception):  # noqa: N818 - a state, with the error as its cause
    """The server did not accept a connection."""


@contextmanager
def failed_if_failing(what: str) -> Iterator[None]:
    """Raise `ServerFailed` instead of any error, also of `ServerUnavailable`.

    Args:
        what: The failing part, for the message.
    """
    try:
        with unavailable_if_failing(what):
            yield
    except ServerUnavailable as error:
        raise ServerFailed(str(error)) from error


@contextmanager
def unavailable_if_failing(what: str) -> Iterator[None]:
    """Raise `ServerUnavailable` instead of any other error: a broken environment must not end a run of tests.

    Args:
        what: The failing part, for the message.
    """
    try:
        yield
    except ServerUnavailable:
        raise
    except Exception as error:
        raise ServerUnavailable(f"{what}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return the error's type, unless it is our own, and the first line of its text."""
    said = str(error).strip().splitlines()
    if isinstance(error, NotAnswered | ServerUnavailable):
        return said[0]
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


@dataclass(frozen=True)
class Wishes:
    """How to start a server."""

    image: str
    durable: bool = False
    """True: on a disk with PostgreSQL's default durability, as benchmarks need. False: as fast as possible."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Additional settings of `postgresql.conf`."""
    version: str | None = None
    """The major version, such as "16"; None for any."""

    def __post_init__(self) -> None:
        """Refuse settings that would hide the server from its run.

        Raises:
            ValueError: A setting is chosen for each server.
        """
        for name in self.settings:
            if name.lower() in _CHOSEN:
                raise ValueError(f"the setting {name} is chosen for each server: remove it")

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

    @property
    def is_own(self) -> bool:
        """Whether the server was started for the run, so that its DSN is complete."""
        ...

    def log_tail(self, lines: int) -> str:
        """Return the newest lines of the server's log, or nothing if it has none for us."""
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
