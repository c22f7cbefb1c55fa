"""The field of a run: a server, a directory for files, and a store and a process for each contender."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from flux_memory.testkit.servers import Server, start_server
from harness.contender_list import Entry
from harness.contender_processes import Runner, Worker
from harness.pgbench import Pgbench

OURS_ON_POSTGRES: Final = "flux:FluxPostgres"
_ROOM: Final = {"max_connections": "400"}
"""Server settings: room for pgbench's clients and the pools of all contenders, which stay open."""


class Field:
    """Opens and fills contenders. Created by `prepared`."""

    def __init__(self, server: Server, directory: Path, peers: str, seed: int, stack: ExitStack) -> None:
        self.server = server
        self._directory = directory
        self._peers = peers
        self._seed = seed
        self._stack = stack
        self._stores = 0

    def open(self, entry: Entry, connections: int, *, long: bool = True) -> Runner:
        """Start a contender on its own store, and fill the store.

        Args:
            entry: The contender.
            connections: The size of its pool.
            long: Whether to add sessions with a long history.
        """
        if not entry.load:
            return self._open_pgbench()
        python = self._peers if entry.own_environment else sys.executable
        worker = self._stack.enter_context(Worker(entry.load, python, self._directory / "log"))
        self._fill(worker, entry.engine, self._new_store(entry.engine), connections, long=long)
        return worker

    def _open_pgbench(self) -> Runner:
        # The library makes and fills its tables.
        dsn = self._new_store("postgres")
        with Worker(OURS_ON_POSTGRES, sys.executable, self._directory / "log") as worker:
            self._fill(worker, "postgres", dsn, 2, long=True)
        directory = self._directory / "pgbench"
        directory.mkdir()
        return Pgbench(dsn, directory)

    def _fill(self, worker: Worker, engine: str, target: str, connections: int, *, long: bool) -> None:
        worker.open(target, engine=engine, connections=connections, seed=self._seed, long=long)

    def _new_store(self, engine: str) -> str:
        self._stores += 1
        return self.server.create_database() if engine == "postgres" else str(self._directory / f"{self._stores}.db")


@contextmanager
def prepared(peers: str, seed: int) -> Iterator[Field]:
    """Start a server with PostgreSQL's default durability; stop it and all contenders at the end.

    Args:
        peers: The interpreter of the peers' environment.
        seed: The seed of the stored messages.
    """
    # Not in /tmp, which may be in memory, where durability costs nothing.
    disk = "/var/tmp" if Path("/var/tmp").is_dir() else None
    with (
        start_server("local", durable=True, settings=_ROOM) as server,
        tempfile.TemporaryDirectory(prefix="flux-memory-bench-", dir=disk, ignore_cleanup_errors=True) as directory,
        ExitStack() as stack,
    ):
        yield Field(server, Path(directory), peers, seed, stack)


def open_all(
    field: Field, entries: Sequence[Entry], connections: int, progress: Callable[[str], None]
) -> dict[tuple[str, str], Runner]:
    """Open contenders; return them by name and engine."""
    runners = {}
    for entry in entries:
        progress(f"filling the store of {entry.name} ({entry.engine})")
        runners[entry.name, entry.engine] = field.open(entry, connections)
    return runners
