"""The pytest hooks of the throwaway PostgreSQL: the run's header, versions, logs and databases of failed tests."""

# ruff: noqa: PLC0415 - every pytest run imports this module, so heavy imports wait until a test needs them
from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest

from flux_memory.testkit.servers.options import check_server_options
from flux_memory.testkit.servers.run_identity import RunIdentity
from flux_memory.testkit.servers.runs import VERSION_FIXTURE, PostgresRuns, has_runs, runs_of, set_runs

if TYPE_CHECKING:
    from flux_memory.testkit.servers.run import PostgresRun

_DATABASE_FIXTURES: Final = (
    *("flux_postgres_dsn", "flux_memory_postgres_dsn", "flux_postgres_clean_dsn"),
    *("flux_empty_database", "flux_postgres_database"),
)
"""The fixtures that know the databases of a test: by their DSN, or by a method `dsns`."""
_FROM_CONTROLLER: Final = "flux_postgres"
_LOG_LINES: Final = 40
_CHOICES: Final = ("auto", "docker", "local", "off")
_DSNS: Final = ("postgresql://", "postgres://")
_ANNOUNCED: Final = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Reject an unknown choice, and agree with the workers on the run's identity."""
    choice: str = config.option.flux_postgres
    if choice not in _CHOICES and not choice.startswith(_DSNS):
        # A malformed DSN may contain a password.
        said = repr(choice) if choice.isalnum() else "the value"
        raise pytest.UsageError(
            f"--flux-postgres: {said} is not one of {', '.join(_CHOICES)} or a DSN, postgresql://user:password@host/database"
        )
    check_server_options(config)
    given = getattr(config, "workerinput", {}).get(_FROM_CONTROLLER)
    set_runs(config, PostgresRuns(config, RunIdentity(*given) if given else RunIdentity.new()))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the controller's run to an xdist worker."""
    node.workerinput[_FROM_CONTROLLER] = list(runs_of(node.config).identity)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses PostgreSQL on each version of `--flux-postgres-version`."""
    versions = [version for version in runs_of(metafunc.config).versions if version is not None]
    if versions and VERSION_FIXTURE in metafunc.fixturenames:
        ids = [f"postgres{version}" for version in versions]
        metafunc.parametrize(VERSION_FIXTURE, versions, ids=ids, indirect=True, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers before the first test, so that the run's header can name them."""
    if session.config.option.collectonly or session.config.option.setupplan:
        return
    runs = runs_of(session.config)
    for run in dict.fromkeys(run for item in session.items if (run := runs.of_item(item)) is not None):
        from flux_memory.testkit.servers.running import ServerUnavailable

        # The fixture raises it again and decides whether to skip or fail.
        with suppress(ServerUnavailable):
            run.server()


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Name the servers in the run's header."""
    return _announcements(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    """Name the servers under xdist: the controller collects nothing, and the first ready worker started them."""
    reporter = node.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.verbosity >= 0:
        for line in _announcements(node.config):
            reporter.ensure_newline()
            reporter.write_line(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name a server that `getfixturevalue` started late."""
    for line in _announcements(config):
        terminalreporter.write_line(line)


def _announcements(config: pytest.Config) -> list[str]:
    announced = config.stash.setdefault(_ANNOUNCED, set())
    reports = [report for run in runs_of(config).in_use() if (report := run.report()) and report not in announced]
    announced.update(reports)
    return [f"flux-memory: PostgreSQL: {report}" for report in reports]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hide the shell's `PG*` variables from a test that uses the run's own server: drivers would apply them to it."""
    with pytest.MonkeyPatch.context() as environment:
        run = runs_of(item.config).of_item(item)
        if run is not None and run.has_own_server:
            for name in [name for name in os.environ if name.startswith("PG")]:
                environment.delenv(name)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the server's log to the report of a failed test that used it, and keep the test's database."""
    report = yield
    if report.failed and (run := runs_of(item.config).of_item(item)) is not None:
        if report.when == "call" and item.config.option.flux_keep_databases:
            report.sections.append(("PostgreSQL databases kept", "\n".join(_keep_databases(item, run))))
        if tail := run.log_tail(_LOG_LINES):
            report.sections.append((f"PostgreSQL server log, last {_LOG_LINES} lines", tail))
    return report


def _keep_databases(item: pytest.Item, run: PostgresRun) -> Iterator[str]:
    """Yield the DSNs of the kept copies of a failed test's databases."""
    values: dict[str, Any] = getattr(item, "funcargs", {})
    used = [values[name] for name in _DATABASE_FIXTURES if name in values]
    for dsn in sorted({dsn for value in used for dsn in (value.dsns() if hasattr(value, "dsns") else [str(value)])}):
        try:
            yield run.keep(dsn)
        except Exception as error:  # noqa: BLE001 - a test's report does not fail with its server
            yield f"none: {error}"


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Release the servers; the controller stops them, even if a killed worker started them."""
    if not has_runs(config):
        return
    runs = runs_of(config)
    for run in runs.in_use():
        run.close()
        if runs.is_owner:
            try:
                run.stop()
            except Exception as error:  # noqa: BLE001 - the results of the run stand; the next run removes the server
                sys.stderr.write(f"flux-memory: PostgreSQL could not be stopped: {error}\n")
