"""Collects the results of clauses from the reports of a run, including those of xdist workers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final

import pytest

from flux_memory.masking import mask_dsns
from flux_memory.testkit.evidence.document import (
    BackendEvidence,
    CapabilityEvidence,
    ClauseEvidence,
    MutantEvidence,
    Result,
    worst,
)
from flux_memory.testkit.evidence.properties import (
    ADVICE,
    BACKEND,
    BACKEND_VERSION,
    CAPABILITY,
    CLAUSE,
    FACTS,
    LIMITS,
    MUTANT,
    RESULT,
    SEED,
    SERVER,
)

_PASSWORD: Final = re.compile(r"(?<!postgres)(?<!postgresql)(://[^\s:/@]*:)[^\s]*@")
"""Of other URLs than PostgreSQL's, which are masked as a whole."""
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def presentable(text: str) -> str:
    """Return the text with passwords of DSNs masked, and with control characters and surrogates escaped."""
    masked = _PASSWORD.sub(r"\1***@", mask_dsns(text))
    shown = _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", masked)
    return shown.encode("utf-8", "backslashreplace").decode()


def binding_of(nodeid: str, clause_id: str) -> tuple[str, str]:
    """Return the node id of the class that a clause's test belongs to, and the parameters of its fixtures."""
    file, _, test = nodeid.partition("::")
    names, _, parameters = test.partition("[")
    # xdist may append the name of a group.
    return f"{file}::{names.rpartition('::')[0]}", parameters.rpartition("]")[0].replace(clause_id, "", 1)


@dataclass(slots=True)
class BackendOutcomes:
    """One backend's results so far."""

    results: dict[str, Result] = field(default_factory=dict)
    seconds: float = 0.0
    server: str | None = None
    version: str | None = None
    limits: dict[str, int] = field(default_factory=dict)
    advice: str | None = None
    """What the memory lacks of its claims; None if it lacks nothing."""
    capabilities: dict[str, CapabilityEvidence] = field(default_factory=dict)
    ran: set[tuple[str, str, str]] = field(default_factory=set)
    """Each clause with a result, after the binding whose test gave it, since several may have the same name of a
    backend, and the parameters of its fixtures, which are empty for any of them."""
    around: dict[str, float] = field(default_factory=dict)
    """Seconds of setup and teardown, by test."""

    @property
    def isolation_seconds(self) -> float | None:
        """The median time of a clause's setup and teardown."""
        return median(self.around.values()) if self.around else None

    def add(self, clause_id: str, report: pytest.TestReport, found: Result | None) -> None:
        """Add one phase of a clause's test; the worst result of the phases counts."""
        self.seconds += report.duration
        # A test that is skipped at its setup costs nothing and would lower the median.
        if report.when == "setup" and report.passed:
            self.around[report.nodeid] = report.duration
        elif report.when == "teardown" and report.nodeid in self.around:
            self.around[report.nodeid] += report.duration
        if found is not None:
            binding, parameters = binding_of(report.nodeid, clause_id)
            self.ran |= {(binding, "", clause_id), (binding, parameters, clause_id)}
        said = [result for result in (self.results.get(clause_id), found) if result is not None]
        if said:
            self.results[clause_id] = replace(worst(said), seconds=max(result.seconds for result in said))


@dataclass(slots=True)
class Collector:
    """The results of a run so far."""

    backends: dict[str, BackendOutcomes] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    """The texts of each clause that ran: `group`, `since`, `promise`, `impact`."""
    seeds: dict[str, str] = field(default_factory=dict)
    mutants: dict[str, bool] = field(default_factory=dict)
    """Whether each broken backend was caught."""
    _begun: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, report: pytest.TestReport) -> None:
        """Add one phase of a test."""
        said: dict[str, Any] = dict(report.user_properties)
        self.seeds.update((str(name), str(value)) for name, value in _all(SEED, report))
        if MUTANT in said and (report.when == "call" or not report.passed):
            name = str(said[MUTANT])
            self.mutants[name] = report.passed and self.mutants.get(name, True)
        if CLAUSE in said:
            self._begun[report.nodeid] = (said[BACKEND], said[CLAUSE])
            self.facts.setdefault(said[CLAUSE], {}).update(said.get(FACTS, {}))
            self._add_phase(report, said)
        elif report.failed and report.nodeid in self._begun:
            # The report of a crashed worker has only the name of its last test.
            backend, clause_id = self._begun[report.nodeid]
            crash = Result("failed", reason=presentable(str(report.longrepr)), test=report.nodeid)
            self.backends[backend].add(clause_id, report, crash)

    def _add_phase(self, report: pytest.TestReport, said: dict[str, Any]) -> None:
        outcomes = self.backends.setdefault(said[BACKEND], BackendOutcomes())
        outcomes.server = said.get(SERVER, outcomes.server)
        outcomes.version = said.get(BACKEND_VERSION, outcomes.version)
        outcomes.limits |= said.get(LIMITS, {})
        outcomes.advice = said.get(ADVICE, outcomes.advice)
        for each in _all(CAPABILITY, report):
            outcomes.capabilities[each["name"]] = CapabilityEvidence(**each)
        seconds = report.duration if report.when == "call" else 0.0
        found = Result(**said[RESULT], seconds=round(seconds, 6), test=report.nodeid) if RESULT in said else None
        outcomes.add(said[CLAUSE], report, found)

    def backend_evidence(self) -> list[BackendEvidence]:
        """Return the evidence of each backend without its clauses."""
        return [
            BackendEvidence(
                name=name,
                version=each.version,
                server=each.server,
                seconds=round(each.seconds, 3),
                isolation_seconds=None if each.isolation_seconds is None else round(each.isolation_seconds, 6),
                limits=each.limits,
                capabilities=[each.capabilities[key] for key in sorted(each.capabilities)],
            )
            for name, each in self.backends.items()
        ]

    def clause_evidence(self, wanted: Mapping[str, dict[str, str]], order: Sequence[str]) -> list[ClauseEvidence]:
        """Return each clause with its results.

        Args:
            wanted: The texts of the clauses that every backend should run; those without a result are `not run`.
            order: The group parts of the ids, in display order.
        """
        words = {**self.facts, **wanted}
        begun = set(self._begun.values())
        clauses = []
        for clause_id in sorted(words, key=lambda each: (order.index(each[3:6]), each)):
            results = {
                name: each.results.get(clause_id, Result("not run"))
                for name, each in self.backends.items()
                if clause_id in wanted or (name, clause_id) in begun
            }
            clauses.append(ClauseEvidence(id=clause_id, results=results, **words[clause_id]))
        return clauses

    def mutant_evidence(self) -> MutantEvidence | None:
        """Return how many broken backends were caught; None if the run tried none."""
        if not self.mutants:
            return None
        survivors = sorted(name for name, caught in self.mutants.items() if not caught)
        return MutantEvidence(len(self.mutants) - len(survivors), len(self.mutants), survivors)


def _all(wanted: str, report: pytest.TestReport) -> list[Any]:
    return [value for name, value in report.user_properties if name == wanted]
