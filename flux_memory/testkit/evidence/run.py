"""The evidence of this run: collects it, and writes it where `--flux-report` says."""

# ruff: noqa: PLC0415 - every pytest run imports this module: what is heavy waits until there is a clause
from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from flux_memory.testkit.evidence.properties import CLAUSE, MUTANT

if TYPE_CHECKING:
    from flux_memory.testkit.evidence.collect import Collector
    from flux_memory.testkit.evidence.document import Evidence

RUN: Final = pytest.StashKey["RunEvidence"]()
_SEED_OPTIONS: Final = {"hypothesis": "hypothesis_seed", "pytest-randomly": "randomly_seed"}


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be honoured before anything runs, and begin to collect."""
    pinned: str | None = config.option.flux_contract
    if pinned is not None:
        from flux_memory.testkit.clauses import CONTRACT_VERSION
        from flux_memory.testkit.evidence.versions import check_pin

        try:
            check_pin(pinned, CONTRACT_VERSION)
        except ValueError as error:
            raise pytest.UsageError(f"--flux-contract: {error}") from error
    directory = _directory(config)
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise pytest.UsageError(f"--flux-report: {error}") from error
    config.stash[RUN] = RunEvidence(config, directory)
    config.pluginmanager.register(config.stash[RUN], "flux_memory_run_evidence")


def _directory(config: pytest.Config) -> Path | None:
    wanted: str | None = config.option.flux_report
    # A worker's reports travel to the controller, which writes.
    if wanted is None or hasattr(config, "workerinput"):
        return None
    return config.invocation_params.dir / Path(wanted).expanduser()


class RunEvidence:
    """What this process has seen of the run; xdist's controller sees all of it."""

    def __init__(self, config: pytest.Config, directory: Path | None) -> None:
        self.collector: Collector | None = None
        """None as long as the run has had no clause."""
        self._written: list[Path] = []
        self._config = config
        self._directory = directory
        self._started = datetime.now(UTC)
        self._began = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in one phase of a test."""
        if self.collector is None:
            if not any(name in {CLAUSE, MUTANT} for name, _ in report.user_properties):
                return
            from flux_memory.testkit.evidence.collect import Collector

            self.collector = Collector()
        self.collector.add(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the files."""
        if self._directory is not None and self.collector is not None and self.collector.backends:
            from flux_memory.testkit.evidence.files import write_files

            self._written = write_files(self.evidence(self.collector), self._directory)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Close a run that had clauses with a table of them, and say what was written, or that nothing was."""
        if self.collector is not None and self.collector.backends:
            from flux_memory.testkit.evidence.table import write_table

            write_table(terminalreporter, self.evidence(self.collector))
        if self._directory is not None:
            names = ", ".join(path.name for path in self._written) or "nothing: the run had no clause"
            terminalreporter.write_line(f"flux-memory: report in {self._directory}: {names}")

    def evidence(self, collector: Collector) -> Evidence:
        """Return what was found out as a document."""
        from flux_memory.testkit.clauses import CONTRACT_VERSION, GROUPS
        from flux_memory.testkit.evidence.document import Evidence
        from flux_memory.testkit.evidence.surroundings import environment

        return Evidence(
            contract=CONTRACT_VERSION,
            pinned=self._config.option.flux_contract,
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._began, 3),
            environment=environment(self._config),
            seeds={**self._seeds(), **collector.seeds},
            mutants=collector.mutant_evidence(),
            backends=collector.backend_evidence(),
            clauses=collector.clause_evidence(words_of_the_contract(), list(GROUPS)),
        )

    def _seeds(self) -> dict[str, str]:
        found = {name: getattr(self._config.option, option, None) for name, option in _SEED_OPTIONS.items()}
        found["PYTHONHASHSEED"] = os.environ.get("PYTHONHASHSEED")
        return {name: str(value) for name, value in found.items() if value is not None}


def words_of_the_contract() -> dict[str, dict[str, str]]:
    """Return the words of every clause that the kit ships, by id."""
    from flux_memory.testkit.clauses import CLAUSES
    from flux_memory.testkit.contract import MemoryContract

    ours = MemoryContract.__module__
    return {clause_id: clause.words() for clause_id, clause in CLAUSES.items() if clause.home.startswith(ours)}
