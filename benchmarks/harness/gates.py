"""The targets of the library: its ratios to the ceilings and to the stores that people use today."""

from __future__ import annotations

from typing import Final, NamedTuple

from harness.results import Case, Run

POOL: Final = 10
CONCURRENCY: Final = (1, 10, 64)


class Gate(NamedTuple):
    """One line of the table: the minimum ratio of calls a second to the base, by concurrency."""

    engine: str
    work: str
    base: str
    targets: tuple[float, float, float]


GATES: Final = (
    Gate("postgres", "add", "pgbench", (0.95, 1.05, 1.6)),
    Gate("postgres", "add", "openai-agents SQLAlchemySession", (8, 15, 30)),
    Gate("postgres", "history", "pgbench", (0.6, 0.4, 0.5)),
    Gate("postgres", "history", "openai-agents SQLAlchemySession", (6, 6, 8)),
    Gate("postgres", "mix", "openai-agents SQLAlchemySession", (6, 6, 8)),
    Gate("sqlite", "add", "sqlite3, raw", (0.65, 1.7, 3)),
    Gate("sqlite", "add", "openai-agents SQLiteSession", (1.2, 4, 8)),
    Gate("sqlite", "history", "sqlite3, raw", (0.9, 0.9, 0.9)),
)


class Limit(NamedTuple):
    """The layer below the library against the base of a gate: calls that share nothing cannot exceed this ratio."""

    engine: str
    work: str
    name: str
    base: str


LIMITS: Final = (
    Limit("postgres", "add", "asyncpg, raw", "pgbench"),
    Limit("postgres", "add", "pgbench", "openai-agents SQLAlchemySession"),
    Limit("postgres", "history", "asyncpg, raw", "pgbench"),
    Limit("postgres", "history", "pgbench", "openai-agents SQLAlchemySession"),
    Limit("sqlite", "add", "sqlite3, on a thread", "sqlite3, raw"),
    Limit("sqlite", "add", "sqlite3, on a thread", "openai-agents SQLiteSession"),
    Limit("sqlite", "history", "sqlite3, on a thread", "sqlite3, raw"),
)
"""Upper bounds: a target beyond its bound needs calls that share statements and commits."""


class GateResult(NamedTuple):
    """A gate at one concurrency."""

    gate: Gate
    concurrency: int
    target: float
    reached: float | None
    """The median ratio; None where a contender is missing."""

    @property
    def passed(self) -> bool:
        """Return whether the target was reached; a missing measurement fails."""
        return self.reached is not None and self.reached >= self.target


def outcomes(run: Run) -> list[GateResult]:
    """Return each gate at each concurrency, for the engines of the run."""
    found = []
    for gate in GATES:
        if run.about.get("engine") not in {None, gate.engine}:
            continue
        for concurrency, target in zip(CONCURRENCY, gate.targets, strict=True):
            ratio = run.ratio(Case(gate.engine, gate.work, concurrency, POOL), gate.base)
            found.append(GateResult(gate, concurrency, target, ratio.median if ratio else None))
    return found
