"""Fixtures that every room uses: a SQLite file, an open memory, PostgreSQL, Docker, and the password watch."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import docker.errors
import pytest
import pytest_asyncio
from raw_postgres import with_application_name
from secret_watch import SecretWatch, watch_password

from flux_memory import ConversationMemory, Memory
from flux_memory.testkit.servers import Server, ServerUnavailable, container
from flux_memory.testkit.servers.choice import default_image

# They run in their own environment: `nox -s peers`; and on a cluster, if there is one: `nox -s citus`.
collect_ignore = ["peers"] if "FLUX_MEMORY_CITUS_DSN" in os.environ else ["peers", "citus"]

# Loaded here, so that its options exist for any selection of tests and xdist's controller prints its summary.
pytest_plugins = ["fault_report"]

BUILT_IMAGE = "flux-memory/postgres:15"

IDLE_PLUGINS = ("no:hypothesispytest", "no:anyio")
"""Plugins without work in a project that a test makes: they take a third of its run's CPU time to import."""

_frozen_modules = [0]
"""The number of modules that were loaded when objects were last frozen."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SecretWatch())


def pytest_collection_finish() -> None:
    _freeze()


def pytest_runtest_logfinish() -> None:
    # Hypothesis, for example, is imported by the first test that explores the model.
    if len(sys.modules) > _frozen_modules[0] + 50:
        _freeze()


def _freeze() -> None:
    """Leave what is there out of later collections: hundreds of tests collect, and would visit all of it each time."""
    gc.collect()
    gc.freeze()
    _frozen_modules[0] = len(sys.modules)


@pytest.fixture
def pytester(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project of its own, whose runs load no idle plugin; a test that needs one clears `plugins`."""
    pytester.plugins.extend(IDLE_PLUGINS)
    return pytester


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a SQLite file that does not exist yet."""
    return tmp_path / "chat.db"


@pytest.fixture
def unopened_memory(path: Path) -> Memory:
    """The handle that `memory` opens. A module overrides this fixture to test another backend."""
    return ConversationMemory(path, timeout=5)


@pytest_asyncio.fixture
async def memory(unopened_memory: Memory) -> AsyncIterator[Memory]:
    """An open handle with the sessions `one` and `two`."""
    async with unopened_memory as memory:
        for id_ in ("one", "two"):
            await memory.create_session(session_id=id_)
        yield memory


@pytest.fixture
def named_dsn(flux_memory_postgres_dsn: str) -> str:
    """A DSN with an application name, by which OPEN and BUSY count its connections."""
    return with_application_name(flux_memory_postgres_dsn)


@pytest.fixture(scope="session")
def flux_postgres_server(flux_postgres_server: Server) -> Server:
    """The run's PostgreSQL server; its password must not appear in any output."""
    watch_password(flux_postgres_server.dsn)
    return flux_postgres_server


def _without_docker(reason: str) -> NoReturn:
    if os.environ.get("FLUX_MEMORY_REQUIRE_DOCKER") == "1":
        pytest.fail(f"FLUX_MEMORY_REQUIRE_DOCKER=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Any]:
    """A Docker engine. Without one a test is skipped, or fails with FLUX_MEMORY_REQUIRE_DOCKER=1."""
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(container.docker_engine())
        except ServerUnavailable as error:
            _without_docker(str(error))
        yield engine


@pytest.fixture(scope="session")
def built_image(docker_engine: Any) -> str:
    """The image that `nox -s image` builds."""
    try:
        docker_engine.images.get(BUILT_IMAGE)
    except docker.errors.ImageNotFound:
        _without_docker(f"the image {BUILT_IMAGE} is not built: nox -s image")
    return BUILT_IMAGE


@pytest.fixture(scope="session")
def postgres_image(request: pytest.FixtureRequest, docker_engine: Any) -> str:
    """A local image: the configured one, or else the one that `nox -s image` builds."""
    wanted = default_image()
    try:
        docker_engine.images.get(wanted)
    except docker.errors.ImageNotFound:
        return str(request.getfixturevalue("built_image"))
    return wanted
