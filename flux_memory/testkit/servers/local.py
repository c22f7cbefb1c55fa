"""A throwaway PostgreSQL from local binaries: everything is in one directory and nothing is kept."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

from flux_memory.testkit.servers.binaries import (
    Account,
    Binaries,
    copy_within_reach,
    find_binaries,
    run_as,
    server_account,
    within_reach,
)
from flux_memory.testkit.servers.cluster_cache import ClusterArchive, archive_of
from flux_memory.testkit.servers.directories import new_directory, record_process, remove_directory
from flux_memory.testkit.servers.ownership import is_running
from flux_memory.testkit.servers.roles import quote_name
from flux_memory.testkit.servers.running import ServerUnavailable, Wishes, failed_if_failing, unavailable_if_failing
from flux_memory.testkit.servers.statements import Statements
from flux_memory.testkit.servers.verifiers import make_verifier

_ROLE: Final = "postgres"
_START_SECONDS: Final = 60.0
_STATUS_BYTES: Final = 4096
_PORTS_TRIED: Final = 5
_ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "LC_ALL": "C",
    # Without it, initdb compares this machine's clock with every time zone.
    "TZ": "UTC",
}
_INITDB_OPTIONS: Final = (
    *("--no-sync", f"--username={_ROLE}", "--pwfile=/dev/stdin"),
    *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
)
# initdb may read its standard input only through a pipe that its own user has made.
_THROUGH_PIPE: Final = 'cat | "$0" "$@"'
# The shell exits immediately, so the server is not our child: the process that started it may end first.
_IN_BACKGROUND: Final = 'cat >>"$1/postgresql.conf"; "$0" -D "$1" </dev/null >&2 & echo $!'


@dataclass(frozen=True)
class LocalServer:
    """A server that runs from local binaries."""

    dsn: str
    socket_dsn: str
    origin: str
    directory: str
    pid: int

    @property
    def is_own(self) -> bool:
        """True: its DSN has an address, a role and a password."""
        return True

    def log_tail(self, lines: int) -> str:
        """Return the newest lines of the server's log."""
        return _tail(_Layout(Path(self.directory)).log, lines)

    def stop(self) -> None:
        """Stop the server and remove its directory."""
        if not remove_directory(Path(self.directory)):
            raise ServerUnavailable(f"the server's directory {self.directory} cannot be removed")


@dataclass(frozen=True)
class _Layout:
    """The files of a server. Only the account's directory is the account's.

    If this is root, a process of the account may replace each name in that directory by a link at any time. So no file
    there is written, and the only one that is read is opened without following a link.
    """

    top: Path

    @property
    def log(self) -> Path:
        return self.top / "log"

    @property
    def home(self) -> Path:
        """The account's directory, which also holds the socket."""
        return self.top / "pg"

    @property
    def data(self) -> Path:
        return self.home / "data"


def start(wishes: Wishes, mark: str) -> LocalServer:
    """Create a cluster, from the cache if it has one of these programs, and start it."""
    found = find_binaries(wishes.version)
    account = server_account()
    with failed_if_failing("no local server can be started"):
        return _start_any(found, account, wishes, mark)


def _start_any(found: Binaries, account: Account, wishes: Wishes, mark: str) -> LocalServer:
    archive = archive_of(found.directory, list(_INITDB_OPTIONS))
    if archive is not None:
        try:
            if archive.path.exists():
                return _start(found, account, wishes, mark, partial(_unpack, archive))
        except (ServerUnavailable, OSError):
            # The archive may be damaged, or in a directory that is closed to this user. If the settings are wrong, the
            # new cluster does not start either.
            archive.discard()
    return _start(found, account, wishes, mark, partial(_initialise, archive))


def _start(
    found: Binaries, account: Account, wishes: Wishes, mark: str, create: Callable[[Binaries, Account, _Layout], str]
) -> LocalServer:
    reachable = within_reach(found, account)
    top = new_directory(mark, in_memory=not wishes.durable, executable=not reachable)
    layout = _Layout(top)
    try:
        if account.is_other:
            top.chmod(0o711)
        layout.home.mkdir(mode=0o700)
        if account.is_other:
            os.chown(layout.home, account.user, account.group)
        binaries = found if reachable else copy_within_reach(found, top / "programs")
        first_password = create(binaries, account, layout)
        port, pid = _launch(binaries, account, layout, wishes)
        password = secrets.token_urlsafe(18)
        _change_password(port, first_password, password)
    except BaseException:
        remove_directory(top)
        raise
    return LocalServer(
        dsn=_dsn(port, password),
        socket_dsn=f"postgresql://{_ROLE}:{password}@/postgres?host={quote(str(layout.home))}&port={port}",
        origin=f"local binaries, {binaries.origin}",
        directory=str(top),
        pid=pid,
    )


def _unpack(archive: ClusterArchive, _binaries: Binaries, account: Account, layout: _Layout) -> str:
    """Unpack the archive's cluster, and return the password of its role."""
    opened = archive.open()
    if opened is None:
        raise ServerUnavailable(f"{archive.path} cannot be read, or another user can write it")
    file, password = opened
    with file:
        done = run_as(account, ["tar", "-xf", "-", "-C", str(layout.home)], _ENVIRONMENT, input=file)
    if done.returncode != 0:
        raise ServerUnavailable(f"{archive.path} cannot be unpacked: {done.stdout.strip()[-500:]}")
    return password


def _initialise(archive: ClusterArchive | None, binaries: Binaries, account: Account, layout: _Layout) -> str:
    """Create a cluster, keep a copy in the archive if there is one, and return the password of its role."""
    password = secrets.token_urlsafe(18)
    command = ["/bin/sh", "-c", _THROUGH_PIPE, str(binaries.directory / "initdb"), f"--pgdata={layout.data}"]
    done = run_as(account, [*command, *_INITDB_OPTIONS], _ENVIRONMENT, input=f"{password}\n")
    if done.returncode != 0:
        raise ServerUnavailable(f"initdb of {binaries.origin} failed: {done.stdout.strip()[-500:]}")
    if archive is not None:
        # A disk that is full or read-only costs the next run a second.
        with suppress(OSError), archive.rewrite(password) as file:
            command = ["tar", "-cf", "-", "-C", str(layout.home), layout.data.name]
            packed = run_as(account, command, _ENVIRONMENT, output=file.fileno(), errors=subprocess.DEVNULL)
            if packed.returncode != 0:
                raise OSError(f"tar failed with {packed.returncode}")
    return password


def _change_password(port: int, old: str, new: str) -> None:
    """Give the role a password of this server's own: all clusters from one archive begin with the same one."""
    with unavailable_if_failing("the server does not answer"), closing(Statements(own_server=True)) as statements:
        statements.execute(_dsn(port, old), f"ALTER ROLE {_ROLE} PASSWORD '{make_verifier(new)}'")


def _dsn(port: int, password: str) -> str:
    return f"postgresql://{_ROLE}:{password}@127.0.0.1:{port}/postgres"


def _launch(binaries: Binaries, account: Account, layout: _Layout, wishes: Wishes) -> tuple[int, int]:
    for _ in range(_PORTS_TRIED):
        port = _free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            # A list, in which a comma ends an unquoted path.
            "unix_socket_directories": quote_name(str(layout.home)),
            # In the data directory: in /dev/shm a killed server would leave it behind.
            "dynamic_shared_memory_type": "mmap",
            **wishes.configuration(),
        }
        pid = _run(binaries, account, layout, settings)
        if _becomes_ready(layout, pid):
            return port, pid
        # Another process took the port after we checked it.
        if "Address already in use" not in (said := _tail(layout.log, 15)):
            raise ServerUnavailable(f"the server of {binaries.origin} did not start:\n{said}")
    raise ServerUnavailable(f"no free port in {_PORTS_TRIED} attempts")


def _run(binaries: Binaries, account: Account, layout: _Layout, settings: Mapping[str, str]) -> int:
    """Start the server with these settings added, and return its pid."""
    command = ["/bin/sh", "-c", _IN_BACKGROUND, str(binaries.directory / "postgres"), str(layout.data)]
    layout.log.touch(mode=0o600)
    with layout.log.open("ab") as log:
        started = run_as(account, command, _ENVIRONMENT, input=_as_file(settings), errors=log.fileno())
    pid = int(started.stdout)
    record_process(layout.top, pid, account.user)
    return pid


def _becomes_ready(layout: _Layout, pid: int) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while is_running(pid) and time.monotonic() < deadline:
        # The server writes its status to the eighth line, for pg_ctl.
        if _read_status(layout).splitlines()[7:8] == [b"ready   "]:
            return True
        time.sleep(0.005)
    return False


def _read_status(layout: _Layout) -> bytes:
    """Return the content of `postmaster.pid`; nothing if there is none, or if the name leads elsewhere."""
    with ExitStack() as opened, suppress(OSError):
        data = os.open(layout.data, os.O_DIRECTORY | os.O_NOFOLLOW)
        opened.callback(os.close, data)
        # Opening a FIFO would wait for its writer.
        status = os.open("postmaster.pid", os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=data)
        opened.callback(os.close, status)
        return os.read(status, _STATUS_BYTES)
    return b""


def _as_file(settings: Mapping[str, str]) -> str:
    quoted = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in settings.items()}
    return "\n" + "".join(f"{name} = '{value}'\n" for name, value in quoted.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path, lines: int) -> str:
    try:
        with log.open("rb") as file:
            # Enough for the requested lines, however long the log is.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
