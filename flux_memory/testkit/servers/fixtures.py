"""The fixtures of the throwaway PostgreSQL: the server, databases on it, and transactions that are rolled back."""

# ruff: noqa: PLC0415 - every pytest run imports this module, so heavy imports wait until a test needs them
from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest

from flux_memory.testkit.servers.runs import runs_of

if TYPE_CHECKING:
    from flux_memory.testkit.servers.database import PostgresDatabase
    from flux_memory.testkit.servers.factory import DatabaseFactory
    from flux_memory.testkit.servers.rollback import Rollback
    from flux_memory.testkit.servers.server import Server

_DSN_VARIABLE: Final = "FLUX_MEMORY_TEST_DSN"


@pytest.fixture(scope="session")
def flux_postgres_version(request: pytest.FixtureRequest) -> str | None:
    """The major version of the test's server, such as "16"; None if the run wants no certain version."""
    version: str | None = getattr(request, "param", runs_of(request.config).versions[0])
    return version


@pytest.fixture(scope="session")
def flux_postgres_server(request: pytest.FixtureRequest, flux_postgres_version: str | None) -> Server:
    """The run's PostgreSQL, shared by all xdist workers.

    If there is none, the test fails if a server is required, was named or does not start, or if a version is wanted in
    CI; otherwise it is skipped.
    """
    from flux_memory.testkit.servers.running import ServerFailed, ServerUnavailable

    try:
        return runs_of(request.config).of(flux_postgres_version).server()
    except ServerUnavailable as error:
        name = f"PostgreSQL {flux_postgres_version}" if flux_postgres_version else "PostgreSQL"
        reason = f"no {name}: {error}"
        has_failed = isinstance(error, ServerFailed)
    wanted_in_ci = flux_postgres_version is not None and bool(os.environ.get("CI"))
    if has_failed or request.config.option.flux_postgres_required or _is_named(request.config) or wanted_in_ci:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _is_named(config: pytest.Config) -> bool:
    """Return whether the user named a server, so that skipping would hide a mistake."""
    choice: str = config.option.flux_postgres
    return choice != "off" and (choice != "auto" or bool(os.environ.get(_DSN_VARIABLE)))


@pytest.fixture(scope="session")
def flux_postgres(flux_postgres_server: Server) -> Server:
    """The run's PostgreSQL server: `.dsn`, its parts, `.version`, and `.database()` for databases of any scope."""
    return flux_postgres_server


@pytest.fixture
def flux_postgres_database(request: pytest.FixtureRequest, flux_postgres_server: Server) -> Iterator[DatabaseFactory]:
    """A function that creates databases, as `flux_postgres.database()` does; they are dropped after the test."""
    from flux_memory.testkit.servers.factory import DatabaseFactory

    databases = DatabaseFactory(flux_postgres_server, request.config.rootpath)
    yield databases
    databases.drop()


@pytest.fixture(scope="session")
def flux_postgres_rollback_database(flux_postgres_server: Server) -> PostgresDatabase:
    """The database of `flux_postgres_rollback`. Override it to create tables: `flux_postgres.database(init=...)`."""
    return flux_postgres_server.database()


@pytest.fixture
def flux_postgres_rollback(flux_postgres_rollback_database: PostgresDatabase) -> Iterator[Rollback]:
    """Connections and sessions whose changes are rolled back after the test, also if the tested code commits."""
    from flux_memory.testkit.servers.rollback import Rollback

    rollback = Rollback(flux_postgres_rollback_database)
    yield rollback
    rollback.close()


@pytest.fixture(scope="session")
def flux_postgres_dsn(flux_postgres_server: Server) -> Iterator[str]:
    """A database of this worker; tests see what earlier tests left there."""
    dsn = flux_postgres_server.create_database()
    yield dsn
    flux_postgres_server.drop_database(dsn)


@pytest.fixture
def flux_memory_postgres_dsn(flux_postgres_server: Server, flux_postgres_dsn: str) -> str:
    """This worker's database, with flux-memory's tables emptied of sessions. The fastest isolation for memories."""
    flux_postgres_server.empty_database(flux_postgres_dsn)
    return flux_postgres_dsn


@pytest.fixture
def flux_postgres_clean_dsn(flux_memory_postgres_dsn: str) -> str:
    """The former name of `flux_memory_postgres_dsn`."""
    warnings.warn(
        pytest.PytestDeprecationWarning(
            "the fixture flux_postgres_clean_dsn is deprecated: use flux_memory_postgres_dsn, which is the same"
        ),
        stacklevel=2,
    )
    return flux_memory_postgres_dsn


@pytest.fixture
def flux_empty_database(flux_postgres_server: Server) -> Iterator[str]:
    """The DSN of a new database without tables, dropped after the test."""
    dsn = flux_postgres_server.create_database()
    yield dsn
    flux_postgres_server.drop_database(dsn)
