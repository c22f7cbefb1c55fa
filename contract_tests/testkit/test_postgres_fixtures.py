"""Tests the fixtures of databases in a project: copies for each test, versions, settings, and databases to keep."""

from __future__ import annotations

import asyncio
import re

import asyncpg
import pytest

from flux_memory.testkit.servers import ServerUnavailable, start_server
from flux_memory.testkit.servers.binaries import find_binaries

pytest_plugins = ["pytester"]

HELPERS = """
    import asyncio, os, pathlib
    import asyncpg, pytest

    def run(dsn, statement):
        async def work():
            connection = await asyncpg.connect(str(dsn))
            try:
                return await connection.fetchval(statement)
            finally:
                await connection.close()
        return asyncio.run(work())
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project that turns warnings into errors, and whose tests have a function `run(dsn, statement)`."""
    for name in ("FLUX_MEMORY_TEST_DSN", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "CI"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini("""
        [pytest]
        asyncio_default_fixture_loop_scope = function
        filterwarnings = error
        addopts = --strict-markers --strict-config
    """)
    pytester.makepyfile(helpers=HELPERS)
    return pytester


@pytest.mark.parametrize("options", [["-n2"]], ids=["workers"])
def test_each_test_gets_a_copy_and_workers_share_the_template(project: pytest.Pytester, options: list[str]) -> None:
    """Promise: steps run once for all workers; each test has the result, which is dropped after it."""
    project.makepyfile(
        test_it="""
        from helpers import *

        def note(dsn):
            with pathlib.Path(__file__).with_name("calls").open("a") as file:
                file.write("called\\n")

        @pytest.fixture
        def database(flux_postgres_database):
            return flux_postgres_database(init=["schema.sql", note], owner=True)

        @pytest.mark.parametrize("number", range(4))
        def test_rows(database, flux_postgres, number):
            assert database.port == flux_postgres.port
            assert database.user != flux_postgres.user
            run(database, "INSERT INTO items VALUES (1)")
            assert run(database, "SELECT count(*) FROM items") == 1
            ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^flux_memory_test_'"
            # A copy for each of the two workers, and the template.
            assert run(flux_postgres.dsn, ours) <= 3

        def test_two(flux_postgres_database):
            first, second = (flux_postgres_database(init="CREATE TABLE t ()") for _ in range(2))
            assert first.dbname != second.dbname
        """
    )
    (project.path / "schema.sql").write_text("CREATE TABLE items (id int)")
    result = project.runpytest_subprocess("--flux-postgres=local", *options)
    result.assert_outcomes(passed=5)
    assert (project.path / "calls").read_text() == "called\n"


def test_a_failing_step_is_the_error_of_each_test(project: pytest.Pytester) -> None:
    """Promise: the report names the step that failed, and other tests run."""
    project.makepyfile(
        test_it="""
        def test_fails(flux_postgres_database):
            flux_postgres_database(init=["SELECT 1", "CREATE TABEL t ()"])

        def test_passes(flux_postgres_database):
            flux_postgres_database()
        """
    )
    result = project.runpytest_subprocess("--flux-postgres=local")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*DatabaseInitError: step 2 of 2, the SQL 'CREATE TABEL t ()', failed in line 1: *"])


def test_a_failed_tests_databases_are_kept(project: pytest.Pytester) -> None:
    """Promise: on request, each database that a failed test made stays with its data, also one with an owner."""
    project.makepyfile(
        test_it="""
        from helpers import *

        def test_fails(flux_postgres_database):
            for owner in (None, True):
                run(flux_postgres_database(init="CREATE TABLE t (x int)", owner=owner), "INSERT INTO t VALUES (7)")
            assert False
        """
    )
    with start_server("local") as server:
        result = project.runpytest_subprocess(f"--flux-postgres={server.dsn}", "--flux-keep-databases")
        result.assert_outcomes(failed=1)
        kept = re.findall(r"^postgresql://\S+/(flux_memory_kept_\w+)$", result.stdout.str(), re.MULTILINE)
        assert len(kept) == 2

        async def fetch(name: str) -> int:
            connection = await asyncpg.connect(f"{server.dsn.removesuffix('/postgres')}/{name}")
            try:
                return int(await connection.fetchval("SELECT x FROM t"))
            finally:
                await connection.close()

        assert [asyncio.run(fetch(name)) for name in kept] == [7, 7]


def test_settings_reach_the_server(project: pytest.Pytester) -> None:
    """Promise: settings of the ini file and of the command line, which takes precedence, are the server's."""
    project.makeini("""
        [pytest]
        asyncio_default_fixture_loop_scope = function
        flux_postgres_settings =
            max_connections=31
            application_name = from the 'file'
    """)
    project.makepyfile(
        test_it="""
        from helpers import *

        def test_settings(flux_postgres):
            assert run(flux_postgres.dsn, "SHOW max_connections") == "32"
            assert run(flux_postgres.dsn, "SHOW application_name") == "from the 'file'"
        """
    )
    result = project.runpytest_subprocess("--flux-postgres=local", "--flux-postgres-setting=max_connections=32")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "--flux-postgres-setting=fsync",
            "*--flux-postgres-setting: 'fsync' is not a setting; write it as NAME=VALUE*",
        ),
        ("--flux-postgres-version=16.4", "*--flux-postgres-version: '16.4' is not a major version; write them as *"),
        ("--flux-postgres-setting=port=5432", "*the setting port is chosen for each server: remove it*"),
        ("--flux-postgres-version=", "*--flux-postgres-version: '' is not a major version*"),
    ],
)
def test_malformed_options_are_usage_errors(project: pytest.Pytester, option: str, said: str) -> None:
    """Promise: a mistyped option stops the run."""
    result = project.runpytest_subprocess(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_server_that_does_not_start_never_looks_green(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: tuple[str, ...]
) -> None:
    """Promise: a mistake in a setting fails the tests; only a machine without PostgreSQL skips them."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    project.makepyfile("def test_it(flux_postgres): pass\n\ndef test_more(flux_postgres): pass")
    result = project.runpytest_subprocess("--flux-postgres-setting=no_such_setting=1", *workers)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*unrecognized configuration parameter*"])


def test_a_plan_starts_no_server(project: pytest.Pytester) -> None:
    """Promise: runs that run no test start none."""
    project.makepyfile("def test_it(flux_postgres): pass")
    for option in ("--setup-plan", "--collect-only"):
        assert "flux-memory: PostgreSQL" not in project.runpytest_subprocess(option).stdout.str()


VERSIONS = """
    from helpers import *

    def test_version(flux_postgres, flux_postgres_version, flux_postgres_database):
        seen = run(flux_postgres_database(init="CREATE TABLE t ()"), "SHOW server_version")
        assert seen.partition(".")[0] == flux_postgres_version == flux_postgres.version.partition(".")[0]

    def test_other():
        pass
"""


def installed_versions() -> list[str]:
    """Return two major versions that this machine has programs of."""
    versions = [str(number) for number in range(14, 19) if has_programs(str(number))]
    if len(versions) < 2:
        pytest.skip(f"this machine has programs of fewer than two versions of PostgreSQL: {versions}")
    return versions[-2:]


def has_programs(version: str) -> bool:
    try:
        return find_binaries(version) is not None
    except ServerUnavailable:
        return False


@pytest.mark.parametrize("options", [[], ["-n2"]], ids=["alone", "workers"])
def test_tests_run_on_each_version(project: pytest.Pytester, options: list[str]) -> None:
    """Promise: each test that uses PostgreSQL runs once on each version, and the header names the servers."""
    versions = installed_versions()
    project.makepyfile(test_it=VERSIONS)
    chosen = f"--flux-postgres-version={','.join(versions)}"
    result = project.runpytest_subprocess("--flux-postgres=local", chosen, "-v", *options)
    result.assert_outcomes(passed=3)
    for version in versions:
        result.stdout.fnmatch_lines([f"flux-memory: PostgreSQL: {version}.*, from local binaries*"])
        assert f"test_version[postgres{version}]" in result.stdout.str()


def test_the_contract_has_results_for_each_version(project: pytest.Pytester) -> None:
    """Promise: a clause that holds on one version does not hide its failure on another."""
    first, second = installed_versions()
    project.makepyfile(
        test_it=f"""
        import pytest
        from flux_memory import PostgresConversationMemory
        from flux_memory.testkit import MemoryContract

        class Reversed(PostgresConversationMemory):
            async def get_history(self, *arguments, **more):
                return (await super().get_history(*arguments, **more))[::-1]

        class TestMine(MemoryContract):
            backend = "Mine"

            @pytest.fixture
            def memory_factory(self, flux_memory_postgres_dsn, flux_postgres_version):
                kind = Reversed if flux_postgres_version == "{first}" else PostgresConversationMemory
                return lambda: kind(flux_memory_postgres_dsn)
        """
    )
    versions = f"--flux-postgres-version={first},{second}"
    result = project.runpytest_subprocess("--flux-postgres=local", versions, "-k", "FM-ORD-001")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines([rf" +Mine {first} +Mine {second}", r"clauses that hold +0 of 1 +1 of 1"])


def test_a_missing_version_skips_its_tests_only(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: without a requirement, the reason of the skip names the version and how to get it."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    project.makepyfile(test_it=VERSIONS)
    versions = f"--flux-postgres-version=10,{installed_versions()[-1]}"
    result = project.runpytest_subprocess(versions, "-rs")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["flux-memory: PostgreSQL: none of version 10: *"])
    result.stdout.fnmatch_lines(
        ["SKIPPED*no PostgreSQL 10: *no PostgreSQL programs on this machine are of version 10*pip install*"]
    )


@pytest.mark.parametrize("cause", ["--flux-postgres-required", "--flux-postgres=local", "CI"])
def test_a_missing_version_fails_where_it_is_required(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """Promise: in CI, and where a server is required or named, a missing version never looks green."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    if cause == "CI":
        monkeypatch.setenv("CI", "true")
    project.makepyfile(test_it=VERSIONS)
    result = project.runpytest_subprocess("--flux-postgres-version=10", *([] if cause == "CI" else [cause]))
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*no PostgreSQL 10: *no PostgreSQL programs on this machine are of version 10*"])


def test_the_former_name_of_a_fixture_warns(project: pytest.Pytester) -> None:
    """Promise: the old name works with a warning that names the new one; a run without it has no warning."""
    project.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    project.makepyfile(
        test_it="""
        def test_old(flux_postgres_clean_dsn, flux_memory_postgres_dsn, flux_postgres_dsn):
            assert flux_postgres_clean_dsn == flux_memory_postgres_dsn == flux_postgres_dsn
        def test_new(flux_memory_postgres_dsn):
            pass
        """
    )
    result = project.runpytest_subprocess("--flux-postgres=local")
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*PytestDeprecationWarning: the fixture flux_postgres_clean_dsn is deprecated: use *"])
