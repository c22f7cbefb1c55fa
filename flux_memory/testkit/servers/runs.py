"""The PostgreSQL servers of a pytest run as one of its processes sees them: one for each wanted version."""

# ruff: noqa: PLC0415 - every pytest run imports this module, so heavy imports wait until a test needs a server
from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest

from flux_memory.testkit.servers.options import versions_of, wishes_of
from flux_memory.testkit.servers.run_identity import RunIdentity

if TYPE_CHECKING:
    from flux_memory.testkit.servers.run import PostgresRun

SERVER_FIXTURE: Final = "flux_postgres_server"
"""The fixture that each fixture of a database requests."""
VERSION_FIXTURE: Final = "flux_postgres_version"
"""The fixture whose parameter is the major version of a test's server."""
_RUNS: Final = pytest.StashKey["PostgresRuns"]()


class PostgresRuns:
    """The run's servers, by major version; a run that wants no certain version has one server."""

    def __init__(self, config: pytest.Config, identity: RunIdentity) -> None:
        self.identity: Final = identity
        self.versions: Final[tuple[str | None, ...]] = versions_of(config) or (None,)
        self._config = config
        self._of: dict[str | None, PostgresRun] = {}

    def of(self, version: str | None) -> PostgresRun:
        """Return the run of a version; its server starts when it is requested."""
        if version not in self._of:
            from flux_memory.testkit.servers.run import PostgresRun

            wishes = wishes_of(self._config, version)
            self._of[version] = PostgresRun(self.identity, self._config.option.flux_postgres, wishes)
        return self._of[version]

    def of_item(self, item: pytest.Item) -> PostgresRun | None:
        """Return the run whose server a test uses; None if it uses none."""
        if SERVER_FIXTURE not in getattr(item, "fixturenames", ()):
            return None
        callspec = getattr(item, "callspec", None)
        parameters = {} if callspec is None else callspec.params
        return self.of(parameters.get(VERSION_FIXTURE, self.versions[0]))

    def in_use(self) -> Iterator[PostgresRun]:
        """Yield the runs whose server any process of the run requested; cheap if there is none."""
        for version in self.versions:
            try:
                requested = self.identity.directory(version).exists()
            except OSError:
                # Where there is no directory for temporary files, no process has started a server.
                return
            if requested:
                yield self.of(version)

    @property
    def is_owner(self) -> bool:
        """Whether this process stops the servers."""
        return self.identity.owner == os.getpid()


def set_runs(config: pytest.Config, runs: PostgresRuns) -> None:
    """Remember the servers of a pytest run."""
    config.stash[_RUNS] = runs


def runs_of(config: pytest.Config) -> PostgresRuns:
    """Return the servers of a pytest run."""
    return config.stash[_RUNS]


def has_runs(config: pytest.Config) -> bool:
    """Return whether the run got as far as its servers; a usage error ends it before."""
    return _RUNS in config.stash
