"""The server of a pytest run as one of its processes sees it: the controller or an xdist worker."""

from __future__ import annotations

from functools import cached_property

from flux_memory.testkit.servers.choice import launch
from flux_memory.testkit.servers.run_identity import RunIdentity
from flux_memory.testkit.servers.running import ServerUnavailable, Wishes, describe, unavailable_if_failing
from flux_memory.testkit.servers.server import Server
from flux_memory.testkit.servers.sharing import SharedServer


class PostgresRun:
    """The run's server. It starts when the first process of the run requests it."""

    def __init__(self, identity: RunIdentity, choice: str, wishes: Wishes) -> None:
        """Prepare the run without starting a server.

        Args:
            identity: The run, the same in all its processes.
            choice: The value of `--flux-postgres`.
            wishes: How to start the server.
        """
        self._identity = identity
        self._choice = choice
        self._wishes = wishes
        self._server: Server | None = None
        self._unavailable: ServerUnavailable | None = None

    @cached_property
    def _agreement(self) -> SharedServer:
        return SharedServer(self._identity.directory(self._wishes.version))

    def server(self) -> Server:
        """Return the run's server; start it if necessary."""
        if self._unavailable is not None:
            raise self._unavailable
        if self._server is None:
            try:
                with unavailable_if_failing("the run's processes cannot share a server"):
                    started = self._agreement.attach(lambda: launch(self._choice, self._wishes, self._identity.mark))
                self._server = Server(started, run=self._identity.secret)
            except ServerUnavailable as error:
                self._unavailable = error
                raise
        return self._server

    @property
    def has_own_server(self) -> bool:
        """Whether this process uses a server that was started for the run."""
        return self._server is not None and self._server.is_own

    def keep(self, dsn: str) -> str:
        """Copy a database of this run, keep the server running after the run, and return the copy's DSN."""
        kept = self.server().keep_database(dsn)
        self._agreement.outlive()
        return kept

    def log_tail(self, lines: int) -> str:
        """Return the newest lines of the server's log, if this process uses it."""
        if self._server is None:
            return ""
        try:
            return self._server.log_tail(lines)
        except Exception as error:  # noqa: BLE001 - a test's report does not fail with its server
            return f"(the log cannot be read: {describe(error)})"

    def report(self) -> str | None:
        """Return which server runs, or why none does; None until a process of the run requests it."""
        try:
            started = self._agreement.look()
        except ServerUnavailable as error:
            wanted = f" of version {self._wishes.version}" if self._wishes.version else ""
            return f"none{wanted}: {error}"
        return str(started) if started is not None else None

    def close(self) -> None:
        """Release the server, which keeps running."""
        if self._server is not None:
            self._server.close()

    def stop(self) -> None:
        """Stop the server, whichever process started it, unless it is kept after the run."""
        self._agreement.stop()
