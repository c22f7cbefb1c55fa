"""The kit in a shell whose variables and files were made for something else: its tests run, or the run says why not."""

from __future__ import annotations

import os
import pwd
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple
from unittest import mock

import pytest

from flux_memory.testkit.servers import Server, ServerUnavailable, choice, start_server
from flux_memory.testkit.servers.ownership import own_mark
from flux_memory.testkit.servers.running import Wishes
from flux_memory.testkit.servers.statements import Statements

pytest_plugins = ["pytester"]

NO_ENGINE: Final = "unix:///nowhere/docker.sock"

FOR_POSTGRES: Final = (
    ("PGSSLMODE", "require"),
    ("PGSSLMODE", "verify-full"),
    ("PGSSLMODE", "no-such-mode"),
    ("PGSSLNEGOTIATION", "direct"),
    ("PGSSLNEGOTIATION", "none"),
    ("PGTARGETSESSIONATTRS", "standby"),
    ("PGTARGETSESSIONATTRS", "anything"),
    ("PGPORT", "abc"),
    ("PGPORT", "1,2"),
    ("PGPORT", "tcp://10.0.0.1:5432"),
    ("PGHOST", "nowhere.invalid"),
    ("PGUSER", "stranger"),
    ("PGPASSWORD", "wrong"),
    ("PGPASSFILE", "/nowhere"),
    ("PGDATABASE", "nowhere"),
    ("PGSERVICE", "nowhere"),
    ("PGSERVICEFILE", "/nowhere"),
    ("PGGSSLIB", "none"),
    ("PGOPTIONS", "-c default_transaction_read_only=on"),
    ("PGSSLMINPROTOCOLVERSION", "TLSv9"),
    ("PGSSLROOTCERT", "/nowhere"),
)
"""Variables that PostgreSQL's clients read."""


class Shell(NamedTuple):
    """Variables and files of the home directory that keep containers from starting, and the reason that is given."""

    variables: dict[str, str]
    files: dict[str, bytes]
    reason: str


FOR_CONTAINERS: Final = {
    "tries that are not a number": Shell({"TC_MAX_TRIES": "many"}, {}, "ValueError: .*'many'"),
    "an interval that is not a number": Shell({"TC_POOLING_INTERVAL": "often"}, {}, "ValueError: .*'often'"),
    "an unknown mode": Shell({"TESTCONTAINERS_CONNECTION_MODE": "carrier"}, {}, "ValueError: .*CONNECTION_MODE"),
    "properties that are not text": Shell({}, {".testcontainers.properties": b"\xff\xfe="}, "UnicodeDecodeError"),
    "properties of an engine that is gone": Shell(
        {}, {".testcontainers.properties": b"tc.host=unix:///gone.sock\n"}, "no Docker engine answers at unix:///gone"
    ),
    # With an engine at the usual place the context does not matter, and the image without a name is the reason.
    "a context that is gone": Shell(
        {"DOCKER_CONTEXT": "gone"}, {}, "no Docker engine|no container can be started|the image  cannot be run"
    ),
    "a configuration that is not JSON": Shell(
        {}, {".docker/config.json": b"{"}, "no Docker engine|no container can be started"
    ),
    "a configuration that is a list": Shell(
        {}, {".docker/config.json": b"[]"}, "no Docker engine|no container can be started"
    ),
    "an engine that is not a URL": Shell({"DOCKER_HOST": "unix://["}, {}, "ValueError"),
    "an engine of an unknown kind": Shell({"DOCKER_HOST": "carrier://pigeon"}, {}, "no Docker engine"),
    "an engine that refuses": Shell({"DOCKER_HOST": "tcp://127.0.0.1:1"}, {}, "no Docker engine"),
    "an engine through ssh": Shell({"DOCKER_HOST": "ssh://127.0.0.1:1"}, {}, "no Docker engine|no container can be"),
    "certificates that are missing": Shell(
        {"DOCKER_HOST": "tcp://127.0.0.1:1", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/nowhere"},
        {},
        "no Docker engine|no container can be started",
    ),
}


@pytest.mark.parametrize(("name", "value"), FOR_POSTGRES, ids=[f"{name}={value}" for name, value in FOR_POSTGRES])
def test_the_own_server_takes_nothing_from_the_shell(
    name: str, value: str, flux_postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that other clients read does not reach the server of the run."""
    if not flux_postgres_server.is_own:
        pytest.skip("this run uses a server by its DSN, for which the variables count")
    monkeypatch.setenv(name, value)
    with closing(Statements(own_server=True)) as statements:
        assert statements.fetch_value(flux_postgres_server.dsn, "SELECT 1") == 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without any configuration."""
    for name in list(os.environ):
        if name.startswith(("DOCKER_", "TC_", "TESTCONTAINERS_", "PG", "FLUX_MEMORY_TEST_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    return tmp_path


def apply_shell(shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables, and write the files."""
    if ".testcontainers.properties" in shell.files or "DOCKER_CONTEXT" in shell.variables:
        monkeypatch.delenv("DOCKER_HOST")
    for name, value in shell.variables.items():
        monkeypatch.setenv(name, value)
    for name, content in shell.files.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(content)


def find_reason() -> str:
    """Try to start a container, with testcontainers as a new process would import it."""
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.startswith("testcontainers")]:
            del sys.modules[name]
        with pytest.raises(ServerUnavailable) as caught:
            choice._start_container(Wishes(""), own_mark())
    return str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOR_CONTAINERS)
def test_a_failing_configuration_is_a_reason(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken configuration of Docker or testcontainers is not an error of the run: `auto` goes on with the reason."""
    apply_shell(FOR_CONTAINERS[name], home, monkeypatch)
    reason = find_reason()
    assert re.search(FOR_CONTAINERS[name].reason, reason), reason
    assert "\n" not in reason


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("home")
def test_a_user_without_a_home_gets_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers often run as a user id that the system does not know."""

    def unknown(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert "home directory" in find_reason()
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", "~/bin")
    with pytest.raises(ServerUnavailable, match=r"no local server can be started: .*home"), start_server("local"):
        pass


PROGRAMS: Final = {
    "not a program": (b"\x7fELF", "no local server can be started|initdb of .* failed"),
    "an interpreter that is gone": (b"#!/nowhere/sh\n", "no local server can be started|initdb of .* failed"),
    "fails": (b"#!/bin/sh\necho out of luck; exit 1\n", "out of luck"),
    "does nothing": (b"#!/bin/sh\n", "did not start"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_do_not_run_are_a_reason(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with the names of PostgreSQL's programs that are broken leave a reason, and no server."""
    content, reason = PROGRAMS[name]
    programs = tmp_path / "postgresql" / "bin"
    programs.mkdir(parents=True)
    for program in ("initdb", "postgres"):
        (programs / program).write_bytes(content)
        (programs / program).chmod(0o755)
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", str(programs))
    with pytest.raises(ServerUnavailable, match=reason), start_server("local"):
        pass


@pytest.fixture
def project(pytester: pytest.Pytester, home: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project of a user's, whose tests need PostgreSQL, in a shell with every hostile setting."""
    assert home
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    for name, value in FOR_POSTGRES:
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TC_MAX_TRIES", "many")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile("""
        import os
        import asyncpg, pytest
        from flux_memory import PostgresConversationMemory

        @pytest.mark.asyncio
        async def test_uses(flux_memory_postgres_dsn, flux_empty_database):
            async with PostgresConversationMemory(flux_memory_postgres_dsn) as memory:
                await memory.create_session()
            await (await asyncpg.connect(flux_empty_database)).close()

        def test_other():
            assert os.environ["PGPORT"] == "tcp://10.0.0.1:5432"
    """)
    return pytester


def test_a_run_in_a_hostile_shell_uses_its_own_server(project: pytest.Pytester) -> None:
    """Tests that use the run's server do not see the shell's PG* variables; others do."""
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["flux-memory: PostgreSQL: *local binaries*(no container can be started: ValueError*"])


def test_a_run_without_any_server_says_why(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each provider that was tried is named with its reason, and the other tests run, also in workers."""
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", "/nowhere")
    result = project.runpytest_subprocess("-rs", "-n1")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*no container can be started: ValueError*FLUX_MEMORY_PG_BINDIR=/nowhere has no*"]
    )


def test_a_given_server_that_the_shell_keeps_out_is_a_reason(
    project: pytest.Pytester, flux_postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a server by its DSN the variables count; one that keeps it from answering is named, without a password."""
    monkeypatch.setenv("FLUX_MEMORY_TEST_DSN", flux_postgres_server.dsn)
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*no PostgreSQL: FLUX_MEMORY_TEST_DSN: *PG[*] variable*"])


def test_a_machine_without_temporary_files_runs_other_tests(project: pytest.Pytester) -> None:
    """A full or read-only machine is a reason, too."""
    project.makeconftest("""
        import tempfile
        def refuse():
            raise FileNotFoundError("No usable temporary directory found")
        tempfile.tempdir = None
        tempfile._get_default_tempdir = refuse
    """)
    result = project.runpytest_subprocess("-rs", "-p", "no:tmpdir")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*No usable temporary directory*"])
