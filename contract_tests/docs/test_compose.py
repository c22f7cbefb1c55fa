"""Runs the compose file of the operations guide: it is valid, becomes healthy, keeps its data and stops in time."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from raw_postgres import connect, reserve_port
from recipe_environment import PROJECT
from secret_watch import watch_password
from waiting import becomes_true

PAGES: Final = PROJECT / "docs/operations"
COMPOSE: Final = PAGES / "compose.yaml"
GRACE_SECONDS: Final = 20.0
"""Seconds within which the server has stopped, though a client is connected; a forced stop comes after 60."""

Compose = Callable[..., str]


@pytest.fixture(scope="module")
def compose_program() -> list[str]:
    """Docker's compose, as a plugin or a program; without it a test is skipped, or fails where Docker is required."""
    for program in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(program[0]) is None:
            continue
        if subprocess.run([*program, "version"], capture_output=True, check=False).returncode == 0:
            return program
    reason = "there is no docker compose: install docker-compose-plugin, or Debian's docker-compose"
    if os.environ.get("FLUX_MEMORY_REQUIRE_DOCKER") == "1":
        pytest.fail(f"FLUX_MEMORY_REQUIRE_DOCKER=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def password(tmp_path: Path) -> str:
    """The password in the secret's file."""
    password = secrets.token_hex(24)
    watch_password(password)
    (tmp_path / "postgres_password.txt").write_text(f"{password}\n")
    (tmp_path / "postgres_password.txt").chmod(0o600)
    return password


@pytest.fixture
def compose(compose_program: list[str], tmp_path: Path, postgres_image: str) -> Iterator[tuple[Compose, int]]:
    """A function that runs compose on a copy of the file, and the port; removes everything afterwards."""
    shutil.copy(COMPOSE, tmp_path)
    with reserve_port() as port:
        pass
    environment = os.environ | {"POSTGRES_IMAGE": postgres_image, "POSTGRES_PORT": str(port)}
    project = f"flux-memory-{secrets.token_hex(4)}"

    def run(*arguments: str) -> str:
        command = [*compose_program, "--project-name", project, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        yield run, port
    finally:
        run("down", "--volumes", "--timeout", "5")


def health_of(compose: Compose) -> str:
    """Return the health of the container, as its check says."""
    (container,) = compose("ps", "--quiet", "postgres").split()
    command = ["docker", "inspect", "--format", "{{.State.Health.Status}}", container]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.asyncio
async def test_the_compose_file_runs(compose: tuple[Compose, int], password: str) -> None:
    """The steps of the page, with the image of this run in place of the official one."""
    run, port = compose
    settings = dict(re.findall(r"-c([a-z_]+)=(\S+)", COMPOSE.read_text()))
    assert password not in run("config")
    run("up", "--detach")
    assert becomes_true(lambda: health_of(run) == "healthy", seconds=90)
    dsn = f"postgresql://chat_admin:{password}@127.0.0.1:{port}/chat"
    async with connect(dsn) as connection:
        for name, value in settings.items():
            # `on` stands for the server's default method since PostgreSQL 15.
            wanted = {value, "pglz"} if name == "wal_compression" else {value}
            assert await connection.fetchval(f"SHOW {name}") in wanted, name
        assert await connection.fetchval("SHOW data_checksums") == "on"
        await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    result = run_check(dsn)
    assert '"ok": true' in result
    run("down")
    run("up", "--detach")
    assert becomes_true(lambda: health_of(run) == "healthy", seconds=90)
    async with connect(dsn) as connection:
        assert await connection.fetchval("SELECT one FROM kept") == 1
        began = time.monotonic()
        run("stop")
        assert time.monotonic() - began < GRACE_SECONDS


def run_check(dsn: str) -> str:
    """Run the full check of the page in a process of its own."""
    command = [sys.executable, "-m", "flux_memory", "check", "--full", "--json", "--postgres-dsn", dsn]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_the_file_publishes_nothing_and_has_no_password() -> None:
    """The port is on loopback, and the password is a file that is not in the repository."""
    text = COMPOSE.read_text()
    assert re.findall(r'- "([^"]*):5432"', text) == ["127.0.0.1:${POSTGRES_PORT:-5432}"]
    assert "POSTGRES_PASSWORD:" not in text
    assert not (PAGES / "postgres_password.txt").exists()
    assert "postgres_password.txt" in (PROJECT / ".gitignore").read_text()
