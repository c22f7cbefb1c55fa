"""Real processes for clauses: forked, so that a binding's factory may be a lambda; told when to go, heard, killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import traceback
import warnings
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest

from flux_memory import Memory

Tell = Callable[[object], None]
Work = Callable[[Callable[[], Memory], Tell], Awaitable[None]]
"""Runs in the child on a fresh event loop: opens handles by the first argument, reports by the second."""

CHILD_SECONDS: Final = 30.0
"""How long a child may be silent, or take to exit."""


class Child:
    """A forked process that does some work once it is told to go, and tells what it saw."""

    def __init__(self, factory: Callable[[], Memory], work: Work) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            pytest.skip("unverified: this platform cannot fork")
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, self._connection, factory, work), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 and later warn of threads beside a fork; here no thread of a handle is alive.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()

    def go(self) -> None:
        """Let the work begin."""
        self._connection.send("go")

    def hear(self) -> Any:
        """Return the next thing told.

        Raises:
            EOFError: The child is gone and has told everything.
        """
        if not self._connection.poll(CHILD_SECONDS):
            self.kill()
            pytest.fail(f"another process was silent for {CHILD_SECONDS:.0f} s: its call hangs")
        kind, value = self._connection.recv()
        if kind == "failed":
            self.finish()
            pytest.fail(f"another process failed: {value}")
        return value

    def finish(self) -> list[Any]:
        """Return what is still untold, once the child has exited by itself."""
        told: list[Any] = []
        try:
            while True:
                told.append(self.hear())
        except (EOFError, ConnectionResetError):
            pass
        self._process.join(CHILD_SECONDS)
        if self._process.exitcode is None:
            self.kill()
            pytest.fail(f"another process did not exit within {CHILD_SECONDS:.0f} s of its work's end")
        self._connection.close()
        return told

    def kill(self) -> list[Any]:
        """End the child as `kill -9` does; return what it had told."""
        self._process.kill()
        self._process.join(CHILD_SECONDS)
        told: list[Any] = []
        try:
            while True:
                told.append(self._connection.recv()[1])
        except (EOFError, ConnectionResetError, OSError):
            self._connection.close()
        return told


def run_together(*children: Child) -> list[list[Any]]:
    """Let the children go at the same time; return what each told, in their order."""
    for child in children:
        child.go()
    return [child.finish() for child in children]


def _main(connection: Connection, parents: Connection, factory: Callable[[], Memory], work: Work) -> None:
    parents.close()
    connection.recv()
    try:
        asyncio.run(_work(connection, factory, work))
    except BaseException as error:  # noqa: BLE001 - the parent reports it, whatever it is
        # What happened comes first: a report shows the beginning.
        connection.send(("failed", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    connection.close()


async def _work(connection: Connection, factory: Callable[[], Memory], work: Work) -> None:
    await work(factory, lambda value: connection.send(("told", value)))
