"""Chooses the server of a run: the providers in order of preference, and why the preferred ones were skipped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Final

from flux_memory.testkit.servers import container, external, local
from flux_memory.testkit.servers.directories import sweep_directories
from flux_memory.testkit.servers.ownership import own_mark
from flux_memory.testkit.servers.running import (
    Running,
    ServerFailed,
    ServerUnavailable,
    Started,
    Wishes,
    unavailable_if_failing,
)
from flux_memory.testkit.servers.server import Server
from flux_memory.testkit.servers.statements import Statements

IMAGE_VARIABLE: Final = "FLUX_MEMORY_TEST_IMAGE"
DEFAULT_IMAGE: Final = "postgres:16-alpine"


def default_image() -> str:
    """Return the image that the environment variable names, or the official one."""
    return os.environ.get(IMAGE_VARIABLE) or DEFAULT_IMAGE


def launch(choice: str, wishes: Wishes, mark: str) -> Started:
    """Start or find the chosen server.

    Args:
        choice: `auto`, `docker`, `local`, `off` or a DSN.
        wishes: How to start it.
        mark: The owner's mark; see `ownership`.

    Raises:
        ServerUnavailable: No server is available; the message says why for each provider.
    """
    began = time.monotonic()
    with unavailable_if_failing("leftovers of earlier runs cannot be removed"):
        sweep_directories()
    running, passed_over = _provide(choice, wishes, mark)
    try:
        with (
            unavailable_if_failing(f"{running.origin} does not answer"),
            closing(Statements(own_server=running.is_own)) as statements,
        ):
            version = str(statements.fetch_value(running.dsn, "SHOW server_version")).split()[0]
            if wishes.version is not None and version.partition(".")[0] != wishes.version:
                raise ServerUnavailable(f"{running.origin} is PostgreSQL {version}, not {wishes.version}")
    except BaseException:
        running.stop()
        raise
    return Started(running, version, time.monotonic() - began, passed_over)


def _provide(choice: str, wishes: Wishes, mark: str) -> tuple[Running, tuple[str, ...]]:
    if choice == "auto":
        return _provide_best(wishes, mark)
    if choice == "docker":
        return _start_container(wishes, mark), ()
    if choice == "local":
        return _start_local(wishes, mark), ()
    if choice == "off":
        raise ServerUnavailable("PostgreSQL is switched off for this run")
    if "://" in choice:
        return external.attach(choice, "the given DSN", wishes), ()
    raise ServerUnavailable(f"unknown choice of a server: {choice!r}; choose auto, docker, local, off or a DSN")


def _provide_best(wishes: Wishes, mark: str) -> tuple[Running, tuple[str, ...]]:
    # A DSN that was set on purpose and does not work is an error, not a reason to use a different server.
    if dsn := os.environ.get(external.DSN_VARIABLE):
        return external.attach(dsn, external.DSN_VARIABLE, wishes), ()
    try:
        return _start_container(wishes, mark), ()
    except ServerUnavailable as no_container:
        try:
            return _start_local(wishes, mark), (str(no_container),)
        except ServerUnavailable as no_binaries:
            tried = f"{external.DSN_VARIABLE} is not set; {no_container}; {no_binaries}"
            has_failed = any(isinstance(error, ServerFailed) for error in (no_container, no_binaries))
            raise (ServerFailed if has_failed else ServerUnavailable)(tried) from no_binaries


def _start_container(wishes: Wishes, mark: str) -> Running:
    with unavailable_if_failing("no container can be started"):
        return container.start(wishes, mark)


def _start_local(wishes: Wishes, mark: str) -> Running:
    with unavailable_if_failing("no local server can be started"):
        return local.start(wishes, mark)


@contextmanager
def start_server(
    choice: str = "auto",
    *,
    image: str | None = None,
    durable: bool = False,
    settings: Mapping[str, str] | None = None,
    version: str | None = None,
) -> Iterator[Server]:
    """Start a throwaway PostgreSQL, or find one, for the length of a `with` block.

    Args:
        choice: `auto`, `docker`, `local` or a DSN.
        image: The Docker image; defaults to the variable FLUX_MEMORY_TEST_IMAGE, then to `postgres:16-alpine`. A
            `{version}` in it, or else the number that its tag begins with, is replaced by `version`.
        durable: Keep PostgreSQL's default durability, on a disk, as benchmarks need.
        settings: More settings of `postgresql.conf`. An external server is rejected if there are any.
        version: The major version, such as "16"; by default any.

    Raises:
        ServerUnavailable: No server is available; the message says why.
        ValueError: A setting says where the server is, such as `port`.
    """
    wishes = Wishes(image or default_image(), durable=durable, settings=settings or {}, version=version)
    owner = os.getpid()
    started = launch(choice, wishes, own_mark())
    try:
        server = Server(started)
        try:
            yield server
        finally:
            server.close()
    finally:
        # A forked child that leaves the block leaves the server to its parent.
        if os.getpid() == owner:
            started.running.stop()
