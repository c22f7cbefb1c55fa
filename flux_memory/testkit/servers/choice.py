"""Which server a run gets: the providers in their order, and why the better ones were passed over."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Final

from flux_memory.testkit.servers import container, external, local
from flux_memory.testkit.servers.directories import sweep_directories
from flux_memory.testkit.servers.ownership import own_mark
from flux_memory.testkit.servers.running import Running, ServerUnavailable, Started, Wishes
from flux_memory.testkit.servers.server import Server
from flux_memory.testkit.servers.statements import Statements

IMAGE_VARIABLE: Final = "FLUX_MEMORY_TEST_IMAGE"
DEFAULT_IMAGE: Final = "postgres:16-alpine"


def default_image() -> str:
    """Return the image of the environment's variable, or the official one."""
    return os.environ.get(IMAGE_VARIABLE) or DEFAULT_IMAGE


def launch(choice: str, wishes: Wishes, mark: str) -> Started:
    """Start or find the server of a choice.

    Args:
        choice: `auto`, `docker`, `local`, `off` or a DSN.
        wishes: How to start it.
        mark: The owner's; see `ownership`.

    Raises:
        ServerUnavailable: There is none; the message says why, for each way that was tried.
    """
    began = time.monotonic()
    sweep_directories()
    running, passed_over = _provide(choice, wishes, mark)
    try:
        with closing(Statements()) as statements:
            version = str(statements.fetch_value(running.dsn, "SHOW server_version")).split()[0]
    except BaseException:
        running.stop()
        raise
    return Started(running, version, time.monotonic() - began, passed_over)


def _provide(choice: str, wishes: Wishes, mark: str) -> tuple[Running, tuple[str, ...]]:
    if choice == "auto":
        return _provide_best(wishes, mark)
    if choice == "docker":
        return container.start(wishes, mark), ()
    if choice == "local":
        return local.start(wishes, mark), ()
    if choice == "off":
        raise ServerUnavailable("PostgreSQL is switched off for this run")
    if "://" in choice:
        return external.attach(choice, "the DSN given", wishes), ()
    raise ServerUnavailable(f"no such choice of a server: {choice!r}; it is auto, docker, local, off or a DSN")


def _provide_best(wishes: Wishes, mark: str) -> tuple[Running, tuple[str, ...]]:
    # A DSN that was set on purpose and does not work is an error, no reason to test against something else.
    if dsn := os.environ.get(external.DSN_VARIABLE):
        return external.attach(dsn, external.DSN_VARIABLE, wishes), ()
    try:
        return container.start(wishes, mark), ()
    except ServerUnavailable as no_container:
        try:
            return local.start(wishes, mark), (str(no_container),)
        except ServerUnavailable as no_binaries:
            tried = f"{external.DSN_VARIABLE} is not set; {no_container}; {no_binaries}"
            raise ServerUnavailable(tried) from no_binaries


@contextmanager
def start_server(
    choice: str = "auto",
    *,
    image: str | None = None,
    durable: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Start a throwaway PostgreSQL, or find one, for the length of a `with` block.

    Args:
        choice: `auto`, `docker`, `local` or a DSN.
        image: For Docker; by default the variable FLUX_MEMORY_TEST_IMAGE, then `postgres:16-alpine`.
        durable: Keep PostgreSQL's own durability, on a disk: what a benchmark measures.
        settings: More settings of `postgresql.conf`. A server that somebody else runs is refused then.

    Raises:
        ServerUnavailable: There is none; the message says why.
    """
    wishes = Wishes(image or default_image(), durable=durable, settings=settings or {})
    started = launch(choice, wishes, own_mark())
    try:
        server = Server(started)
        try:
            yield server
        finally:
            server.close()
    finally:
        started.running.stop()
