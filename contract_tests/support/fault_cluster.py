"""A PostgreSQL server for one test, which can be killed, stopped and started again on the same port."""

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

from raw_postgres import fetch_rows, with_address
from waiting import becomes_true, wait_until

from flux_memory.testkit.servers import start_server
from flux_memory.testkit.servers.binaries import run_as, server_account
from flux_memory.testkit.servers.directories import record_process
from flux_memory.testkit.servers.ownership import is_running

Result = TypeVar("Result")

_ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
_PATIENCE_SECONDS: Final = 30.0


class Cluster:
    """A server from local binaries, and one database on it.

    Attributes:
        data: The data directory.
        log: The server's log.
        admin_dsn: The DSN of the maintenance database.
        dsn: The DSN of the test's database.
    """

    def __init__(self, data: Path, programs: Path, admin_dsn: str, dsn: str) -> None:
        self.data: Final = data
        self.log: Final = data.with_name(f"{data.name}.log")
        self.admin_dsn: Final = admin_dsn
        self.dsn: Final = dsn
        self._programs = programs
        self.run(': >>"$2"', "postgres")

    def start_standby(self, address: str | None = None, name: str = "standby") -> Cluster:
        """Start a streaming replica, on its own port or at another address with the same port."""
        data = self.data.with_name(name)
        self.run(f'"$0" -D "{data}" -d "{self.admin_dsn}" -R -X stream -c fast 2>>"$2"', "pg_basebackup")
        place: dict[str, Any] = {"host": address}
        settings = f"listen_addresses = '{address}'\nunix_socket_directories = ''\n"
        if address is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                place = {"port": probe.getsockname()[1]}
            settings = f"port = {place['port']}\n"
        self.run(f"cat >>'{data}/postgresql.conf' <<'END'\n{settings}END", "postgres")
        replica = Cluster(data, self._programs, with_address(self.admin_dsn, **place), with_address(self.dsn, **place))
        replica.start()
        return replica

    def promote(self) -> None:
        """Promote a replica, and return when it accepts writes."""
        self.run('"$0" promote -w -D "$1" >>"$2" 2>&1', "pg_ctl")

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def list_processes(self) -> list[int]:
        """Return the process ids of the postmaster and of its children."""
        pid = self.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def end(self, how: signal.Signals) -> None:
        """Signal the postmaster and wait for its end: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        pid = self.pid
        os.kill(pid, how)
        assert becomes_true(lambda: not is_running(pid), seconds=_PATIENCE_SECONDS), "the server does not end"

    def start(self) -> None:
        """Start the server again, and return when it accepts connections."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            began = self.log.stat().st_size
            pid = int(self.run('"$0" -D "$1" </dev/null >>"$2" 2>&1 & echo $!', "postgres"))
            record_process(self.data.parents[1], pid, server_account().user)
            if self._is_up(pid):
                return
            # Children of a killed postmaster may outlive it for a moment and keep its resources.
            with self.log.open(errors="replace") as log:
                log.seek(began)
                said = log.read()
            assert "shared memory" in said or "lock file" in said or "Address already in use" in said, said[-2000:]
        raise TimeoutError("the server does not start again")

    def is_up(self) -> bool:
        """Wait until the server accepts connections or has ended; return whether it accepts them."""
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
        return becomes_true(
            lambda: not is_running(pid) or self._is_ready(pid), seconds=_PATIENCE_SECONDS
        ) and is_running(pid)

    def _is_ready(self, pid: int) -> bool:
        try:
            said = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        # A killed server leaves its old file behind.
        return said[:1] == [str(pid)] and said[7:8] in (["ready   "], ["standby "])


@contextmanager
def run_cluster(settings: Mapping[str, str] | None = None, *, durable: bool = True) -> Iterator[Cluster]:
    """Run a server during the block, with fsync unless `durable` is false."""
    with start_server("local", durable=durable, settings=settings) as server:
        running: Any = server._started.running
        programs = Path(f"/proc/{running.pid}/exe").readlink().parent
        yield Cluster(Path(running.directory) / "pg" / "data", programs, running.dsn, server.create_database())


async def run_blocking(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run a blocking function on a thread, so that the load continues."""
    return await asyncio.to_thread(work, *arguments)


@contextmanager
def primary_and_replica(**settings: str) -> Iterator[tuple[Cluster, Cluster, str]]:
    """Run a primary and its replica; yield both and the DSN that lists both hosts."""
    with run_cluster({"wal_level": "replica", **settings}) as primary:
        replica = primary.start_standby()
        address = primary.dsn.partition("@")[2].partition("/")[0]
        other = replica.dsn.partition("@")[2].partition("/")[0]
        both = primary.dsn.replace(f"@{address}/", f"@{address},{other}/")
        yield primary, replica, f"{both}?target_session_attrs=read-write"


async def wait_for_replica(primary: Cluster, replica: Cluster) -> None:
    """Wait until the replica has replayed everything that the primary has written."""
    ((position,),) = await fetch_rows(primary.dsn, "SELECT pg_current_wal_lsn()::text")

    async def has_it() -> object:
        return (await fetch_rows(replica.dsn, f"SELECT pg_last_wal_replay_lsn() >= '{position}'"))[0][0]

    await wait_until(has_it)
