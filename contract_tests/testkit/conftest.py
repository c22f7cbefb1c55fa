"""Fixtures of the tests of throwaway servers: a local server, and statements that run on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from flux_memory.testkit.servers import Server, start_server
from flux_memory.testkit.servers.statements import Statements


@pytest.fixture
def statements() -> Iterator[Statements]:
    """Runs statements on any server without an event loop."""
    with closing(Statements()) as found:
        yield found


@pytest.fixture(scope="module")
def local_server() -> Iterator[Server]:
    """A server from local binaries."""
    with start_server("local") as server:
        yield server


@pytest.fixture
def without_test_dsn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignores the server that the developer's environment names."""
    monkeypatch.delenv("FLUX_MEMORY_TEST_DSN", raising=False)
