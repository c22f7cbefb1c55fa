"""A PgBouncer in transaction mode for one test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from raw_postgres import with_address
from waiting import becomes_true

from flux_memory.testkit.servers.binaries import server_account

_CONFIGURATION = """
[databases]
{databases}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = {auth}
auth_file = {directory}/users
pool_mode = {mode}
default_pool_size = {pool_size}
max_client_conn = 100
server_login_retry = 0.2
server_reset_query = {reset}
logfile =
"""


ONLY_IN_POOLER: Final = "only_in_pooler"
"""A user that only the pooler knows, with the password of the server's user."""


class Pooler:
    """A PgBouncer in front of one server, on its own port."""

    def __init__(self, dsn: str, directory: Path, **settings: object) -> None:
        parts = urlsplit(dsn)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._program = shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin")
        assert self._program, "PgBouncer is not installed: apt-get install pgbouncer"
        self._file = directory / "pgbouncer.ini"
        chosen = {"auth": "plain", "mode": "transaction", "pool_size": 4, "databases": "*"} | settings
        chosen["reset"] = "DISCARD ALL" if chosen["mode"] == "session" else ""
        databases = f"{chosen.pop('databases')} = host={parts.hostname} port={parts.port}"
        self._file.write_text(
            _CONFIGURATION.format(own_port=self.port, directory=directory, databases=databases, **chosen)
        )
        users = directory / "users"
        password = unquote(parts.password or "")
        # The pooler knows one user more than the server.
        users.write_text(
            "".join(f'"{user}" "{password}"\n' for user in (unquote(parts.username or ""), ONLY_IN_POOLER))
        )
        self._account = server_account()
        for path in (directory, self._file, users):
            os.chown(path, self._account.user, self._account.group)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the pooler, and return when it accepts connections."""
        self._process = subprocess.Popen(
            [str(self._program), "-q", str(self._file)],
            user=self._account.user if self._account.is_other else None,
            group=self._account.group if self._account.is_other else None,
            extra_groups=[] if self._account.is_other else None,
            stderr=subprocess.DEVNULL,
        )
        running = self._process
        assert becomes_true(lambda: running.poll() is not None or self._answers(), seconds=10), (
            "PgBouncer does not answer"
        )
        assert running.poll() is None, "PgBouncer has ended"

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def end(self, how: signal.Signals) -> None:
        """End the pooler and with it all connections through it."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=10)
            self._process = None

    def restart(self, how: signal.Signals) -> None:
        """End the pooler and start it again."""
        self.end(how)
        self.start()


@contextmanager
def run_pooler(dsn: str, **settings: object) -> Iterator[Pooler]:
    """Run a pooler in front of a server during the block; settings are `auth`, `mode`, `pool_size` and `databases`."""
    # The pooler's user cannot enter pytest's directories.
    directory = Path("/var/tmp") / f"fm-pooler-{os.getpid()}-{time.monotonic_ns()}"
    directory.mkdir(mode=0o700)
    made = Pooler(dsn, directory, **settings)
    try:
        made.start()
        yield made
    finally:
        made.end(signal.SIGKILL)
        shutil.rmtree(directory)


def with_pooler(dsn: str, pooler: Pooler) -> str:
    """Return the DSN through the pooler, without `statement_cache_size`."""
    return urlunsplit(urlsplit(with_address(dsn, host="127.0.0.1", port=pooler.port)))
