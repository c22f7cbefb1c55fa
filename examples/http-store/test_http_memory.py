"""Runs the contract on the service: `pytest test_http_memory.py`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from http_memory import HttpMemory

from flux_memory.testkit import ALL, Capability, MemoryContract, Proxied


class Space(NamedTuple):
    """A space of the running service."""

    url: str
    name: str
    file: Path


def post(url: str, value: object) -> None:
    """Send a value to the service."""
    with urlopen(Request(url, json.dumps(value).encode(), method="POST"), timeout=30):
        pass


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL and the directory of the service: a process of its own, which all tests share."""
    directory = tmp_path_factory.mktemp("spaces")
    command = [sys.executable, str(Path(__file__).with_name("service.py")), str(directory), "--port=0", "--for-tests"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), directory
        process.terminate()


@pytest.fixture
def space(service: tuple[str, Path]) -> Iterator[Space]:
    """A space of this test's own."""
    url, directory = service
    name = uuid4().hex
    yield Space(url, name, directory / f"{name}.db")
    post(f"{url}/drop", name)


class TestHttp(MemoryContract):
    """The contract on a space of the service."""

    backend = "HTTP"
    capabilities = ALL & ~Capability.FEEDBACK

    @pytest.fixture
    def memory_factory(self, space: Space) -> Callable[[], HttpMemory]:
        return lambda: HttpMemory(space.url, space.name)

    @pytest.fixture
    def proxied_memory_factory(self, space: Space) -> Proxied:
        return Proxied(space.url, lambda url: HttpMemory(url, space.name))

    @pytest.fixture
    def clock_at(self, space: Space) -> Callable[[datetime], AbstractAsyncContextManager[None]]:
        @asynccontextmanager
        async def clock_at(moment: datetime) -> AsyncIterator[None]:
            post(f"{space.url}/clock", moment.isoformat())
            yield
            post(f"{space.url}/clock", None)

        return clock_at

    @pytest.fixture
    def corrupt_message(self, space: Space) -> Callable[[str, str], Awaitable[None]]:
        async def corrupt(session_id: str, message_id: str) -> None:
            with closing(sqlite3.connect(space.file)) as db, db:
                sql = "UPDATE messages SET metadata = 'damaged' WHERE session_id = ? AND id = ?"
                db.execute(sql, (session_id, message_id))

        return corrupt

    @pytest.fixture
    def read_raw(self, space: Space) -> Callable[[str, str], Awaitable[Mapping[str, Any] | None]]:
        async def read(session_id: str, message_id: str) -> Mapping[str, Any] | None:
            with closing(sqlite3.connect(space.file)) as db:
                sql = "SELECT role, content, metadata FROM messages WHERE session_id = ? AND id = ?"
                found = db.execute(sql, (session_id, message_id)).fetchone()
            return found and {"role": found[0], "content": found[1], "metadata": json.loads(found[2])}

        return read

    @pytest.fixture
    def hold_locks(
        self, space: Space
    ) -> Callable[[Sequence[tuple[str, str | None]]], AbstractAsyncContextManager[None]]:
        @asynccontextmanager
        async def hold(records: Sequence[tuple[str, str | None]]) -> AsyncIterator[None]:
            # SQLite locks the file, and with it each of the records.
            with closing(sqlite3.connect(space.file, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                yield
                db.execute("ROLLBACK")

        return hold
