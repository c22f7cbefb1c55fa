"""A second process that reads the same state of a SQLite file, so that a large one is read on two processors."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import tzinfo
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

from flux_memory.errors import MigrationError
from flux_memory.transfer.preflight import Advance, Findings
from flux_memory.transfer.prepared import Prepared
from flux_memory.transfer.source import Layout, Part


class Helper:
    """The process, as seen from the one that started it. What it reads goes into `prepared`.

    Raises:
        MigrationError: By any method, where the process says what is wrong, or has ended.
    """

    def __init__(self) -> None:
        self.prepared = Prepared()
        self._pipe, theirs = Pipe()
        descriptors = [theirs.fileno(), *self.prepared.descriptors]
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            [sys.executable, "-P", "-m", "flux_memory.transfer.helper_process", *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # It finds what this process finds; and Ctrl-C on a terminal is for this process to tell it.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        theirs.close()

    def open(self, path: Path, parameters: str) -> None:
        """Open the file as `snapshot.connect` does; an earlier one is let go."""
        self._ask("open", path, parameters)

    def preflight(self, layout: Layout, naive: tzinfo, part: Part, advance: Advance, *, keeps_rows: bool) -> Findings:
        """Read a part of the source, as `preflight.preflight` does."""
        found: Findings = self._ask("preflight", layout, naive, part, keeps_rows, advance=advance)
        return found

    def kill(self) -> None:
        """End it, whatever it does; from any thread."""
        self._process.kill()

    def close(self) -> None:
        """End it, and let go of what it read."""
        self.kill()
        self._process.wait()
        self._pipe.close()
        self.prepared.close()

    def _ask(self, *question: Any, advance: Advance | None = None) -> Any:
        try:
            self._pipe.send(question)
            while isinstance(answer := self._pipe.recv(), int):
                if advance is not None:
                    advance(answer)
        except (EOFError, OSError) as error:
            raise MigrationError(
                f"the process that reads the second half of the file ended with exit code {self._process.wait()}, "
                "perhaps for want of memory; nothing was changed, run again"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer
