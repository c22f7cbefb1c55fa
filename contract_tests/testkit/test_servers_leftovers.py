"""Tests that killed and interrupted runs leave nothing for good, and that live runs are never touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from waiting import becomes_true

from flux_memory.testkit.servers import start_server
from flux_memory.testkit.servers.directories import new_directory, processes_of, sweep_directories
from flux_memory.testkit.servers.ownership import is_dead, is_running, mark_of, own_mark
from flux_memory.testkit.servers.running import NotAnswered
from flux_memory.testkit.servers.statements import Statements

HOLDER = """
import sys
from flux_memory.testkit.servers import start_server
with start_server(sys.argv[1], image=sys.argv[2]) as server:
    print(server.create_database(), flush=True)
    sys.stdin.read()
"""
INI = """
[pytest]
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""
WAITING_TEST = """
import pathlib, sys, time
def test_waits(flux_postgres_dsn):
    (pathlib.Path(__file__).parent / "in-the-test").touch()
    time.sleep(120)
"""


def assert_becomes_true(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    assert becomes_true(condition, seconds=timeout), f"{what}: not within {timeout} s"


def accepts_connections(dsn: str) -> bool:
    with closing(Statements()) as statements:
        try:
            return bool(statements.fetch_value(dsn, "SELECT 1") == 1)
        except NotAnswered:
            return False


@contextmanager
def hold_server(choice: str, image: str = "none") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds a server, and the DSN of a database that it created there."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, choice, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        dsn = process.stdout.readline().strip()
        assert dsn.startswith("postgresql://")
        yield process, dsn
    finally:
        process.communicate(timeout=60)


def kill_process(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(timeout=60)


def directories_of(pid: int) -> list[Path]:
    roots = {Path("/dev/shm"), Path(tempfile.gettempdir())}
    return [path for root in roots for path in root.glob(f"fm-*-{pid}-*")]


def containers_of(engine: Any, pid: int) -> list[str]:
    label = "flux-memory.owner"
    found = engine.api.containers(all=True, filters={"label": label})
    return [each["Id"] for each in found if f"-{pid}-" in each["Labels"][label]]


def test_the_next_run_removes_a_killed_runs_local_server() -> None:
    """Promise: after kill -9, the next run ends the server and removes its directory; a live run's stays."""
    with hold_server("local") as (killed, dead_dsn), hold_server("local") as (live, live_dsn):
        assert directories_of(killed.pid)
        kill_process(killed)
        with start_server("local"):
            assert not directories_of(killed.pid)
            assert not accepts_connections(dead_dsn)
            assert accepts_connections(live_dsn)
            assert directories_of(live.pid)
    assert not directories_of(live.pid)


def test_the_next_run_removes_a_killed_runs_container(docker_engine: Any, postgres_image: str) -> None:
    """Promise: after kill -9, the next run removes the container; a live run's stays."""
    with (
        hold_server("docker", postgres_image) as (killed, _),
        hold_server("docker", postgres_image) as (live, live_dsn),
    ):
        assert containers_of(docker_engine, killed.pid)
        kill_process(killed)
        with start_server("docker", image=postgres_image):
            assert not containers_of(docker_engine, killed.pid)
            assert accepts_connections(live_dsn)
    assert not containers_of(docker_engine, live.pid)


def test_the_next_run_drops_a_killed_runs_databases() -> None:
    """Promise: on an external server, the next run drops a killed run's databases; a live run's stay."""
    with (
        start_server("local") as server,
        hold_server(server.dsn) as (killed, dead),
        hold_server(server.dsn) as (_, live),
    ):
        kill_process(killed)

        def is_gone() -> bool:
            # The server takes a moment to notice that the killed process's connection is gone.
            with start_server(server.dsn):
                return not accepts_connections(dead)

        assert_becomes_true(is_gone, "the killed run's database is dropped")
        assert accepts_connections(live)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("choice", ["local", "docker"])
def test_ctrl_c_leaves_nothing(choice: str, workers: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Promise: Ctrl-C during a test stops the server, with and without xdist."""
    docker = request.getfixturevalue("docker_engine") if choice == "docker" else None
    image = request.getfixturevalue("postgres_image") if choice == "docker" else "none"
    with pytest_run(tmp_path, f"--flux-postgres={choice}", f"--flux-postgres-image={image}", f"-n{workers}") as run:
        assert_becomes_true((tmp_path / "in-the-test").exists, "the test runs")
        os.killpg(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 2, said
    assert not directories_of(run.pid)
    assert docker is None or not containers_of(docker, run.pid)


def test_ctrl_c_while_the_server_starts_leaves_nothing(tmp_path: Path) -> None:
    """Promise: Ctrl-C while the cluster is being created leaves nothing either."""
    with pytest_run(tmp_path, "--flux-postgres=local") as run:
        assert_becomes_true(lambda: any(path.joinpath("pg").exists() for path in directories_of(run.pid)), "it starts")
        os.killpg(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 2, said
    assert not directories_of(run.pid)


def test_the_next_run_cleans_up_after_a_killed_pytest_with_workers(tmp_path: Path) -> None:
    """Promise: the controller owns what a worker starts; if it is killed, the next run cleans up."""
    with pytest_run(tmp_path, "--flux-postgres=local", "-n2") as run:
        assert_becomes_true((tmp_path / "in-the-test").exists, "the test runs")
        assert directories_of(run.pid)
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=60)
    with start_server("local"):
        assert not directories_of(run.pid)


@contextmanager
def pytest_run(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run pytest in its own process group, as a terminal would."""
    # Background jobs of a shell ignore Ctrl-C, and their children inherit that.
    hearing = signal.signal(signal.SIGINT, signal.default_int_handler)
    (directory / "pytest.ini").write_text(INI)
    (directory / "test_waiting.py").write_text(WAITING_TEST)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    with subprocess.Popen(
        command,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as run:
        signal.signal(signal.SIGINT, hearing)
        try:
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def test_a_stopped_server_is_ended() -> None:
    """Promise: a server that a test has stopped with SIGSTOP ends with its directory, which has the record of it."""
    others = directories_of(os.getpid())
    with start_server("local") as server:
        (directory,) = set(directories_of(os.getpid())).difference(others)
        (pid,) = processes_of(directory)
        os.kill(pid, signal.SIGSTOP)
    assert not directory.exists()
    try:
        assert not is_running(pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert not accepts_connections(server.dsn)


def make_dead_mark() -> str:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = mark_of(process.pid)
    process.communicate()
    return mark


def test_marks_tell_the_living_from_the_dead() -> None:
    """Promise: a reused pid, or another host's, is never mistaken for a dead or a live owner."""
    host, pid, start = own_mark().split("-")
    assert not is_dead(own_mark())
    assert is_dead(make_dead_mark())
    assert is_dead(f"{host}-{pid}-{int(start) + 1}"), "the pid belongs to another process now"
    assert not is_dead(f"000000-{pid}-1"), "what another host owns cannot be judged here"
    assert not is_dead("nonsense")


def test_a_process_that_was_not_reaped_is_dead() -> None:
    """Promise: a killed run whose parent has not reaped it yet counts as dead."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = mark_of(process.pid)
    process.kill()
    assert_becomes_true(lambda: is_dead(mark), "the process is dead")
    process.communicate()


def test_sweeping_follows_no_link_and_touches_nothing_else(tmp_path: Path) -> None:
    """Promise: sweeping removes directories of dead runs, and neither the target of a link nor anything else."""
    precious = tmp_path / "precious"
    precious.mkdir()
    root = Path(tempfile.gettempdir())
    with ExitStack() as stack:
        link = root / f"fm-{make_dead_mark()}-link"
        link.symlink_to(precious)
        stack.callback(link.unlink)
        # The name belongs to this run, because others may run on this machine.
        other = root / f"fm-of-somebody-else-{os.getpid()}"
        other.mkdir()
        stack.callback(other.rmdir)
        mine = new_directory(own_mark())
        stack.callback(mine.rmdir)
        left = new_directory(make_dead_mark())
        (left / "file").touch()
        sweep_directories()
        assert not left.exists()
        assert precious.is_dir()
        assert other.is_dir()
        assert mine.is_dir()
