"""Reads a large SQLite file on two processors: half in this process, half in a helper process."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import tzinfo
from multiprocessing.connection import Pipe
from pathlib import Path
from threading import Lock
from typing import Any

from flux_memory.errors import MigrationError
from flux_memory.transfer.progress import Advance
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.preflight import PreflightResult, preflight
from flux_memory.transfer.source.reader import EVERYTHING, Layout, Part, Source


class Helper:
    """Starts and controls the helper process, which reads into `spool`.

    Raises:
        MigrationError: From any method: the process reported an error, or has ended.
    """

    def __init__(self) -> None:
        self.spool = Spool()
        self._pipe, theirs = Pipe()
        descriptors = [theirs.fileno(), *self.spool.descriptors]
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            [sys.executable, "-P", "-m", "flux_memory.transfer.source.helper_process", *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # The helper must import the same modules. Ctrl-C on a terminal must reach only this process.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        theirs.close()

    def open(self, path: Path, parameters: str) -> None:
        """Open a file as `snapshot.connect` does, and close the one opened before."""
        self._ask("open", path, parameters)

    def preflight(
        self, layout: Layout, naive: tzinfo, part: Part, advance: Advance, *, keeps_rows: bool
    ) -> PreflightResult:
        """Read a part of the source, as `preflight.preflight` does."""
        found: PreflightResult = self._ask("preflight", layout, naive, part, keeps_rows, advance=advance)
        return found

    def kill(self) -> None:
        """Kill the process; safe from any thread."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, and release the rows that it read."""
        self.kill()
        self._process.wait()
        self._pipe.close()
        self.spool.close()

    def _ask(self, *question: Any, advance: Advance | None = None) -> Any:
        try:
            self._pipe.send(question)
            while isinstance(answer := self._pipe.recv(), int):
                if advance is not None:
                    advance(answer)
        except (EOFError, OSError) as error:
            raise MigrationError(
                f"the process that reads the second half of the file ended with exit code {self._process.wait()}, "
                "perhaps for lack of memory; nothing was changed, run again"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def read_all(
    helper: Helper | None,
    source: Source,
    validator: RowValidator,
    spool: Spool,
    advance: Advance,
    *,
    keeps_rows: bool,
) -> tuple[PreflightResult, list[Spool]]:
    """Preflight a whole source; return the result and the spools, in order.

    Args:
        helper: A helper that has opened the same state of the file, or `None` for a small file.
        source: The source to read.
        validator: Validates rows read by this process.
        spool: Receives the rows read by this process.
        advance: Called with the number of rows read.
        keeps_rows: Whether the rows will be loaded.
    """
    spool.keeps_rows = keeps_rows
    middle = None if helper is None else source.middle()
    if helper is None or middle is None:
        return preflight(source, validator, spool, advance, EVERYTHING), [spool]
    lock = Lock()

    def advance_both(rows: int) -> None:
        with lock:
            advance(rows)

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(
            helper.preflight, source.layout, source.naive, Part(first=middle), advance_both, keeps_rows=keeps_rows
        )
        try:
            found = preflight(source, validator, spool, advance_both, Part(end=middle))
        except BaseException:
            helper.kill()
            raise
        found.include(second.result())
    return found, [spool, helper.spool]
