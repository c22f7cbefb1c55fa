"""Tests the pytest side of the throwaway PostgreSQL: fixtures, header, skips, shared servers, logs of failures."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flux_memory.testkit.servers import start_server

pytest_plugins = ["pytester"]

NO_SERVER = "postgresql://user:hush@127.0.0.1:1/nowhere"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A downstream project that turns warnings into errors."""
    monkeypatch.delenv("FLUX_MEMORY_TEST_DSN", raising=False)
    # This suite may itself run under xdist.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("""
        [pytest]
        asyncio_default_fixture_loop_scope = function
        filterwarnings = error
        addopts = --strict-markers --strict-config
    """)
    pytester.makeconftest("""
        import os, pathlib
        def pytest_configure(config):
            if not hasattr(config, "workerinput"):
                pathlib.Path(__file__).with_name("controller.pid").write_text(str(os.getpid()))
    """)
    return pytester


def files_left_by(project: pytest.Pytester) -> list[Path]:
    """Return the directories that the project's last run left; other runs may use this machine at the same time."""
    pid = (project.path / "controller.pid").read_text()
    roots = {Path("/dev/shm"), Path(tempfile.gettempdir())}
    return [path for root in roots for path in root.glob(f"fm-*-{pid}-*")]


def test_fixtures_give_databases_as_empty_as_they_say(project: pytest.Pytester) -> None:
    """Promise: one database for each worker, without sessions before each test; a new one for each test on request.

    No test of the project relies on another's order, which a plugin may change.
    """
    project.makepyfile("""
        import asyncio, asyncpg, pytest

        def run(dsn, statement):
            async def work():
                connection = await asyncpg.connect(dsn)
                try:
                    return await connection.fetch(statement)
                finally:
                    await connection.close()
            return asyncio.run(work())

        seen = []

        @pytest.mark.parametrize("round", [1, 2])
        def test_clean(flux_memory_postgres_dsn, flux_postgres_dsn, round):
            assert flux_memory_postgres_dsn == flux_postgres_dsn
            run(flux_postgres_dsn, "CREATE TABLE IF NOT EXISTS sessions (id int)")
            assert run(flux_postgres_dsn, "SELECT * FROM sessions") == []
            run(flux_postgres_dsn, "INSERT INTO sessions VALUES (1)")

        kept = []

        @pytest.mark.parametrize("round", [1, 2])
        def test_kept(flux_postgres_dsn, round):
            run(flux_postgres_dsn, "CREATE TABLE IF NOT EXISTS rounds (id int)")
            assert [id for (id,) in run(flux_postgres_dsn, "SELECT id FROM rounds")] == kept
            run(flux_postgres_dsn, f"INSERT INTO rounds VALUES ({round})")
            kept.append(round)

        @pytest.mark.parametrize("round", [1, 2])
        def test_fresh(flux_empty_database, flux_postgres_dsn, round):
            assert flux_empty_database not in [*seen, flux_postgres_dsn]
            seen.append(flux_empty_database)
            assert run(flux_empty_database, "SELECT * FROM pg_tables WHERE schemaname = 'public'") == []
            run(flux_empty_database, "CREATE TABLE sessions (id int)")

        @pytest.mark.asyncio
        async def test_async(flux_empty_database):
            connection = await asyncpg.connect(flux_empty_database)
            await connection.close()
    """)
    result = project.runpytest_subprocess("--flux-postgres=local")
    result.assert_outcomes(passed=7)
    assert files_left_by(project) == []


def test_header_names_the_server(project: pytest.Pytester) -> None:
    """Promise: the run's header names the server, its origin and its version."""
    project.makepyfile("def test_uses(flux_postgres_server): pass")
    result = project.runpytest_subprocess("--flux-postgres=local")
    result.stdout.re_match_lines(
        [
            "collected 1 item",
            r"flux-memory: PostgreSQL: \d+\.\d+, from local binaries, .*, ready in \d\.\d s",
            "test_header_names_the_server.py .*",
        ]
    )


def test_header_names_skipped_providers(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: the header says why `auto` did not use Docker."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    project.makepyfile("def test_uses(flux_postgres_server): pass")
    result = project.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*from local binaries,*(no Docker engine answers at unix:///nowhere/docker.sock:*"])


def test_a_server_asked_for_late_is_named_in_the_end(project: pytest.Pytester) -> None:
    """Promise: a server that only `getfixturevalue` reveals is also started, named and stopped."""
    project.makepyfile("def test_uses(request): request.getfixturevalue('flux_postgres_dsn')")
    result = project.runpytest_subprocess("--flux-postgres=local")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["test_*", "flux-memory: PostgreSQL: *from local binaries*", "*1 passed*"])
    assert files_left_by(project) == []


@pytest.mark.parametrize("options", [[], ["-n1"]])
def test_a_run_without_postgres_tests_starts_no_server(project: pytest.Pytester, options: list[str]) -> None:
    """Promise: a project that has the package and does not use it sees nothing of it."""
    project.makepyfile("def test_other(): pass")
    result = project.runpytest_subprocess("--flux-postgres=local", *options)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*PostgreSQL*")
    assert files_left_by(project) == []


def test_collecting_starts_no_server(project: pytest.Pytester) -> None:
    """Promise: --collect-only starts no server."""
    project.makepyfile("def test_uses(flux_postgres_server): pass")
    result = project.runpytest_subprocess("--flux-postgres=local", "--collect-only")
    result.stdout.no_fnmatch_line("*PostgreSQL*")


@pytest.mark.parametrize("options", [[], ["-n1"]])
def test_without_a_server_the_reason_shows(project: pytest.Pytester, options: list[str]) -> None:
    """Promise: a skip without a server gives its reason, also in the header."""
    project.makepyfile("def test_uses(flux_postgres_dsn): pass\ndef test_too(flux_empty_database): pass")
    result = project.runpytest_subprocess("--flux-postgres=off", "-rs", *options)
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["flux-memory: PostgreSQL: none: PostgreSQL is switched off for this run"])
    result.stdout.fnmatch_lines(["SKIPPED*no PostgreSQL: PostgreSQL is switched off*"])


@pytest.mark.parametrize("options", [[], ["-n1"]])
def test_required_turns_the_skip_into_a_failure(project: pytest.Pytester, options: list[str]) -> None:
    """Promise: with --flux-postgres-required a missing server never passes."""
    project.makepyfile("def test_uses(flux_postgres_dsn): pass\ndef test_too(flux_empty_database): pass")
    result = project.runpytest_subprocess("--flux-postgres=off", "--flux-postgres-required", *options)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*no PostgreSQL: PostgreSQL is switched off*"])
    # One error, printed once, without a log of a server that never started.
    assert "another exception" not in result.stdout.str()
    assert "server log" not in result.stdout.str()


@pytest.mark.parametrize("options", [[], ["-n1"]])
@pytest.mark.parametrize("named_by", ["local", "docker", "DSN", "variable"])
def test_a_mistyped_server_is_a_failure(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, named_by: str, options: list[str]
) -> None:
    """Promise: a mistyped choice of a server fails the run; only `auto` and `off` may skip."""
    project.makepyfile("def test_uses(flux_postgres_dsn): pass")
    choice = {"local": "local", "docker": "docker", "DSN": NO_SERVER, "variable": "auto"}[named_by]
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", str(project.path / "nowhere"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{project.path}/nowhere.sock")
    if named_by == "variable":
        monkeypatch.setenv("FLUX_MEMORY_TEST_DSN", NO_SERVER)
    result = project.runpytest_subprocess(f"--flux-postgres={choice}", *options)
    result.assert_outcomes(errors=1)
    assert "no PostgreSQL: " in result.stdout.str()
    assert "hush" not in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize("choice", ["dokcer", "mysql://user:hush@host/db", "host=host password=hush"])
def test_a_wrong_choice_is_a_usage_error(project: pytest.Pytester, choice: str) -> None:
    """Promise: a misspelt choice stops the run instead of skipping its tests, and shows no password."""
    result = project.runpytest_subprocess(f"--flux-postgres={choice}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--flux-postgres: * is not one of auto, docker, local, off or a DSN*"])
    assert ("'dokcer'" in result.stderr.str()) == (choice == "dokcer")
    assert "hush" not in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize("options", [[], ["-n1"]])
def test_a_failed_tests_report_has_the_servers_log(project: pytest.Pytester, options: list[str]) -> None:
    """Promise: a failed test's report has the server's log of that test; other reports do not."""
    project.makepyfile("""
        import asyncio, asyncpg

        def test_uses(flux_postgres_dsn):
            async def work():
                connection = await asyncpg.connect(flux_postgres_dsn)
                try:
                    await connection.execute("SELECT * FROM nowhere_to_be_found")
                finally:
                    await connection.close()
            try:
                asyncio.run(work())
            except asyncpg.UndefinedTableError:
                pass
            assert False

        def test_other():
            assert False
    """)
    result = project.runpytest_subprocess("--flux-postgres=local", *options)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*PostgreSQL server log, last 40 lines*", "*ERROR:*nowhere_to_be_found*"])
    assert str(result.stdout).count("PostgreSQL server log") == 1


@pytest.mark.parametrize("choice", ["local", "docker", "external"])
def test_workers_share_one_server(project: pytest.Pytester, choice: str, request: pytest.FixtureRequest) -> None:
    """Promise: under xdist one server starts once; each worker has its own database."""
    image = request.getfixturevalue("postgres_image") if choice == "docker" else "none"
    project.makepyfile("""
        import json, pathlib
        def test_uses(flux_postgres_dsn, flux_postgres_server, worker_id):
            pathlib.Path(f"{worker_id}.json").write_text(
                json.dumps({"own": flux_postgres_dsn, "server": flux_postgres_server.dsn})
            )
    """)
    with start_server("local") as somebodys:
        chosen = somebodys.dsn if choice == "external" else choice
        result = project.runpytest_subprocess(
            f"--flux-postgres={chosen}", f"--flux-postgres-image={image}", "-n2", "--dist=each"
        )
    result.assert_outcomes(passed=2)
    assert str(result.stdout).count("flux-memory: PostgreSQL: ") == 1
    first, second = (json.loads((project.path / f"gw{n}.json").read_text()) for n in (0, 1))
    assert first["server"] == second["server"]
    assert first["own"] != second["own"]
    assert urlsplit(first["own"]).netloc == urlsplit(first["server"]).netloc
    assert files_left_by(project) == []


def test_a_worker_that_dies_takes_no_server_along(project: pytest.Pytester) -> None:
    """Promise: a killed worker costs its test, not the server; the run still cleans up."""
    project.makepyfile("""
        import os, signal
        def test_dies(flux_postgres_dsn):
            os.kill(os.getpid(), signal.SIGKILL)
        def test_lives(flux_postgres_dsn, flux_postgres_server):
            flux_postgres_server.empty_database(flux_postgres_dsn)
    """)
    result = project.runpytest_subprocess("--flux-postgres=local", "-n1")
    result.assert_outcomes(passed=1, failed=1)
    assert files_left_by(project) == []


def test_a_dead_server_causes_no_second_failure(project: pytest.Pytester) -> None:
    """Promise: when the server is gone, the run ends with the test's failure and leaves nothing."""
    project.makepyfile("""
        import os, signal
        def test_kills(flux_postgres_dsn, flux_postgres_server):
            os.kill(flux_postgres_server._running.pid, signal.SIGKILL)
            assert False
    """)
    result = project.runpytest_subprocess("--flux-postgres=local")
    assert result.parseoutcomes().get("failed") == 1
    assert files_left_by(project) == []


def test_the_entry_point_imports_nothing_heavy() -> None:
    """Promise: the plugin costs a pytest run next to nothing if the package is installed but unused."""
    code = (
        "import pytest, sys; before = set(sys.modules)\n"
        "import flux_memory.testkit.plugin as plugin, importlib\n"
        "for name in plugin.pytest_plugins: importlib.import_module(name)\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & {"asyncio", "asyncpg", "docker", "hypothesis", "pytest_asyncio", "sqlite3", "testcontainers"}
    assert sum(name.startswith("flux_memory.") for name in loaded) <= 14
