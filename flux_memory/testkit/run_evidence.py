"""The evidence of a pytest run: collects it, writes the files of `--flux-report`, and fails a run that lacks it."""

# ruff: noqa: PLC0415 - every pytest run imports this module, so heavy imports wait for the first clause
from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from flux_memory.testkit.evidence.properties import CLAUSE, MUTANT

if TYPE_CHECKING:
    from flux_memory.testkit.evidence.collect import Collector
    from flux_memory.testkit.evidence.document import Evidence

RUN: Final = pytest.StashKey["RunEvidence"]()
_EXPECTED: Final = "flux_expected"
_SEED_OPTIONS: Final = {"hypothesis": "hypothesis_seed", "pytest-randomly": "randomly_seed"}


def pytest_configure(config: pytest.Config) -> None:
    """Check `--flux-contract` and `--flux-report` before any test runs, and start collecting."""
    pinned: str | None = config.option.flux_contract
    if pinned is not None:
        from flux_memory.testkit.clauses import CONTRACT_VERSION
        from flux_memory.testkit.versions import check_pin

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
    # An xdist worker sends its reports to the controller, which writes the files.
    if wanted is None or hasattr(config, "workerinput"):
        return None
    return config.invocation_params.dir / Path(wanted).expanduser()


class RunEvidence:
    """The results that this process has seen; xdist's controller sees all of them."""

    def __init__(self, config: pytest.Config, directory: Path | None) -> None:
        self.collector: Collector | None = None
        """None until the first report of a clause."""
        self._expected: dict[str, set[tuple[str, str, str]]] = {}
        """The node ids of the bindings of each backend, the parameters of their fixtures, and the ids of clauses."""
        self._objections: list[str] = []
        self._written: list[Path] = []
        self._config = config
        self._directory = directory
        self._started = datetime.now(UTC)
        self._began = time.monotonic()

    def expect(self, backend: str, test: str, clause_id: str, clause_ids: Iterable[str]) -> None:
        """Note the clauses of one binding of a backend, given the node id and the clause of one of its tests."""
        from flux_memory.testkit.evidence.collect import binding_of

        binding, parameters = binding_of(test, clause_id)
        expected = self._expected.setdefault(backend, set())
        if (binding, "", clause_id) not in expected:
            expected.update((binding, "", each) for each in clause_ids)
        expected.add((binding, parameters, clause_id))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Note the clauses that an xdist worker has collected."""
        for backend, clauses in getattr(node, "workeroutput", {}).get(_EXPECTED, {}).items():
            self._expected.setdefault(backend, set()).update(map(tuple, clauses))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase of a test."""
        if self.collector is None:
            if not any(name in {CLAUSE, MUTANT} for name, _ in report.user_properties):
                return
            from flux_memory.testkit.evidence.collect import Collector

            self.collector = Collector()
        self.collector.add(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files, and fail a run that is green although its clauses are not."""
        # pytest-xdist gives its workers this attribute, and carries its content to the main process.
        output: dict[str, object] | None = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[_EXPECTED] = {name: sorted(clauses) for name, clauses in self._expected.items()}
            return
        if self._directory is not None and self.collector is not None and self.collector.backends:
            from flux_memory.testkit.evidence.files import write_files

            self._written = write_files(self.evidence(self.collector), self._directory)
        if session.exitstatus == pytest.ExitCode.OK and not self._config.option.collectonly:
            self._objections = list(self._find_objections())
            if self._objections:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _find_objections(self) -> Iterator[str]:
        """Yield the reasons why a green run must fail."""
        from flux_memory.testkit.evidence.document import NOT_ASKED

        backends = {} if self.collector is None else self.collector.backends
        found = {name: each.results for name, each in backends.items()}
        outcomes = {result.outcome for results in found.values() for result in results.values()}
        if outcomes and outcomes <= {"unverified", *NOT_ASKED}:
            yield "no clause could be checked"
        if self._config.option.flux_strict and not self._expected:
            yield "the run is strict, and has no clause"
        for name, expected in self._expected.items():
            results = found.get(name, {})
            if failed := [clause_id for clause_id, result in results.items() if result.fails_the_run]:
                yield f"{name}: a plugin or a conftest.py reported as passed what failed: {', '.join(failed)}"
            if self._config.option.flux_strict:
                if missing := expected - (backends[name].ran if name in backends else set()):
                    count = f"{len(_without_parameters(missing))} of {len(_without_parameters(expected))}"
                    yield f"{name}: the run is strict, and {count} clauses did not run"
                if unverified := [each for each, result in results.items() if result.outcome == "unverified"]:
                    yield f"{name}: the run is strict, and these clauses are unverified: {', '.join(unverified)}"
                if results and not any(result.holds for result in results.values()):
                    yield f"{name}: the run is strict, and no clause held"

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table of clauses, the files that were written, and why the run fails although it is green."""
        if self.collector is not None and self.collector.backends:
            from flux_memory.testkit.evidence.table import write_table

            write_table(terminalreporter, self.evidence(self.collector))
            for name, backend in self.collector.backends.items():
                if backend.advice is not None:
                    terminalreporter.write_line(f"flux-memory: {name}: {backend.advice}", red=True)
            from flux_memory.testkit.contract.preflight import advise_on_distance

            for advice in advise_on_distance(self._config):
                terminalreporter.write_line(f"flux-memory: {advice}", yellow=True)
        elif self._expected and not self._config.option.collectonly:
            names = ", ".join(self._expected)
            count = sum(len(_without_parameters(expected)) for expected in self._expected.values())
            terminalreporter.write_line(
                f"flux-memory: no clause ran: all {count} of {names} were deselected", yellow=True
            )
        if self._directory is not None:
            names = ", ".join(path.name for path in self._written) or "nothing: the run had no clause"
            terminalreporter.write_line(f"flux-memory: report in {self._directory}: {names}")
        for objection in self._objections:
            terminalreporter.write_line(f"flux-memory: the run fails: {objection}", red=True)

    def evidence(self, collector: Collector) -> Evidence:
        """Return the evidence of the run."""
        from flux_memory.testkit.clauses import CONTRACT_VERSION, GROUPS
        from flux_memory.testkit.evidence.document import Evidence
        from flux_memory.testkit.evidence.environment import environment

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


def _without_parameters(clauses: set[tuple[str, str, str]]) -> set[tuple[str, str]]:
    return {(binding, clause_id) for binding, _, clause_id in clauses}


def words_of_the_contract() -> dict[str, dict[str, str]]:
    """Return the texts of the kit's own clauses, by id."""
    from flux_memory.testkit.clauses import CLAUSES
    from flux_memory.testkit.contract import MemoryContract

    ours = MemoryContract.__module__
    return {clause_id: clause.words() for clause_id, clause in CLAUSES.items() if clause.home.startswith(ours)}
