"""The unprivileged roles that own a run's databases: created once for the run, known by a comment, dropped after it."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from typing import Final

import asyncpg

from flux_memory.testkit.servers.statements import Statements

_COMMENT: Final = "flux-memory test role of run "
_COMMENT_OF: Final = "SELECT coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles WHERE rolname = $1"
_ALL_OURS: Final = """
SELECT rolname || ' ' || substr(shobj_description(oid, 'pg_authid'), length($1) + 1)
FROM pg_roles
WHERE starts_with(shobj_description(oid, 'pg_authid'), $1)
"""
_LOCK: Final = "SELECT pg_advisory_lock(hashtext($1), hashtext('flux-memory roles'))"
_UNLOCK: Final = "SELECT pg_advisory_unlock(hashtext($1), hashtext('flux-memory roles'))"


class Roles:
    """The roles of one run on one server."""

    def __init__(self, statements: Statements, maintenance_dsn: str, run: str, secret: str) -> None:
        self._statements = statements
        self._maintenance = maintenance_dsn
        self._run = run
        self._secret = secret
        self._known: set[str] = set()

    def ensure(self, role: str) -> None:
        """Create a role that may log in and nothing else, unless a process of the run has.

        Raises:
            ValueError: A role of this name existed before the run, or no role can have it.
        """
        if role in self._known:
            return
        if "\0" in role:
            raise ValueError(f"owner={role!r}: the server takes no such name, with a NUL; choose another one")
        if "," in role:
            raise ValueError(f"owner={role!r}: asyncpg cannot log in with a comma in the name; choose another one")
        self._statements.fetch_value(self._maintenance, _LOCK, role)
        try:
            comment = self._statements.fetch_value(self._maintenance, _COMMENT_OF, role)
            if comment is None:
                self._create(role)
            elif comment != f"{_COMMENT}{self._run}":
                raise ValueError(
                    f"owner={role!r}: the server has such a role already, which this run did not create; "
                    "choose another name, or owner=True for a name of this run's own"
                )
        except (asyncpg.NameTooLongError, asyncpg.ReservedNameError) as error:
            raise ValueError(
                f"owner={role!r}: the server takes no such name: {error.args[0]}; choose another one"
            ) from error
        finally:
            self._statements.fetch_value(self._maintenance, _UNLOCK, role)
        self._known.add(role)

    def _create(self, role: str) -> None:
        name = quote_name(role)
        self._statements.execute(
            self._maintenance,
            f"CREATE ROLE {name} LOGIN PASSWORD '{self.password_of(role)}';"
            f"COMMENT ON ROLE {name} IS '{_COMMENT}{self._run}';"
            # Without it, a role that is not a superuser could not give a database to it.
            f"GRANT {name} TO CURRENT_USER",
        )

    def password_of(self, role: str) -> str:
        """Return the password of a role, the same in all processes of the run."""
        return hmac.new(self._secret.encode(), role.encode(), hashlib.sha256).hexdigest()[:32]

    def drop_run(self) -> None:
        """Drop the roles of this run; those that own a kept database stay."""
        for role, run in self.all_ours():
            if run == self._run:
                self.drop(role)

    def all_ours(self) -> list[tuple[str, str]]:
        """Return each role that a run created and did not drop, with that run's token."""
        found = self._statements.fetch_column(self._maintenance, _ALL_OURS, _COMMENT)
        return [(role, run) for role, _, run in (str(each).rpartition(" ") for each in found)]

    def drop(self, role: str) -> None:
        """Drop a role, unless it owns something or this role may not."""
        with suppress(asyncpg.DependentObjectsStillExistError, asyncpg.InsufficientPrivilegeError):
            self._statements.execute(self._maintenance, f"DROP ROLE IF EXISTS {quote_name(role)}")


def quote_name(name: str) -> str:
    """Return an identifier as SQL writes it."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def quote_text(text: str) -> str:
    """Return a literal as SQL writes it."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'" if "\\" not in text else "E'" + escaped.replace("\\", "\\\\") + "'"
