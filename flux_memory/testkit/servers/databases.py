"""Creates and drops the databases of one process on a server, and drops those of killed processes."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import Final

import asyncpg

from flux_memory.testkit.servers.dsns import database_of, with_database, with_login
from flux_memory.testkit.servers.recipe import DatabaseInitError, Recipe
from flux_memory.testkit.servers.roles import Roles
from flux_memory.testkit.servers.running import NotAnswered
from flux_memory.testkit.servers.statements import Statements
from flux_memory.testkit.servers.templates import END_OTHERS, Templates, creation

_PREFIX: Final = "flux_memory_test"
# A process holds an advisory lock on the token in its databases' names. The lock of a killed process is released, so a
# later run on any machine recognises its databases.
# The processes of a run share a lock on the run's token, which is in the names of its templates.
_HOLD: Final = """
SELECT pg_advisory_lock(hashtext($1), hashtext('flux-memory')),
    pg_advisory_lock_shared(hashtext($2), hashtext('flux-memory'))
"""
_UNSHARE: Final = "SELECT pg_advisory_unlock_shared(hashtext($1), hashtext('flux-memory'))"
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
    IF to_regclass('feedback') IS NOT NULL AND to_regclass('sessions') IS NOT NULL THEN
        DELETE FROM feedback;
    END IF;
    -- Otherwise a migration would leave out the sessions that a test before moved.
    IF to_regclass('flux_memory_moved_sessions') IS NOT NULL THEN
        DELETE FROM flux_memory_moved_sessions;
    END IF;
    IF to_regclass('flux_memory_moved_feedback') IS NOT NULL THEN
        DELETE FROM flux_memory_moved_feedback;
    END IF;
END
$$
"""
_IS_FAST: Final = """
SELECT current_setting('server_version_num')::int >= 150000 AND NOT current_setting('fsync')::bool
"""
"""Whether CREATE DATABASE has a strategy that copies files, and no file is synchronised to a disk."""
_EMPTY_DATABASE: Final = Recipe()


class Databases:
    """The databases of this process on one server.

    Args:
        maintenance_dsn: The database to connect to, as a role that may create databases.
        own_server: The server was started for this run, and ends with it.
        run: A secret of the run, the same in all its processes, which share the run's templates and roles.
    """

    def __init__(self, maintenance_dsn: str, *, own_server: bool, run: str) -> None:
        self._maintenance = maintenance_dsn
        self._own_server = own_server
        self._statements = Statements(own_server=own_server)
        self._token = secrets.token_hex(6)
        self._run = hashlib.sha256(run.encode()).hexdigest()[:12]
        self._made = 0
        self._names: set[str] = set()
        self.roles = Roles(self._statements, maintenance_dsn, self._run, run)
        self._templates = Templates(self._statements, maintenance_dsn, self.roles)
        try:
            self._statements.greet(maintenance_dsn, _HOLD, self._token, self._run)
            self._sweep()
        except BaseException:
            self._statements.close()
            raise

    @cached_property
    def _copies_files(self) -> bool:
        return self._own_server and bool(self._statements.fetch_value(self._maintenance, _IS_FAST))

    @property
    def own_role(self) -> str:
        """The name of a role that no other run has."""
        return f"{_PREFIX}_{self._run}_owner"

    def create(self, recipe: Recipe = _EMPTY_DATABASE) -> str:
        """Create a database and return its DSN.

        Args:
            recipe: How to make it. A recipe with steps is made once for the run, and copied.

        Raises:
            DatabaseInitError: A step of the recipe failed.
            ValueError: The server has a role of the owner's name that is not of this run, or takes no such name.
        """
        if recipe.owner is not None:
            self.roles.ensure(recipe.owner)
        name = self._create_from(recipe) if recipe.is_plain else self._copy_template(recipe)
        self._names.add(name)
        dsn = with_database(self._maintenance, name)
        if recipe.owner is None:
            return dsn
        return with_login(dsn, recipe.owner, self.roles.password_of(recipe.owner))

    def _copy_template(self, recipe: Recipe) -> str:
        template = f"{_PREFIX}_{self._run}_{recipe.number}"
        self._templates.ensure(template, recipe, self._create_from)
        return self._create_from(replace(recipe, template=template, locale=None))

    def _create_from(self, recipe: Recipe) -> str:
        self._made += 1
        name = f"{_PREFIX}_{self._token}_{self._made}"
        statement = creation(name, recipe, recipe.template, copy_files=self._copies_files)
        try:
            self._statements.execute(self._maintenance, statement)
        except asyncpg.PostgresError as error:
            raise DatabaseInitError(f"the server cannot create the database: {error}; {statement}") from error
        return name

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
        self._statements.fetch_value(own, END_OTHERS)
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
            self._statements.fetch_value(dsn, END_OTHERS)
            self._statements.execute(dsn, _EMPTY)

    def close(self) -> None:
        """Drop the databases and close the connections, even if the server is gone. A forked child drops nothing.

        A server of the run's own ends with its databases. The last process of a run drops its templates and roles.
        """
        if self._statements.is_inherited:
            return
        try:
            if not self._own_server:
                for name in sorted(self._names):
                    self.drop(with_database(self._maintenance, name))
                self._drop_run()
        except (NotAnswered, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            # A later run cleans up a server that no longer answers.
            self._names.clear()
        finally:
            self._statements.close()

    def _drop_run(self) -> None:
        self._statements.fetch_value(self._maintenance, _UNSHARE, self._run)
        if self._statements.fetch_value(self._maintenance, _TRY, self._run):
            try:
                for name in self._statements.fetch_column(self._maintenance, _ALL_OURS):
                    if _token_of(name) == self._run:
                        self._statements.execute(self._maintenance, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
                self.roles.drop_run()
            finally:
                self._statements.fetch_value(self._maintenance, _LET_GO, self._run)

    def _sweep(self) -> None:
        """Drop the databases and roles of processes that have ended."""
        databases = {(name, _token_of(name)) for name in self._statements.fetch_column(self._maintenance, _ALL_OURS)}
        for name, token in sorted(databases):
            with self._holding(token) as is_dead:
                if is_dead:
                    with suppress(asyncpg.ObjectInUseError, asyncpg.InsufficientPrivilegeError):
                        # Without FORCE: a connection means that a process still uses it.
                        self._statements.execute(self._maintenance, f'DROP DATABASE IF EXISTS "{name}"')
        for role, token in self.roles.all_ours():
            with self._holding(token) as is_dead:
                if is_dead:
                    self.roles.drop(role)

    @contextmanager
    def _holding(self, token: str) -> Iterator[bool]:
        """Hold the lock of a process or run that has ended; yields whether it has."""
        if token in {self._token, self._run} or not self._statements.fetch_value(self._maintenance, _TRY, token):
            yield False
            return
        try:
            yield True
        finally:
            self._statements.fetch_value(self._maintenance, _LET_GO, token)


def _token_of(name: str) -> str:
    return name.split("_")[3]
