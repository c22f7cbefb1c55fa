"""What several test modules share: whether Docker is to be had, and where; and the watch for passwords."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NoReturn

import docker.errors
import pytest
from secret_watch import SecretWatch, watch

from flux_memory.testkit.servers import Server, ServerUnavailable, container
from flux_memory.testkit.servers.choice import default_image

# They run in an environment of their own: `nox -s peers`.
collect_ignore = ["peers"]

# Its options must be known whichever tests are asked for, and its summary printed by the controller of xdist.
pytest_plugins = ["fault_report"]

BUILT_IMAGE = "flux-memory/postgres:15"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SecretWatch())


@pytest.fixture(scope="session")
def flux_postgres_server(flux_postgres_server: Server) -> Server:
    """The run's PostgreSQL, whose password must not show."""
    watch(flux_postgres_server.dsn)
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
    """The image made by the project's own recipe, `nox -s image`."""
    try:
        docker_engine.images.get(BUILT_IMAGE)
    except docker.errors.ImageNotFound:
        _without_docker(f"the image {BUILT_IMAGE} is not built: nox -s image")
    return BUILT_IMAGE


@pytest.fixture(scope="session")
def postgres_image(request: pytest.FixtureRequest, docker_engine: Any) -> str:
    """An image that is there: the one asked for, or the project's own."""
    wanted = default_image()
    try:
        docker_engine.images.get(wanted)
    except docker.errors.ImageNotFound:
        return str(request.getfixturevalue("built_image"))
    return wanted
