"""Real processes for clauses: started, read from and killed. Forked, so that a binding's factory may be a lambda."""

from __future__ import annotations

import asyncio
import multiprocessing
import traceback
import warnings
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any, Final, cast

import pytest

from flux_memory import Memory
from flux_memory.testkit.recorder import Transcript
from flux_memory.testkit.timeouts import Timeouts
from flux_memory.testkit.verdicts import unverified

Tell = Callable[[object], None]
Work = Callable[[Callable[[], Memory], Tell], Awaitable[None]]
"""Runs in the child on a new event loop: the first argument opens handles, the second reports values."""

EXIT_SECONDS: Final = 30.0
"""How long a child may take to exit after its work."""


class Child:
    """A forked process that waits for `go()`, does some work and reports values.

    Args:
        factory: Opens a handle in the child.
        work: What the child does.
        timeouts: How long a call of the child may take.
        clause_id: The clause that the child works for.
    """

    def __init__(self, factory: Callable[[], Memory], work: Work, timeouts: Timeouts, clause_id: str) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            unverified("this platform cannot fork")
        self._timeouts, self._clause_id = timeouts, clause_id
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, self._connection, factory, work), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 and later warn about forks with running threads; no handle has a running thread here.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()

    def go(self) -> None:
        """Start the work."""
        self._connection.send("go")

    def hear(self) -> Any:
        """Return the next reported value.

        Raises:
            EOFError: The child has exited, and all of its reports were read.
        """
        kind, value = "ended", None
        while kind == "ended":
            seconds, cut = self._timeouts.call_seconds, self._timeouts.call_cut
            if not self._connection.poll(seconds):
                self._timeouts.shorten(self._clause_id)
                self.kill()
                pytest.fail(f"a call of another process hangs: none ended within {seconds:g} s{cut}")
            kind, value = self._connection.recv()
        if kind == "failed":
            self.finish()
            pytest.fail(f"another process failed: {value}")
        return value

    def finish(self) -> list[Any]:
        """Wait until the child exits, and return its remaining reports."""
        told: list[Any] = []
        try:
            while True:
                told.append(self.hear())
        except (EOFError, ConnectionResetError):
            pass
        self._process.join(EXIT_SECONDS)
        if self._process.exitcode is None:
            self.kill()
            pytest.fail(f"another process did not exit within {EXIT_SECONDS:g} s after its work")
        self._connection.close()
        return told

    def kill(self) -> list[Any]:
        """Kill the child with SIGKILL, and return its reports."""
        self._process.kill()
        self._process.join(EXIT_SECONDS)
        told: list[Any] = []
        try:
            while True:
                kind, value = self._connection.recv()
                told += [value] if kind != "ended" else []
        except (EOFError, ConnectionResetError, OSError):
            self._connection.close()
        return told


def run_together(*children: Child) -> list[list[Any]]:
    """Start the children's work at the same time; return the reports of each, in order."""
    for child in children:
        child.go()
    return [child.finish() for child in children]


def _main(connection: Connection, parents: Connection, factory: Callable[[], Memory], work: Work) -> None:
    parents.close()
    connection.recv()
    try:
        asyncio.run(_work(connection, factory, work))
    except BaseException as error:  # noqa: BLE001 - the parent reports it
        # The error comes first, because reports show only the beginning.
        connection.send(("failed", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    connection.close()


async def _work(connection: Connection, factory: Callable[[], Memory], work: Work) -> None:
    # The parent sees that no call hangs, however long all of them take.
    transcript = Transcript(on_end=lambda: connection.send(("ended", None)))
    await work(lambda: cast("Memory", transcript.record(factory())), lambda value: connection.send(("told", value)))
