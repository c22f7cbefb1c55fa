"""A server object in a forked child: the child is told that it belongs to the parent, and cannot stop or empty it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Final

import pytest

from flux_memory.testkit.servers import Server, start_server
from flux_memory.testkit.servers.statements import Statements

pytestmark = pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")

REFUSED: Final[dict[str, Callable[[Server, str], object]]] = {
    "create_database": lambda server, _: server.create_database(),
    "drop_database": lambda server, dsn: server.drop_database(dsn),
    "empty_database": lambda server, dsn: server.empty_database(dsn),
    "keep_database": lambda server, dsn: server.keep_database(dsn),
}
"""The methods that run statements."""

ALLOWED: Final[dict[str, Callable[[Server, str], object]]] = {
    "close": lambda server, _: server.close(),
    "dsn": lambda server, _: server.dsn,
    "version": lambda server, _: server.version,
    "through_socket": lambda server, dsn: server.through_socket(dsn),
    "log_tail": lambda server, _: server.log_tail(),
    "start_server": lambda _, dsn: start_and_use(dsn),
}
"""The methods that do not need the parent's thread, and the way for a child to databases of its own."""


def start_and_use(dsn: str) -> None:
    with start_server(dsn) as server:
        server.drop_database(server.create_database())


def run_in_child(work: Callable[[], object]) -> str:
    """Do the work in a forked child, and return its error, or nothing."""
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the parent judges it
            writing.send(f"{type(error).__name__}: {error}")
        else:
            writing.send("")

    child = context.Process(target=run)
    child.start()
    try:
        assert reading.poll(60), "the child hangs"
        said: str = reading.recv()
        return said
    finally:
        child.kill()
        child.join()


@pytest.fixture
def dsn(flux_postgres_server: Server) -> Iterator[str]:
    dsn = flux_postgres_server.create_database()
    yield dsn
    flux_postgres_server.drop_database(dsn)


def has_database(server: Server, dsn: str) -> bool:
    with closing(Statements(own_server=server.is_own)) as statements:
        return bool(statements.fetch_value(dsn, "SELECT true"))


@pytest.mark.parametrize("method", REFUSED)
def test_statements_of_a_child_are_refused(method: str, flux_postgres_server: Server, dsn: str) -> None:
    """The thread that runs statements was not forked: the error says so, rather than waiting for it without end."""
    said = run_in_child(lambda: REFUSED[method](flux_postgres_server, dsn))
    assert said.startswith("RuntimeError: this server object was made before the process forked")
    assert "start_server(dsn)" in said
    assert has_database(flux_postgres_server, dsn)


@pytest.mark.parametrize("method", ALLOWED)
def test_a_child_may_look_at_the_server(method: str, flux_postgres_server: Server, dsn: str) -> None:
    """Methods that need no statement work, and closing the object in the child costs the parent nothing."""
    assert run_in_child(lambda: ALLOWED[method](flux_postgres_server, dsn)) == ""
    assert has_database(flux_postgres_server, dsn)
    flux_postgres_server.drop_database(flux_postgres_server.create_database())


def test_a_child_that_leaves_the_block_stops_nothing() -> None:
    """A child forked inside `with start_server()` may end as it likes: the server is the parent's."""
    parent = os.getpid()
    try:
        with start_server("local") as server:
            dsn = server.create_database()
            if child := os.fork():
                assert os.waitpid(child, 0)[1] == 0
                assert has_database(server, dsn)
    finally:
        if os.getpid() != parent:
            os._exit(sys.exc_info()[0] is not None)
