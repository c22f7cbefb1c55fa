"""Shares one server between the processes of a run: the first one to need it starts it, the run's owner stops it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from flux_memory.testkit.servers.container import ContainerServer
from flux_memory.testkit.servers.directories import remove_directory
from flux_memory.testkit.servers.external import ExternalServer
from flux_memory.testkit.servers.local import LocalServer
from flux_memory.testkit.servers.running import Running, ServerFailed, ServerUnavailable, Started

_PROVIDERS: Final[dict[str, Callable[..., Running]]] = {
    kind.__name__: kind for kind in (ContainerServer, ExternalServer, LocalServer)
}


class SharedServer:
    """The shared server, recorded in a directory whose path all processes of the run derive."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def _state(self) -> Path:
        return self._directory / "server.json"

    @property
    def _outlives(self) -> Path:
        return self._directory / "outlives"

    def outlive(self) -> None:
        """Keep the server running after the run. The next run that starts one here stops it, as its owner has ended."""
        self._outlives.touch()

    def attach(self, start: Callable[[], Started]) -> Started:
        """Return the run's server; call `start` if no process has. A failed start is remembered too."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        if self._directory.lstat().st_uid != os.geteuid():
            raise ServerUnavailable(f"{self._directory} belongs to another user")
        with self._locked():
            if (found := self.look()) is not None:
                return found
            try:
                started = start()
            except ServerUnavailable as error:
                self._write({"unavailable": str(error), "failed": isinstance(error, ServerFailed)})
                raise
            try:
                self._write({"provider": type(started.running).__name__, **asdict(started)})
            except BaseException:
                started.running.stop()
                raise
            return started

    def look(self) -> Started | None:
        """Return the run's server if a process has started it."""
        if not self._state.exists():
            return None
        state = json.loads(self._state.read_text())
        if "unavailable" in state:
            raise (ServerFailed if state["failed"] else ServerUnavailable)(state["unavailable"])
        running = _PROVIDERS[state["provider"]](**state["running"])
        return Started(running, state["version"], state["seconds"], tuple(state["passed_over"]))

    def stop(self) -> None:
        """Stop the server, unless it is kept after the run, and remove the record."""
        if not self._directory.exists():
            return
        # Wait for a worker that is still starting it.
        with self._locked():
            try:
                found = self.look()
            except ServerUnavailable:
                found = None
            if found is not None and not self._outlives.exists():
                found.running.stop()
        remove_directory(self._directory)

    def _write(self, state: dict[str, Any]) -> None:
        # Atomically: the controller reads without the lock.
        draft = self._state.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        draft.replace(self._state)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
