"""Makes the databases of one test, and drops them after it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flux_memory.testkit.servers.database import PostgresDatabase
from flux_memory.testkit.servers.recipe import Step
from flux_memory.testkit.servers.server import Server


class DatabaseFactory:
    """The value of the fixture `flux_postgres_database`.

    Args:
        server: The server to create databases on.
        directory: Relative paths in `init` start here.
    """

    def __init__(self, server: Server, directory: Path) -> None:
        self._server = server
        self._directory = directory
        self._made: list[PostgresDatabase] = []

    def __call__(
        self,
        *,
        init: Iterable[Step] | Step = (),
        template: str | None = None,
        owner: str | bool | None = None,
        locale: str | None = None,
        extensions: Iterable[str] = (),
    ) -> PostgresDatabase:
        """Create a database for this test. `Server.database` describes the arguments and errors.

        Relative paths in `init` start at pytest's root directory.
        """
        made = self._server.database(
            init=init,
            template=template,
            owner=owner,
            locale=locale,
            extensions=extensions,
            directory=self._directory,
        )
        self._made.append(made)
        return made

    def dsns(self) -> list[str]:
        """Return the DSNs of the databases that were made."""
        return [made.dsn for made in self._made]

    def drop(self) -> None:
        """Drop the databases, ending all connections to them."""
        while self._made:
            self._server.drop_database(self._made.pop())
