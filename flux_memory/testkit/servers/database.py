"""A database as tests use it: its DSN, the parts of the DSN, and the forms that other libraries take."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlencode

from flux_memory.masking import split_dsn

_SSL_OF_ASYNCPG: Final = {"sslmode": "ssl"}
"""Parameters of libpq that the asyncpg dialect of SQLAlchemy passes to asyncpg, which has another name for them."""


@dataclass(frozen=True)
class PostgresDatabase:
    """A PostgreSQL database. `str()` is its DSN."""

    dsn: str = field(repr=False)
    """`postgresql://user:password@host:port/dbname`, for libpq, psycopg and asyncpg."""

    def __str__(self) -> str:
        """Return the DSN."""
        return self.dsn

    def _parameter(self, name: str) -> str | None:
        return dict(self._parameters()).get(name)

    def _parameters(self) -> Iterator[tuple[str, str]]:
        for name, value in split_dsn(self.dsn).parameters:
            yield name, unquote(str(value))

    @property
    def _place(self) -> tuple[str, str]:
        """The first host and its port."""
        first = split_dsn(self.dsn).hosts.split(",")[0]
        host, bracket, rest = first.partition("]")
        if bracket:
            return host.removeprefix("["), rest.removeprefix(":")
        host, _, port = first.partition(":")
        return unquote(host), port

    @property
    def host(self) -> str:
        """The host, or the directory of the Unix socket."""
        return self._parameter("host") or self._place[0] or os.environ.get("PGHOST") or "localhost"

    @property
    def port(self) -> int:
        """The port."""
        return int(self._parameter("port") or self._place[1] or os.environ.get("PGPORT") or 5432)

    @property
    def user(self) -> str:
        """The role."""
        given = unquote(split_dsn(self.dsn).user) or self._parameter("user")
        return given or os.environ.get("PGUSER") or getpass.getuser()

    @property
    def password(self) -> str:
        """The role's password; empty if the DSN has none."""
        # A plain `str`: asyncpg takes no subclass of it.
        return unquote(str(split_dsn(self.dsn).password or "")) or self._parameter("password") or ""

    @property
    def dbname(self) -> str:
        """The name of the database."""
        return unquote(split_dsn(self.dsn).database or "") or self._parameter("dbname") or self.user

    def psycopg(self) -> dict[str, Any]:
        """Return keyword arguments for `psycopg.connect()` or `psycopg2.connect()`."""
        parts = {"host": self.host, "port": self.port, "user": self.user, "password": self.password}
        return {**parts, "dbname": self.dbname, **self._options()}

    def asyncpg(self) -> dict[str, Any]:
        """Return keyword arguments for `asyncpg.connect()` or `asyncpg.create_pool()`."""
        parts = {"host": self.host, "port": self.port, "user": self.user, "password": self.password}
        # In the DSN only: asyncpg has no arguments for settings of the session and for most parameters of TLS.
        options = {"dsn": self.dsn} if self._options() else {}
        return {**options, **parts, "database": self.dbname}

    def sqlalchemy_url(self, driver: str = "psycopg") -> str:
        """Return a URL for `sqlalchemy.create_engine()` or `create_async_engine()`.

        Args:
            driver: The name of the driver in the URL: `psycopg`, `asyncpg`, `psycopg2`, `pg8000`.
        """
        rest = self.dsn.partition("://")[2]
        if driver == "asyncpg" and (options := self._options()):
            named = {_SSL_OF_ASYNCPG.get(name, name): value for name, value in options.items()}
            rest = f"{rest.partition('?')[0]}?{urlencode(named)}"
        return f"postgresql+{driver}://{rest}"

    def django(self) -> dict[str, Any]:
        """Return the database's entry in the setting `DATABASES` of Django.

        The tests of Django then create a database of their own on the same server, named after this one.
        """
        parts = {"HOST": self.host, "PORT": str(self.port), "USER": self.user, "PASSWORD": self.password}
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": self.dbname,
            **parts,
            "OPTIONS": self._options(),
        }

    def _options(self) -> dict[str, str]:
        """Return the parameters of the DSN that are not parts of the address."""
        parts = ("host", "port", "user", "password", "dbname", "database")
        return {name: value for name, value in self._parameters() if name not in parts}
