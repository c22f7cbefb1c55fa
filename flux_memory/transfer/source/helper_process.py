"""Runs as a separate process: reads part of a SQLite file for the process that started it, and ends with it."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import suppress
from datetime import tzinfo
from multiprocessing.connection import Connection
from pathlib import Path

from flux_memory.errors import FluxMemoryError
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.preflight import PreflightResult, preflight
from flux_memory.transfer.source.reader import Layout, Part, Source
from flux_memory.transfer.source.snapshot import connect


class _Answering:
    def __init__(self, pipe: Connection, spool: Spool) -> None:
        self._pipe = pipe
        self._spool = spool
        self._db: sqlite3.Connection | None = None

    def open(self, path: Path, parameters: str) -> None:
        if self._db is not None:
            self._db.close()
        self._db = connect(path, parameters)

    def preflight(self, layout: Layout, naive: tzinfo, part: Part, keeps_rows: bool) -> PreflightResult:
        assert self._db is not None  # noqa: S101 - `open` comes first
        self._spool.keeps_rows = keeps_rows
        source = Source(self._db, layout, naive)
        return preflight(source, RowValidator(naive), self._spool, self._pipe.send, part)

    def run(self) -> None:
        while True:
            method, *arguments = self._pipe.recv()
            try:
                answer = getattr(self, method)(*arguments)
            except (FluxMemoryError, sqlite3.Error) as error:
                answer = error
            self._pipe.send(answer)


if __name__ == "__main__":
    pipe, *files = map(int, sys.argv[1:])
    # The starting process has ended.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _Answering(Connection(pipe), Spool(files)).run()
