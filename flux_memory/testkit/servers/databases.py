"""Creates and drops the databases of one process on a server, and drops those of killed processes."""

from __future__ import annotations

import secrets
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import asyncpg

from flux_memory.testkit.servers.running import NotAnswered
from flux_memory.testkit.servers.statements import Statements

_PREFIX: Final = "flux_memory_test"
# A process holds an advisory lock on the token in its databases' names. The lock of a killed process is released, so a
# later run on any machine recognises its databases.
_HOLD: Final = "SELECT pg_advisory_lock(hashtext($1), hashtext('flux-memory'))"
_TRY: Final = "SELECT pg_try_advisory_lock(hashtext($1), hashtext('flux-memory'))"
_LET_GO: Final = "SELECT pg_advisory_unlock(hashtext($1), hashtext('flux-memory'))"
_ALL_OURS: Final = "SELECT datname FROM pg_database WHERE datname ~ '^flux_memory_test_[0-9a-f]{12}_[0-9]+$'"
_EMPTY: Final = """
DO $$
BEGIN
    IF to_regclass('sessions') IS NOT NULL THEN
        SET LOCAL lock_timeout = '1s';
        DELETE FROM sessions;
    END IF;
    -- Otherwise a migration would leave out the sessions that a test before moved.
    IF to_regclass('flux_memory_moved_sessions') IS NOT NULL THEN
        DELETE FROM flux_memory_moved_sessions;
    END IF;
END
$$
"""
_END_OTHERS: Final = """
SELECT count(pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class Databases:
    """The databases of this process on one server."""

    def __init__(self, maintenance_dsn: str, *, own_server: bool) -> None:
        self._maintenance = maintenance_dsn
        self._statements = Statements(own_server=own_server)
        self._token = secrets.token_hex(6)
        self._made = 0
        self._names: set[str] = set()
        try:
            self._statements.greet(maintenance_dsn, _HOLD, self._token)
            self._sweep()
        except BaseException:
            self._statements.close()
            raise

    def create(self) -> str:
        """Create an empty database and return its DSN."""
        self._made += 1
        name = f"{_PREFIX}_{self._token}_{self._made}"
        self._statements.execute(self._maintenance, f'CREATE DATABASE "{name}" TEMPLATE template0')
        self._names.add(name)
        return with_database(self._maintenance, name)

    def drop(self, dsn: str) -> None:
        """Drop a database made by `create`, ending all connections to it."""
        name = database_of(dsn)
        if name not in self._names:
            raise ValueError(f"{name!r} is not a database of this run")
        self._statements.forget(with_database(self._maintenance, name))
        self._statements.execute(self._maintenance, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._names.discard(name)

    def keep(self, dsn: str) -> str:
        """Copy a database made by `create` to a name that no run drops, and return the copy's DSN."""
        name = database_of(dsn)
        copy = f"flux_memory_kept_{name.removeprefix(_PREFIX + '_')}_{secrets.token_hex(3)}"
        own = with_database(self._maintenance, name)
        # A database with connections cannot be copied.
        self._statements.fetch_value(own, _END_OTHERS)
        self._statements.forget(own)
        self._statements.execute(self._maintenance, f'CREATE DATABASE "{copy}" TEMPLATE "{name}"')
        return with_database(self._maintenance, copy)

    def empty(self, dsn: str) -> None:
        """Delete every session, and so every message, in a database made by `create`."""
        if database_of(dsn) not in self._names:
            raise ValueError(f"{database_of(dsn)!r} is not a database of this run")
        try:
            self._statements.execute(dsn, _EMPTY)
        except asyncpg.LockNotAvailableError:
            # A failed test may have left a transaction open.
            self._statements.fetch_value(dsn, _END_OTHERS)
            self._statements.execute(dsn, _EMPTY)

    def close(self) -> None:
        """Drop the databases and close the connections, even if the server is gone. A forked child drops nothing."""
        if self._statements.is_inherited:
            return
        try:
            for name in sorted(self._names):
                self.drop(with_database(self._maintenance, name))
        except (NotAnswered, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            # A later run cleans up a server that no longer answers.
            self._names.clear()
        finally:
            self._statements.close()

    def _sweep(self) -> None:
        """Drop the databases of processes that have ended."""
        for name in self._statements.fetch_column(self._maintenance, _ALL_OURS):
            token = name.split("_")[3]
            if token == self._token or not self._statements.fetch_value(self._maintenance, _TRY, token):
                continue
            try:
                # Without FORCE: a connection means that a process still uses it.
                self._statements.execute(self._maintenance, f'DROP DATABASE IF EXISTS "{name}"')
            except (asyncpg.ObjectInUseError, asyncpg.InsufficientPrivilegeError):
                pass
            finally:
                self._statements.fetch_value(self._maintenance, _LET_GO, token)


def with_database(dsn: str, name: str) -> str:
    """Return the DSN of another database on the same server."""
    parts = urlsplit(dsn)
    query = [(key, value) for key, value in parse_qsl(parts.query) if key not in {"database", "dbname"}]
    return urlunsplit(parts._replace(path=f"/{quote(name, safe='')}", query=urlencode(query, safe="/,")))


def database_of(dsn: str) -> str:
    """Return the name of the DSN's database."""
    return urlsplit(dsn).path.removeprefix("/")
