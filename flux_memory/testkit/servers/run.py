"""What one process of a pytest run, the controller or an xdist worker, knows of the run's server."""

from __future__ import annotations

from flux_memory.testkit.servers.choice import default_image, launch
from flux_memory.testkit.servers.directories import named_directory
from flux_memory.testkit.servers.ownership import mark_of
from flux_memory.testkit.servers.running import ServerUnavailable, Wishes
from flux_memory.testkit.servers.server import Server
from flux_memory.testkit.servers.sharing import SharedServer


class PostgresRun:
    """The run's server as this process sees it. It starts when the first process of the run asks for it."""

    def __init__(self, owner: int, name: str, choice: str, image: str | None) -> None:
        """Make nothing yet.

        Args:
            owner: The pid of the controller, which stops the server.
            name: The run's own, the same in all its processes.
            choice: As `--flux-postgres` says.
            image: As `--flux-postgres-image` says.
        """
        self._mark = mark_of(owner)
        self._agreement = SharedServer(named_directory(self._mark, name))
        self._choice = choice
        self._image = image
        self._server: Server | None = None
        self._unavailable: ServerUnavailable | None = None

    def server(self) -> Server:
        """Return the run's server, started by now."""
        if self._unavailable is not None:
            raise self._unavailable
        if self._server is None:
            wishes = Wishes(self._image or default_image())
            try:
                started = self._agreement.attach(lambda: launch(self._choice, wishes, self._mark))
                self._server = Server(started)
            except ServerUnavailable as error:
                self._unavailable = error
                raise
        return self._server

    def keep(self, dsn: str) -> str:
        """Copy a database of this run, let the server outlive the run, and return the copy's DSN."""
        kept = self.server().keep_database(dsn)
        self._agreement.outlive()
        return kept

    def log_tail(self, lines: int) -> str:
        """Return the newest lines of the server's log, if this process uses it."""
        return self._server.log_tail(lines) if self._server is not None else ""

    def report(self) -> str | None:
        """Say which server runs, or why there is none; None as long as no process of the run has asked."""
        try:
            started = self._agreement.look()
        except ServerUnavailable as error:
            return f"none: {error}"
        return str(started) if started is not None else None

    def close(self) -> None:
        """Let go of the server, which runs on."""
        if self._server is not None:
            self._server.close()

    def stop(self) -> None:
        """Stop the server, whichever process started it, unless it is to outlive the run."""
        self._agreement.stop()
