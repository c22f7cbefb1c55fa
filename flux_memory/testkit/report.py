"""What a pytest run says of clauses: why a failed one matters and how to reproduce it, and the closing table."""

# ruff: noqa: PLC0415 - every pytest run imports this module: what is heavy waits until there is a clause
from __future__ import annotations

import platform
from collections.abc import Generator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final, Literal

import pytest

Outcome = Literal["held", "failed", "unverified"]

_CLAUSE: Final = "flux_clause"
_BACKEND: Final = "flux_backend"
_SERVER: Final = "flux_server"
_TABLE: Final = "flux_memory_closing_table"
_PLUGGED_IN: Final = "test_plugged_in.py"
_SERVER_FIXTURE: Final = "flux_postgres_server"


def pytest_configure(config: pytest.Config) -> None:
    """Collect the outcomes of clauses."""
    config.pluginmanager.register(ClosingTable(), _TABLE)


def clause_of(item: pytest.Item) -> str | None:
    """Return the id of the clause that a test is, if it is one."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(_CLAUSE)


def backend_of(item: pytest.Item) -> str:
    """Return the name of the backend that a clause is bound to."""
    binding = getattr(item, "cls", None)
    if item.path.name == _PLUGGED_IN and item.config.option.flux_memory_factory:
        return str(item.config.option.flux_memory_factory)
    return getattr(binding, "backend", None) or getattr(binding, "__name__", "?")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let a clause's id and backend travel with its report, and refuse runs that cannot check clauses."""
    clauses = [item for item in items if clause_of(item)]
    for item in clauses:
        item.user_properties += [(_CLAUSE, clause_of(item)), (_BACKEND, backend_of(item))]
    # An error here would be an internal error of an xdist worker; there each clause fails at its setup instead.
    if clauses and not hasattr(config, "workerinput") and (reason := _cannot_run(clauses)):
        raise pytest.UsageError(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a clause that cannot be checked."""
    if clause_of(item) and (reason := _cannot_run([item])):
        pytest.fail(reason, pytrace=False)


def _cannot_run(clauses: list[pytest.Item]) -> str | None:
    config = clauses[0].config
    if config.pluginmanager.hasplugin("anyio") and _anyio_mode(config) == "auto":
        return (
            "anyio_mode=auto takes the contract's tests away from pytest-asyncio; "
            "set anyio_mode=strict and mark your own tests with pytest.mark.anyio"
        )
    if not config.option.flux_memory_factory and any(item.path.name == _PLUGGED_IN for item in clauses):
        return (
            "which memory? Say --flux-memory-factory=module:callable; the callable takes an empty directory "
            "(pathlib.Path) and returns a handle on the store there"
        )
    return None


def _anyio_mode(config: pytest.Config) -> object:
    try:
        return config.getini("anyio_mode")
    except ValueError:
        # Older versions have no modes.
        return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say of a failed clause what was promised, what users lose, what was seen, and how to see it again."""
    report = yield
    clause_id = clause_of(item)
    if clause_id is None:
        return report
    if report.when == "setup" and (server := getattr(item, "funcargs", {}).get(_SERVER_FIXTURE)) is not None:
        item.user_properties.append((_SERVER, f"PostgreSQL {server.version}, {server.origin}"))
    if report.failed and call.excinfo is not None:
        from flux_memory.testkit.clauses import CLAUSES

        clause = CLAUSES[clause_id]
        lines = [
            f"promised:  {clause.promise}",
            f"users lose: {clause.loses}",
            f"seen:      {call.excinfo.exconly():.600}",
        ]
        if (store := getattr(item, "funcargs", {}).get("store")) is not None and store.transcript.calls:
            lines += ["to reproduce:", "", store.transcript.text()]
        report.sections.append((f"{clause_id} does not hold for {backend_of(item)}", "\n".join(lines)))
    return report


@dataclass(slots=True)
class Column:
    """One backend's outcomes, by clause."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    server: str | None = None

    def add(self, clause_id: str, report: pytest.TestReport) -> None:
        """Take in the report of one phase of a clause; what failed or was skipped stays so."""
        self.seconds += report.duration
        if report.passed and clause_id not in self.outcomes:
            self.outcomes[clause_id] = "held"
        elif report.failed or hasattr(report, "wasxfail"):
            self.outcomes[clause_id] = "failed"
            known = getattr(report, "wasxfail", None)
            self.reasons[clause_id] = f"known: {known}" if known is not None else report.nodeid
        elif report.skipped:
            self.outcomes[clause_id] = "unverified"
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.reasons[clause_id] = reason.removeprefix("Skipped: ").removeprefix("unverified: ")

    def count(self, outcome: Outcome, group: str | None = None) -> int:
        """Count the clauses with this outcome, of one group or of all."""
        return sum(
            1 for clause_id, had in self.outcomes.items() if had == outcome and group in {None, clause_id[3:6]}
        )

    def cell(self, group: str) -> tuple[str, bool]:
        """Return what the table shows of a group, and whether all of it held."""
        held, failed, unverified = (self.count(outcome, group) for outcome in ("held", "failed", "unverified"))
        total = held + failed + unverified
        return (str(held) if held == total else f"{held} of {total}", held == total)


class ClosingTable:
    """Counts clauses by group and backend, also those that ran in xdist's workers, and closes the run with a table."""

    def __init__(self) -> None:
        self.columns: dict[str, Column] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in one phase of a test."""
        properties = dict(report.user_properties)
        if clause_id := properties.get(_CLAUSE):
            column = self.columns.setdefault(str(properties[_BACKEND]), Column())
            column.add(str(clause_id), report)
            column.server = column.server or (str(properties[_SERVER]) if _SERVER in properties else None)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the table."""
        if not self.columns:
            return
        from flux_memory.testkit.clauses import CONTRACT_VERSION

        terminalreporter.section(f"flux-memory contract {CONTRACT_VERSION}")
        self._write_counts(terminalreporter)
        for name, column in self.columns.items():
            for clause_id, reason in sorted(column.reasons.items()):
                failed = column.outcomes[clause_id] == "failed"
                line = f"{column.outcomes[clause_id]}: {clause_id} on {name}: {reason}"
                terminalreporter.write_line(line, red=failed, yellow=not failed)
        terminalreporter.write_line("")
        for name, column in self.columns.items():
            if column.server:
                terminalreporter.write_line(f"{name}: {column.server}")
        packages = ", ".join(f"{package} {version(package)}" for package in ("flux-memory", "pytest", "pytest-asyncio"))
        terminalreporter.write_line(f"{packages}, Python {platform.python_version()}, {platform.system()}")

    def _write_counts(self, terminalreporter: pytest.TerminalReporter) -> None:
        from flux_memory.testkit.clauses import GROUPS

        columns = list(self.columns.values())
        widths = [max(len(name), len("999 of 999")) + 3 for name in self.columns]
        names = [f"{name:>{width}}" for name, width in zip(self.columns, widths, strict=True)]
        left = max(map(len, GROUPS.values()))
        terminalreporter.write_line(" " * left + "".join(names), bold=True)
        for group, title in GROUPS.items():
            if not any(column.cell(group)[0] != "0" for column in columns):
                continue
            terminalreporter.write(f"{title:<{left}}")
            for column, width in zip(columns, widths, strict=True):
                text, held = column.cell(group)
                terminalreporter.write(f"{text:>{width}}", green=held, red=not held)
            terminalreporter.write_line("")
        terminalreporter.write_line("-" * (left + sum(widths)))
        totals = [(f"{column.count('held')} of {len(column.outcomes)}") for column in columns]
        rows = [("clauses that hold", totals)]
        rows += [(outcome, [str(column.count(outcome)) for column in columns]) for outcome in ("failed", "unverified")]
        rows += [("not run", [str(_not_run(column)) for column in columns])]
        for title, cells in rows:
            if title == "clauses that hold" or any(cell != "0" for cell in cells):
                line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
                terminalreporter.write_line(f"{title:<{left}}{line}", bold=True)
        seconds = "".join(f"{column.seconds:>{width}.1f}" for column, width in zip(columns, widths, strict=True))
        terminalreporter.write_line(f"{'seconds':<{left}}{seconds}")
        terminalreporter.write_line("")


def _not_run(column: Column) -> int:
    from flux_memory.testkit.clauses import CLAUSES
    from flux_memory.testkit.contract import MemoryContract

    ours = {clause_id for clause_id, clause in CLAUSES.items() if clause.home.startswith(MemoryContract.__module__)}
    return len(ours - column.outcomes.keys())
