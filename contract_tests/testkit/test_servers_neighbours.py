"""Other processes and users of the machine: they gain nothing from a server's start, and lose nothing by its end."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from ordinary_user import become_ordinary_user

from flux_memory.testkit.servers import ServerUnavailable, local, start_server
from flux_memory.testkit.servers.binaries import server_account
from flux_memory.testkit.servers.directories import (
    new_directory,
    processes_of,
    record_process,
    remove_directory,
    sweep_directories,
)
from flux_memory.testkit.servers.ownership import is_running, mark_of, own_mark

ONLY_ROOT: Final = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the programs as another user")
SECRET: Final = "root's secret\n"
BESIDE: Final = ("password", "log", "postgresql.conf", "postmaster.pid", "server.json")
"""Names in the account's directory that the server does not use."""
IN_PLACE: Final = (
    *("log", "data/postgresql.conf", "data/postgresql.auto.conf"),
    *("data/postmaster.pid", "data/pg_hba.conf", "data/PG_VERSION"),
)
"""Names of the server's files. A server that loses them does not start, or ends."""


def plant_forever(names: tuple[str, ...], victim: Path, owner: int) -> None:
    """As the server's user, replace these names by links to the victim wherever the owner starts a server."""
    account = server_account()
    os.setgroups([])
    os.setresgid(account.group, account.group, account.group)
    os.setresuid(account.user, account.user, account.user)
    roots = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    while True:
        for home in (home for root in roots for home in root.glob(f"fm-*-{owner}-*/pg")):
            for name in names:
                with suppress(OSError):
                    (home / name).unlink(missing_ok=True)
                    (home / name).symlink_to(victim)


@contextmanager
def plant_links(names: tuple[str, ...], victim: Path) -> Iterator[None]:
    """Another process plants links for the length of the block."""
    planter = multiprocessing.get_context("fork").Process(target=plant_forever, args=(names, victim, os.getpid()))
    planter.start()
    try:
        yield
        assert planter.is_alive()
    finally:
        planter.kill()
        planter.join()


@ONLY_ROOT
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
@pytest.mark.parametrize("names", [BESIDE, IN_PLACE], ids=["beside the server's files", "in place of them"])
def test_planted_links_lead_to_no_file_of_root(names: tuple[str, ...], tmp_path: Path) -> None:
    """A process of the server's user cannot make root read, write or give away a file of root's."""
    victim = tmp_path / "victim"
    victim.touch(mode=0o600)
    victim.write_text(SECRET)
    before = victim.stat()
    said = []
    with plant_links(names, victim):
        for _ in range(3):
            try:
                with start_server("local") as server:
                    said.append(server.log_tail())
            except ServerUnavailable as error:
                assert names is IN_PLACE, "a link beside the server's files stops it"
                said.append(str(error))
    assert SECRET.strip() not in "".join(said)
    assert victim.read_text() == SECRET
    after = victim.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


@ONLY_ROOT
def test_only_the_servers_own_directory_is_its_users(tmp_path: Path) -> None:
    """Everything that root writes or reads during a server's life is in a directory of root's."""
    with start_server("local") as server:
        top = Path(server._running.directory)  # type: ignore[attr-defined]
        owners = {path.name: path.stat().st_uid for path in (top, *top.iterdir())}
        assert owners.pop("pg") == server_account().user
        assert {"log", "process"} < owners.keys()
        assert set(owners.values()) == {0}
        assert (top / "log").stat().st_mode & 0o077 == 0


def make_link(path: Path) -> None:
    path.symlink_to(path.with_name("ready"))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


PRETENDED: Final[dict[str, Callable[[Path], None]]] = {
    "a link": make_link,
    "a FIFO": make_fifo,
    "a directory": Path.mkdir,
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("pretend", PRETENDED.values(), ids=PRETENDED)
def test_a_status_that_is_not_a_file_is_not_read(tmp_path: Path, pretend: Callable[[Path], None]) -> None:
    """A name that the server's user controls neither leads to another file nor blocks the start."""
    layout = local._Layout(tmp_path)
    layout.data.mkdir(parents=True)
    (layout.data / "ready").write_text("\n" * 7 + "ready   ")
    pretend(layout.data / "postmaster.pid")
    assert local._read_status(layout) == b""


def test_a_data_directory_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    """The same holds for the directory itself."""
    layout = local._Layout(tmp_path)
    layout.home.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "postmaster.pid").write_text("1")
    layout.data.symlink_to(elsewhere)
    assert local._read_status(layout) == b""


@contextmanager
def start_bystander(*arguments: str, user: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process with these words on its command line."""
    command = ["/bin/sh", "-c", "read -r line", "bystander", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, user=user, cwd="/") as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_reader_of_the_log_survives_the_server() -> None:
    """A process that only names the server's files on its command line is not ended with the server."""
    with start_server("local") as server:
        running = server._running
        directory = running.directory  # type: ignore[attr-defined]
        follow = ["tail", "-n", "+1", "-f", f"{directory}/log"]
        with (
            subprocess.Popen(follow, stdout=subprocess.PIPE) as reader,
            start_bystander("-D", f"{directory}/pg/data") as named,
        ):
            assert reader.stdout is not None
            assert reader.stdout.readline()
            running.stop()
            assert not Path(directory).exists()
            assert reader.poll() is None
            assert named.poll() is None
            reader.kill()


RECORDS: Final[dict[str, Callable[[int], str]]] = {
    "another start time": lambda pid: f"{mark_of(pid)}1 {os.geteuid()}",
    "another user": lambda pid: f"{mark_of(pid)} {os.geteuid() + 1}",
    "another machine": lambda pid: f"000000{mark_of(pid)[6:]} {os.geteuid()}",
    "no user": mark_of,
    "no process": lambda _: "",
    "no number": lambda pid: f"{mark_of(pid).replace('-', '-x', 1)} {os.geteuid()}",
    "no text": lambda _: "\udcff",
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_process_that_is_not_the_recorded_one_survives(record: Callable[[int], str]) -> None:
    """A pid that was used again, or a damaged record, costs no other process its life."""
    directory = new_directory(own_mark())
    with start_bystander() as process:
        (directory / "process").write_text(record(process.pid), errors="surrogateescape")
        assert remove_directory(directory)
        assert process.poll() is None


def test_the_recorded_processes_are_ended() -> None:
    """Each process of a directory is ended with it."""
    directory = new_directory(own_mark())
    with start_bystander() as first, start_bystander() as second:
        for process in (first, second):
            record_process(directory, process.pid, os.geteuid())
        assert processes_of(directory) == [first.pid, second.pid]
        assert remove_directory(directory)
        assert not is_running(first.pid)
        assert not is_running(second.pid)


def test_a_process_of_another_user_is_never_recorded_as_the_servers() -> None:
    """A pid that the server's user made up does not get another user's process ended."""
    directory = new_directory(own_mark())
    with start_bystander() as process:
        record_process(directory, process.pid, os.geteuid() + 1)
        assert processes_of(directory) == []
        assert remove_directory(directory)
        assert process.poll() is None


def make_dead_mark() -> str:
    with start_bystander() as process:
        return mark_of(process.pid)


@ONLY_ROOT
def test_another_users_processes_do_not_block_the_start() -> None:
    """For an ordinary user, processes of others that name a leftover directory are not in the way of removing it."""
    dead = make_dead_mark()
    with become_ordinary_user():
        left = new_directory(dead)
        (left / "process").write_text(f"{mark_of(os.getpid())} 0\n")
    with start_bystander(f"{left}/pg/data", user=0) as process:
        with become_ordinary_user():
            assert left in sweep_directories()
        assert process.poll() is None
