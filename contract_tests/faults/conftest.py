"""Fixtures of the tests that break real servers, networks, poolers, disks and processes; run by `nox -s faults`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cluster import Cluster, run_cluster
from fault_pooler import Pooler, run_pooler
from fault_report import Fault
from fault_work import Store
from postgres_proxy import PostgresProxy
from raw_postgres import with_application_name
from replicated_cluster import Replicated, run_replicated


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    """Records the figures of a test's fault: call `fault.judge(history, stored)` once a round."""
    return Fault(request.node)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store on the backend that `on_both_backends` chooses."""
    journals = tmp_path / "journals"
    journals.mkdir()
    if request.param == "sqlite":
        return Store("sqlite", str(tmp_path / "chat.db"), journals)
    return Store("postgres", request.getfixturevalue("flux_memory_postgres_dsn"), journals)


@pytest.fixture(scope="module")
def replicated() -> Iterator[Replicated]:
    """A primary and two replicas, which every test leaves well."""
    with run_replicated() as made:
        yield made


@pytest.fixture
def broken_replicated() -> Iterator[Replicated]:
    """A primary and two replicas for one test, which breaks them for good."""
    with run_replicated() as made:
        yield made


@pytest.fixture(scope="module")
def own_server() -> Iterator[Cluster]:
    """A durable server for the module; a module with other settings overrides it."""
    with run_cluster() as made:
        yield made


@pytest.fixture
def pooler(flux_empty_database: str) -> Iterator[Pooler]:
    """A PgBouncer in front of the run's server."""
    with run_pooler(flux_empty_database) as started:
        yield started


@pytest.fixture
def proxy(flux_empty_database: str) -> Iterator[PostgresProxy]:
    """A breakable network in front of an empty database; its connections have an application name."""
    with PostgresProxy(with_application_name(flux_empty_database)) as made:
        yield made
