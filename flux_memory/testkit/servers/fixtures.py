"""The pytest side of the throwaway PostgreSQL: DSN fixtures, the run's header, logs of failed tests."""

# ruff: noqa: PLC0415 - every pytest run imports this module, so heavy imports wait until a test needs them
from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from flux_memory.testkit.servers.run import PostgresRun
    from flux_memory.testkit.servers.server import Server

_SERVER_FIXTURE: Final = "flux_postgres_server"
_DATABASE_FIXTURES: Final = ("flux_postgres_dsn", "flux_postgres_clean_dsn", "flux_empty_database")
_FROM_CONTROLLER: Final = "flux_postgres"
_IDENTITY: Final = pytest.StashKey[tuple[int, str]]()
"""The pid of the process that owns the run, and the run's name."""
_LOG_LINES: Final = 40
_CHOICES: Final = ("auto", "docker", "local", "off")
_DSNS: Final = ("postgresql://", "postgres://")
_DSN_VARIABLE: Final = "FLUX_MEMORY_TEST_DSN"


@pytest.fixture(scope="session")
def flux_postgres_server(request: pytest.FixtureRequest) -> Server:
    """The run's PostgreSQL, shared by all xdist workers.

    If there is none, the test fails if a server is required or was named; otherwise it is skipped.
    """
    from flux_memory.testkit.servers.running import ServerUnavailable

    try:
        return _run_of(request.config).server()
    except ServerUnavailable as error:
        reason = f"no PostgreSQL: {error}"
    if request.config.option.flux_postgres_required or _is_named(request.config):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _is_named(config: pytest.Config) -> bool:
    """Return whether the user named a server, so that skipping would hide a mistake."""
    choice: str = config.option.flux_postgres
    return choice != "off" and (choice != "auto" or bool(os.environ.get(_DSN_VARIABLE)))


@pytest.fixture(scope="session")
def flux_postgres_dsn(flux_postgres_server: Server) -> Iterator[str]:
    """A database of this worker; tests see what earlier tests left there."""
    dsn = flux_postgres_server.create_database()
    yield dsn
    flux_postgres_server.drop_database(dsn)


@pytest.fixture
def flux_postgres_clean_dsn(flux_postgres_server: Server, flux_postgres_dsn: str) -> str:
    """This worker's database without sessions. The tables stay, which makes this the fastest isolation."""
    flux_postgres_server.empty_database(flux_postgres_dsn)
    return flux_postgres_dsn


@pytest.fixture
def flux_empty_database(flux_postgres_server: Server) -> Iterator[str]:
    """A new database without tables, dropped after the test."""
    dsn = flux_postgres_server.create_database()
    yield dsn
    flux_postgres_server.drop_database(dsn)


_RUN: Final = pytest.StashKey["PostgresRun"]()
_ANNOUNCED: Final = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Reject an unknown choice, and agree with the workers on the run's name."""
    choice: str = config.option.flux_postgres
    if choice not in _CHOICES and not choice.startswith(_DSNS):
        # A malformed DSN may contain a password.
        said = repr(choice) if choice.isalnum() else "the value"
        raise pytest.UsageError(
            f"--flux-postgres: {said} is not one of {', '.join(_CHOICES)} or a DSN, postgresql://user:password@host/database"
        )
    config.stash[_IDENTITY] = getattr(config, "workerinput", {}).get(_FROM_CONTROLLER) or (
        os.getpid(),
        os.urandom(4).hex(),
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the controller's run to an xdist worker."""
    node.workerinput[_FROM_CONTROLLER] = list(node.config.stash[_IDENTITY])


def _run_of(config: pytest.Config) -> PostgresRun:
    if _RUN not in config.stash:
        from flux_memory.testkit.servers.run import PostgresRun

        option = config.option
        config.stash[_RUN] = PostgresRun(*config.stash[_IDENTITY], option.flux_postgres, option.flux_postgres_image)
    return config.stash[_RUN]


def _run_in_use(config: pytest.Config) -> PostgresRun | None:
    """Return the run if any of its processes requested the server; cheap if none has."""
    from flux_memory.testkit.servers.directories import named_directory
    from flux_memory.testkit.servers.ownership import mark_of

    if _IDENTITY not in config.stash:
        return None
    owner, name = config.stash[_IDENTITY]
    try:
        return _run_of(config) if named_directory(mark_of(owner), name).exists() else None
    except OSError:
        # Where there is no directory for temporary files, no process has started a server.
        return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the server before the first test, so that the run's header can name it."""
    if session.config.option.collectonly:
        return
    if any(_SERVER_FIXTURE in getattr(item, "fixturenames", ()) for item in session.items):
        from flux_memory.testkit.servers.running import ServerUnavailable

        # The fixture raises it again and decides whether to skip or fail.
        with suppress(ServerUnavailable):
            _run_of(session.config).server()


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Name the server in the run's header."""
    return _announcement(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    """Name the server under xdist: the controller collects nothing, and the first ready worker started the server."""
    reporter = node.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.verbosity >= 0:
        for line in _announcement(node.config):
            reporter.ensure_newline()
            reporter.write_line(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name a server that `getfixturevalue` started late."""
    for line in _announcement(config):
        terminalreporter.write_line(line)


def _announcement(config: pytest.Config) -> list[str]:
    if config.stash.get(_ANNOUNCED, False) or (run := _run_in_use(config)) is None:
        return []
    report = run.report()
    config.stash[_ANNOUNCED] = report is not None
    return [f"flux-memory: PostgreSQL: {report}"] if report else []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hide the shell's `PG*` variables from a test that uses the run's own server: drivers would apply them to it."""
    with pytest.MonkeyPatch.context() as environment:
        if _SERVER_FIXTURE in getattr(item, "fixturenames", ()) and _run_of(item.config).has_own_server:
            for name in [name for name in os.environ if name.startswith("PG")]:
                environment.delenv(name)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the server's log to the report of a failed test that used it, and keep the test's database."""
    report = yield
    if report.failed and _SERVER_FIXTURE in getattr(item, "fixturenames", ()):
        if report.when == "call" and item.config.option.flux_keep_databases:
            report.sections.append(("PostgreSQL databases kept", "\n".join(_keep_databases(item))))
        if tail := _run_of(item.config).log_tail(_LOG_LINES):
            report.sections.append((f"PostgreSQL server log, last {_LOG_LINES} lines", tail))
    return report


def _keep_databases(item: pytest.Item) -> Iterator[str]:
    """Yield the DSNs of the kept copies of a failed test's databases."""
    values: dict[str, Any] = getattr(item, "funcargs", {})
    for dsn in sorted({str(values[name]) for name in _DATABASE_FIXTURES if name in values}):
        try:
            yield _run_of(item.config).keep(dsn)
        except Exception as error:  # noqa: BLE001 - a test's report does not fail with its server
            yield f"none: {error}"


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Release the server; the controller stops it, even if a killed worker started it."""
    if (run := _run_in_use(config)) is not None:
        run.close()
        if config.stash[_IDENTITY][0] == os.getpid():
            try:
                run.stop()
            except Exception as error:  # noqa: BLE001 - the results of the run stand; the next run removes the server
                sys.stderr.write(f"flux-memory: PostgreSQL could not be stopped: {error}\n")
