"""What several test modules share: a SQLite file, named connections, Docker where it is, the watch for passwords."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import docker.errors
import pytest
import pytest_asyncio
from raw_postgres import named
from secret_watch import SecretWatch, watch

from flux_memory import ConversationMemory, Memory
from flux_memory.testkit.servers import Server, ServerUnavailable, container
from flux_memory.testkit.servers.choice import default_image

# They run in an environment of their own: `nox -s peers`.
collect_ignore = ["peers"]

# Its options must be known whichever tests are asked for, and its summary printed by the controller of xdist.
pytest_plugins = ["fault_report"]

BUILT_IMAGE = "flux-memory/postgres:15"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SecretWatch())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a SQLite file is, or will be."""
    return tmp_path / "chat.db"


@pytest.fixture
def unopened(path: Path) -> Memory:
    """The handle that `memory` opens: on SQLite, if a module does not say otherwise."""
    return ConversationMemory(path, timeout=5)


@pytest_asyncio.fixture
async def memory(unopened: Memory) -> AsyncIterator[Memory]:
    """An open handle with the sessions `one` and `two`."""
    async with unopened as memory:
        for id_ in ("one", "two"):
            await memory.create_session(session_id=id_)
        yield memory


@pytest.fixture
def named_dsn(flux_postgres_clean_dsn: str) -> str:
    """A DSN whose connections can be told from others, by OPEN and BUSY."""
    return named(flux_postgres_clean_dsn)


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
