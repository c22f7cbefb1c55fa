"""PgBouncer in transaction mode: it works by one setting, whose lack is said, and its restart disturbs nobody."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import pytest
from fault_cluster import meanwhile
from fault_load import Load, through
from fault_report import Fault
from raw_postgres import elsewhere, with_parameter

from flux_memory import BackendUnavailableError, PostgresConversationMemory
from flux_memory.testkit.servers.binaries import server_account

_CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = plain
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = 4
max_client_conn = 100
server_login_retry = 0.2
server_reset_query =
logfile =
"""


class Pooler:
    """A PgBouncer before one server, on a port of its own."""

    def __init__(self, dsn: str, directory: Path) -> None:
        parts = urlsplit(dsn)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._program = shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin")
        assert self._program, "PgBouncer is not installed: apt-get install pgbouncer"
        self._file = directory / "pgbouncer.ini"
        self._file.write_text(
            _CONFIGURATION.format(host=parts.hostname, port=parts.port, own_port=self.port, directory=directory)
        )
        users = directory / "users"
        users.write_text(f'"{unquote(parts.username or "")}" "{unquote(parts.password or "")}"\n')
        self._account = server_account()
        for path in (directory, self._file, users):
            os.chown(path, self._account.user, self._account.group)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        self._process = subprocess.Popen(
            [str(self._program), "-q", str(self._file)],
            user=self._account.user if self._account.is_other else None,
            group=self._account.group if self._account.is_other else None,
            extra_groups=[] if self._account.is_other else None,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self._process.poll() is None, "PgBouncer has ended"
                assert time.monotonic() < deadline, "PgBouncer does not answer"
                time.sleep(0.02)
            else:
                return

    def end(self, how: signal.Signals) -> None:
        """End it, with all connections through it."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=10)
            self._process = None

    def restart(self, how: signal.Signals) -> None:
        """End it and start it again."""
        self.end(how)
        self.start()


@pytest.fixture
def pooler(flux_empty_database: str) -> Iterator[Pooler]:
    """A PgBouncer before the run's server."""
    # Not pytest's own directories, which nobody else can enter.
    directory = Path("/var/tmp") / f"fm-pooler-{os.getpid()}-{time.monotonic_ns()}"
    directory.mkdir(mode=0o700)
    made = Pooler(flux_empty_database, directory)
    try:
        made.start()
        yield made
    finally:
        made.end(signal.SIGKILL)
        shutil.rmtree(directory)


def behind(dsn: str, pooler: Pooler) -> str:
    """The DSN through the pooler, without the one setting."""
    return urlunsplit(urlsplit(elsewhere(dsn, host="127.0.0.1", port=pooler.port)))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.fault("PgBouncer restarted", backend="postgres"), id="restart"),
        pytest.param(signal.SIGKILL, marks=pytest.mark.fault("kill -9 of PgBouncer", backend="postgres"), id="kill -9"),
    ],
)
async def test_the_pooler_is_restarted_under_load(
    pooler: Pooler, flux_empty_database: str, fault: Fault, tmp_path: Path, how: signal.Signals
) -> None:
    """With `statement_cache_size=0` everything works in transaction mode, and goes on when the pooler is back."""

    async def restart(_: Load) -> None:
        await meanwhile(pooler.restart, how)

    dsn = with_parameter(behind(flux_empty_database, pooler), "statement_cache_size=0")
    for number in fault.rounds(2, 50):
        load = await through(fault, dsn, tmp_path / str(number), restart, stored_at=flux_empty_database)
        assert load.unavailable == []


@pytest.mark.asyncio
@pytest.mark.fault("statement_cache_size=0 forgotten behind PgBouncer", backend="postgres")
async def test_the_forgotten_setting_is_said(pooler: Pooler, flux_empty_database: str, fault: Fault) -> None:
    """Two handles get in each other's way, and the error says what to add to the DSN; nothing is stored by halves."""
    dsn = behind(flux_empty_database, pooler)
    async with PostgresConversationMemory(dsn) as one, PostgresConversationMemory(dsn) as two:
        session = await one.create_session(session_id="s")
        outcomes = []
        for _ in range(20):
            outcomes += await asyncio.gather(
                *(memory.add_message(session, "user", "x") for memory in (one, two)),
                *(memory.get_sessions(limit) for memory in (one, two) for limit in range(10)),
                return_exceptions=True,
            )
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert errors
    for error in errors:
        assert isinstance(error, BackendUnavailableError)
        assert "add ?statement_cache_size=0 to the DSN" in str(error)
    added = sum(isinstance(outcome, str) for outcome in outcomes)
    async with PostgresConversationMemory(flux_empty_database) as memory:
        assert len(await memory.get_history(session)) == added
    fault.add(acknowledged=added)
