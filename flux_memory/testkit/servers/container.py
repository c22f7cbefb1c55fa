"""A throwaway PostgreSQL in a container, through testcontainers."""

# ruff: noqa: PLC0415 - testcontainers is optional and slow to import
from __future__ import annotations

import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_network
from typing import Any, Final
from urllib.parse import urlsplit

from flux_memory.testkit.servers.ownership import is_dead
from flux_memory.testkit.servers.running import NotAnswered, ServerFailed, ServerUnavailable, Wishes
from flux_memory.testkit.servers.statements import Statements
from flux_memory.testkit.servers.verifiers import make_verifier

_OWNER_LABEL: Final = "flux-memory.owner"
_ROLE: Final = "postgres"
_PORT: Final = 5432
_VERSION: Final = "{version}"
_DEFAULT_VERSION: Final = "16"
_MEMORY: Final = "/flux-memory"
_DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
_LOOPBACK_ONLY: Final[Any] = ("127.0.0.1",)
_ENGINE_SECONDS: Final = 10
_START_SECONDS: Final = 60.0


@dataclass(frozen=True)
class ContainerServer:
    """A server that runs in a container."""

    dsn: str
    origin: str
    container: str

    @property
    def socket_dsn(self) -> None:
        """None, because the socket is inside the container."""
        return

    @property
    def is_own(self) -> bool:
        """True: its DSN has an address, a role and a password."""
        return True

    def log_tail(self, lines: int) -> str:
        """Return the newest lines of the container's output."""
        with docker_engine() as engine:
            printed: bytes = engine.containers.get(self.container).logs(tail=lines)
            return printed.decode(errors="replace").rstrip()

    def stop(self) -> None:
        """Remove the container and its volumes."""
        with docker_engine() as engine:
            _remove(engine, self.container)


def start(wishes: Wishes, mark: str) -> ContainerServer:
    """Start a container and wait until its server answers; pull the image if it is missing."""
    with docker_engine() as engine:
        _sweep(engine)
    with _reaper_off():
        return _start(wishes, mark)


def _start(wishes: Wishes, mark: str) -> ContainerServer:
    from testcontainers.core.container import DockerContainer

    password = secrets.token_urlsafe(18)
    image = _image_of(wishes)
    container = DockerContainer(image).with_kwargs(labels={_OWNER_LABEL: mark})
    container.with_envs(POSTGRES_USER=_ROLE, POSTGRES_PASSWORD=password, POSTGRES_DB=_ROLE)
    if not wishes.durable:
        container.with_env("PGDATA", f"{_MEMORY}/data").with_env("POSTGRES_INITDB_ARGS", "--no-sync")
        container.with_tmpfs_mount(_MEMORY)
    options = [("-c", f"{name}={value}") for name, value in wishes.configuration().items()]
    container.with_command([part for option in options for part in option])
    loopback = _publishes_on_loopback(container.get_docker_client())
    container.ports[f"{_PORT}/tcp"] = _LOOPBACK_ONLY if loopback else None
    try:
        container.start()
        host = "127.0.0.1" if loopback else container.get_container_host_ip()
        dsn = f"postgresql://{_ROLE}:{password}@{host}:{container.get_exposed_port(_PORT)}/{_ROLE}"
        _wait_until_ready(container, dsn)
        with closing(Statements(own_server=True)) as statements:
            statements.execute(dsn, f"ALTER ROLE {_ROLE} PASSWORD '{make_verifier(password)}'")
        return ContainerServer(dsn, f"Docker, {image}", container.get_container_id())
    except BaseException as error:
        with suppress(Exception):
            container.stop()
        if isinstance(error, ServerUnavailable) or not isinstance(error, Exception):
            raise
        raise ServerUnavailable(
            f"the image {image} cannot be run: {_short(error)}; pull or build it, or name another with "
            "--flux-postgres-image"
        ) from error
    finally:
        container.get_docker_client().client.close()


def _image_of(wishes: Wishes) -> str:
    """Return the image of the wanted version."""
    if _VERSION in wishes.image:
        return wishes.image.replace(_VERSION, wishes.version or _DEFAULT_VERSION)
    if wishes.version is None:
        return wishes.image
    repository, colon, tag = wishes.image.rpartition(":")
    if not colon or not (number := re.match(r"\d+(\.\d+)*(?=-|$)", tag)):
        raise ServerUnavailable(
            f"the tag of the image {wishes.image} does not begin with a version; write {_VERSION} in its place"
        )
    return f"{repository}:{wishes.version}{tag[number.end() :]}"


def _publishes_on_loopback(client: Any) -> bool:
    """Return whether the engine's loopback is ours, so that ports can be published on it alone."""
    from testcontainers.core.config import ConnectionMode

    if client.get_connection_mode() == ConnectionMode.docker_host and client.host() in _LOOPBACK:
        return True
    # An apparent container may be the engine's host: then the bridge's first address is one of ours.
    for subnet in client.client.api.inspect_network("bridge")["IPAM"]["Config"] or ():
        bridge = next(ip_network(subnet["Subnet"]).hosts())
        with suppress(OSError), socket.socket() as probe:
            probe.bind((subnet.get("Gateway", str(bridge)), 0))
            return True
    return False


def _wait_until_ready(container: Any, dsn: str) -> None:
    # From here, not by psql in the container: the published port has to work too.
    deadline = time.monotonic() + _START_SECONDS
    with closing(Statements(own_server=True)) as statements:
        while True:
            try:
                statements.fetch_value(dsn, "SELECT 1")
            except NotAnswered as error:
                container.reload()
                if container.status != "running" or time.monotonic() > deadline:
                    printed = container.get_wrapped_container().logs(tail=15).decode(errors="replace")
                    raise ServerFailed(f"the container exited or never answered: {printed}") from error
                time.sleep(0.02)
            else:
                return


@contextmanager
def docker_engine() -> Iterator[Any]:
    """Connect to the engine that testcontainers uses."""
    try:
        from docker.errors import DockerException
        from testcontainers.core.docker_client import DockerClient, get_docker_host
    except ImportError as error:
        raise ServerUnavailable("testcontainers is not installed: pip install 'flux-memory[containers]'") from error
    _knock(get_docker_host() or _DEFAULT_HOST)
    try:
        engine = DockerClient(timeout=_ENGINE_SECONDS).client
    except DockerException as error:
        raise ServerUnavailable(f"no Docker engine answers: {_short(error)}") from error
    with closing(engine):
        try:
            engine.ping()
        except (DockerException, OSError) as error:
            raise ServerUnavailable(f"the Docker engine does not answer: {_short(error)}") from error
        yield engine


def _knock(host: str) -> None:
    """Fail early if no engine listens: the client would leak a socket and cause a ResourceWarning."""
    url = urlsplit(host)
    if url.scheme == "unix":
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(url.path)
            except OSError as error:
                raise ServerUnavailable(f"no Docker engine answers at {host}: {error.strerror}") from error


@contextmanager
def _reaper_off() -> Iterator[None]:
    """Disable testcontainers' cleaner: it needs another image, and the owner's label replaces it."""
    from testcontainers.core.config import testcontainers_config

    was = testcontainers_config.ryuk_disabled
    testcontainers_config.ryuk_disabled = True
    try:
        yield
    finally:
        testcontainers_config.ryuk_disabled = was


def _sweep(engine: Any) -> None:
    """Remove the containers of runs that have ended."""
    for container in engine.api.containers(all=True, filters={"label": _OWNER_LABEL}):
        if is_dead(container["Labels"][_OWNER_LABEL]):
            _remove(engine, container["Id"])


def _remove(engine: Any, container: str) -> None:
    from docker.errors import APIError, NotFound

    try:
        engine.api.remove_container(container, v=True, force=True)
    except NotFound:
        return
    except APIError as error:
        # Another run is removing it.
        if error.status_code != HTTPStatus.CONFLICT:
            raise


def _short(error: BaseException) -> str:
    # The engine's explanation without the request.
    said = str(getattr(error, "explanation", None) or error).strip()
    return said.splitlines()[0] if said else type(error).__name__
