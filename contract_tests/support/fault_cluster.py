"""A PostgreSQL of a test's own that can be killed, stopped and started again on the same port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from raw_postgres import elsewhere, rows
from waiting import comes_true, until

from flux_memory.testkit.servers import start_server
from flux_memory.testkit.servers.binaries import run_as, server_account
from flux_memory.testkit.servers.ownership import is_running

Result = TypeVar("Result")

_ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
_PATIENCE: Final = 30.0


class Cluster:
    """A server from local binaries, and one database on it.

    Args:
        data: Its data directory.
        programs: Where `postgres` and its companions are.
        admin_dsn: The maintenance database.
        dsn: A database for the test.
    """

    def __init__(self, data: Path, programs: Path, admin_dsn: str, dsn: str) -> None:
        self.data: Final = data
        self.log: Final = data.with_name(f"{data.name}.log")
        self.log.touch()
        # The server's user writes to it.
        os.chown(self.log, data.stat().st_uid, data.stat().st_gid)
        self.admin_dsn: Final = admin_dsn
        self.dsn: Final = dsn
        self._programs = programs

    def standby(self, address: str | None = None) -> Cluster:
        """Make a streaming replica, started: on a port of its own, or on this server's at another address."""
        data = self.data.with_name("standby")
        self.run(f'"$0" -D "{data}" -d "{self.admin_dsn}" -R -X stream -c fast 2>>"$2"', "pg_basebackup")
        place: dict[str, Any] = {"host": address}
        settings = f"listen_addresses = '{address}'\nunix_socket_directories = ''\n"
        if address is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                place = {"port": probe.getsockname()[1]}
            settings = f"port = {place['port']}\n"
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(settings)
        replica = Cluster(data, self._programs, elsewhere(self.admin_dsn, **place), elsewhere(self.dsn, **place))
        replica.start()
        return replica

    def promote(self) -> None:
        """Make a replica a server of its own, and return when it takes writes."""
        self.run('"$0" promote -w -D "$1" >>"$2" 2>&1', "pg_ctl")

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def end(self, how: signal.Signals) -> None:
        """Send the postmaster a signal and wait until it is gone: SIGINT is a fast shutdown, SIGQUIT an immediate."""
        pid = self.pid
        os.kill(pid, how)
        assert comes_true(lambda: not is_running(pid), seconds=_PATIENCE), "the server does not end"

    def start(self) -> None:
        """Start the server again, and return when it takes connections."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            began = self.log.stat().st_size
            pid = int(self.run('"$0" -D "$1" </dev/null >>"$2" 2>&1 & echo $!', "postgres"))
            if self._is_up(pid):
                return
            # The children of a postmaster that was killed go a moment after it.
            with self.log.open(errors="replace") as log:
                log.seek(began)
                said = log.read()
            assert "shared memory" in said or "lock file" in said or "Address already in use" in said, said[-2000:]
        raise TimeoutError("the server does not start again")

    def is_up(self) -> bool:
        """Wait until the server takes connections or has ended; tell which."""
        return (self.data / "postmaster.pid").exists() and self._is_up(self.pid)

    def restart(self, how: signal.Signals) -> None:
        """End the server and start it again."""
        self.end(how)
        self.start()

    def run(self, script: str, program: str) -> str:
        """Run a shell script as the server's user: `$0` is the program, `$1` the data directory, `$2` the log."""
        command = ["/bin/sh", "-c", script, str(self._programs / program), str(self.data), str(self.log)]
        done = run_as(server_account(), command, _ENVIRONMENT)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def _is_up(self, pid: int) -> bool:
        return comes_true(lambda: not is_running(pid) or self._is_ready(pid), seconds=_PATIENCE) and is_running(pid)

    def _is_ready(self, pid: int) -> bool:
        try:
            said = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        # A server that was killed has left its own file.
        return said[:1] == [str(pid)] and said[7:8] in (["ready   "], ["standby "])


@contextmanager
def cluster(settings: Mapping[str, str] | None = None, *, durable: bool = True) -> Iterator[Cluster]:
    """Start a server for the length of the block; durable unless told otherwise."""
    with start_server("local", durable=durable, settings=settings) as server:
        running: Any = server._started.running
        programs = Path(f"/proc/{running.pid}/exe").readlink().parent
        yield Cluster(Path(running.directory) / "pg" / "data", programs, running.dsn, server.create_database())


async def meanwhile(work: Callable[..., Result], *arguments: Any) -> Result:
    """Do what blocks on a thread, so that the load goes on."""
    return await asyncio.to_thread(work, *arguments)


@contextmanager
def pair(**settings: str) -> Iterator[tuple[Cluster, Cluster, str]]:
    """A primary, its replica, and the DSN that names both."""
    with cluster({"wal_level": "replica", **settings}) as primary:
        replica = primary.standby()
        address = primary.dsn.partition("@")[2].partition("/")[0]
        other = replica.dsn.partition("@")[2].partition("/")[0]
        both = primary.dsn.replace(f"@{address}/", f"@{address},{other}/")
        yield primary, replica, f"{both}?target_session_attrs=read-write"


async def caught_up(primary: Cluster, replica: Cluster) -> None:
    """Wait until the replica has all that the primary has."""
    ((position,),) = await rows(primary.dsn, "SELECT pg_current_wal_lsn()::text")

    async def has_it() -> object:
        return (await rows(replica.dsn, f"SELECT pg_last_wal_replay_lsn() >= '{position}'"))[0][0]

    await until(has_it)
