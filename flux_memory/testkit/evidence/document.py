"""The evidence of a run as data: the JSON that `--flux-report` writes, and its reader."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

FORMAT: Final = 1
"""The version of the JSON's structure. Added keys do not change it; readers ignore unknown keys."""
FILE_NAME: Final = "contract.json"

Outcome = Literal["held", "failed", "advisory", "unverified", "unverifiable", "not claimed", "thorough only", "not run"]
"""`advisory`: failed, but newer than the contract that the backend is held to. `unverifiable`: unverified, as the
binding declares. `not claimed`: the clause needs a capability that the backend does not claim. `thorough only`: the
clause takes too long for the fast profile."""
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

T = TypeVar("T")


class NotEvidence(ValueError):  # noqa: N818 - states what the file is
    """The file is not the evidence of a run, or has a newer format."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one clause on one backend."""

    outcome: Outcome
    seconds: float = 0.0
    reason: str = ""
    """Why the clause did not hold; empty if it did."""
    reproduction: str = ""
    """Code that reproduces a failure."""
    test: str = ""
    """The test's node id."""
    known: bool = False
    """Whether it failed as the binding declares by `known_failure`."""
    fault: bool = False
    """Whether it is unverified because the binding cannot be used, which is an error."""
    left_out: list[str] = field(default_factory=list)
    """Parts of a clause that held which only the thorough profile runs."""

    @property
    def holds(self) -> bool:
        """Whether the clause held."""
        return self.outcome == "held"

    @property
    def fails_the_run(self) -> bool:
        """Whether the run must fail because of this result."""
        return (self.outcome == "failed" and not self.known) or self.fault


@dataclass(frozen=True, slots=True)
class ClauseEvidence:
    """One clause and its results by backend."""

    id: str
    group: str
    since: str
    promise: str
    impact: str
    results: dict[str, Result]


@dataclass(frozen=True, slots=True)
class CapabilityEvidence:
    """One capability of a backend, as claimed and as found."""

    name: str
    claimed: bool
    outcome: str
    """`works`, `refused`, `is not there`, or something worse."""

    @property
    def as_claimed(self) -> bool:
        """Whether the finding matches the claim."""
        return self.outcome in ({"works"} if self.claimed else {"refused", "is not there"})


@dataclass(frozen=True, slots=True)
class BackendEvidence:
    """One backend of the run."""

    name: str
    version: str | None = None
    server: str | None = None
    seconds: float = 0.0
    isolation_seconds: float | None = None
    """The median time of a clause's setup and teardown."""
    capabilities: list[CapabilityEvidence] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    """The limits that the binding states and that are smaller than the library's, by name."""

    @property
    def about(self) -> str:
        """The version, the server and the limits in one line; empty without any."""
        limits = (f"{name} = {value}" for name, value in self.limits.items())
        return ", ".join(filter(None, (self.version, self.server, *limits)))


@dataclass(frozen=True, slots=True)
class MutantEvidence:
    """How many of the broken backends were caught."""

    caught: int
    total: int
    survivors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One run."""

    contract: str
    """The contract's version."""
    pinned: str | None
    """The version of `--flux-contract`, if given."""
    started: str
    seconds: float
    environment: dict[str, str]
    seeds: dict[str, str]
    mutants: MutantEvidence | None
    backends: list[BackendEvidence]
    clauses: list[ClauseEvidence]
    format: int = FORMAT

    def results_of(self, backend: str) -> Iterator[tuple[ClauseEvidence, Result]]:
        """Return the clauses of a backend with their results."""
        return ((clause, clause.results[backend]) for clause in self.clauses if backend in clause.results)

    def parts_left_out(self, backend: str) -> dict[str, list[str]]:
        """Return the parts of a backend's clauses that only the thorough profile runs, with the clauses' ids."""
        parts: dict[str, list[str]] = {}
        for clause, result in self.results_of(backend):
            for part in result.left_out:
                parts.setdefault(part, []).append(clause.id)
        return parts

    def count(self, backend: str, outcome: Outcome) -> int:
        """Count a backend's clauses with this outcome."""
        return sum(result.outcome == outcome for _, result in self.results_of(backend))

    def by_group(self) -> dict[str, list[ClauseEvidence]]:
        """Return the clauses under the titles of their groups."""
        groups: dict[str, list[ClauseEvidence]] = {}
        for clause in self.clauses:
            groups.setdefault(clause.group, []).append(clause)
        return groups

    def to_json(self) -> str:
        """Return the JSON text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


AGAINST: Final[tuple[Outcome, ...]] = ("failed", "unverified", "not run")
"""The outcomes that count against a backend, worst first."""
NOT_ASKED: Final[tuple[Outcome, ...]] = ("thorough only", "unverifiable", "not claimed")
"""The outcomes that count neither for a backend nor against it: the profile or the binding says so."""
_WORST_FIRST: Final[tuple[Outcome, ...]] = (*AGAINST, "advisory", *NOT_ASKED, "held")


def worst(results: Iterable[Result]) -> Result:
    """Return the result with the worst outcome."""
    return min(results, key=lambda result: _WORST_FIRST.index(result.outcome))


def verdict(results: Iterable[Result]) -> tuple[str, Outcome]:
    """Return a summary of these results and their worst outcome, which is `held` only if a clause held."""
    outcomes = [result.outcome for result in results]
    asked = sum(outcome not in NOT_ASKED for outcome in outcomes)
    for outcome in AGAINST:
        if count := outcomes.count(outcome):
            return f"{count} of {asked} {outcome}", outcome
    others: tuple[Outcome, ...] = ("advisory", *NOT_ASKED)
    counted = "".join(f", {count} {outcome}" for outcome in others if (count := outcomes.count(outcome)))
    held = outcomes.count("held")
    return (f"{held} hold{counted}", "held") if held else (f"none held{counted}", "unverified")


def read_evidence(path: Path) -> Evidence:
    """Read the JSON file of a run, given its path or its directory.

    Raises:
        NotEvidence: the file is not evidence, or has a newer format.
        OSError: the file cannot be read.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        data = json.loads(file.read_bytes())
        if not isinstance(data, dict) or "format" not in data or "clauses" not in data:
            raise NotEvidence(f"{file} is not what --flux-report writes as {FILE_NAME}")
        if data["format"] != FORMAT:
            raise NotEvidence(f"{file} has format {data['format']}, this release reads {FORMAT}; update flux-memory")
        return _evidence(data)
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NotEvidence(f"{file} is not what --flux-report writes as {FILE_NAME}: {error!r}") from error


def _evidence(data: Mapping[str, Any]) -> Evidence:
    mutants = data["mutants"]
    return _known(
        Evidence,
        data,
        mutants=None if mutants is None else _known(MutantEvidence, mutants),
        backends=[_backend(each) for each in data["backends"]],
        clauses=[_clause(each) for each in data["clauses"]],
    )


def _backend(data: Mapping[str, Any]) -> BackendEvidence:
    return _known(
        BackendEvidence, data, capabilities=[_known(CapabilityEvidence, each) for each in data["capabilities"]]
    )


def _clause(data: Mapping[str, Any]) -> ClauseEvidence:
    results = {backend: _known(Result, each) for backend, each in data["results"].items()}
    for result in results.values():
        if result.outcome not in OUTCOMES:
            raise TypeError(f"an outcome {result.outcome!r}")
    return _known(ClauseEvidence, data, results=results)


def _known(kind: type[T], data: Mapping[str, Any], **made: Any) -> T:
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in data.items() if name in names} | made)
