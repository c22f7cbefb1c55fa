"""Compares the evidence of two runs, clause by clause."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from flux_memory.testkit.evidence.document import Evidence, Outcome, Result

SLOWER: Final = 2.0
"""Ratio of times from which a clause counts as slower, if `NOTICEABLE` is exceeded, too."""
NOTICEABLE: Final = 0.25
"""Seconds of difference from which a clause counts as slower; a smaller one is noise on a busy machine."""


@dataclass(frozen=True, slots=True)
class ClauseChange:
    """One clause on one backend."""

    clause: str
    backend: str
    before: Outcome | None
    """None if the older evidence does not have the clause."""
    after: Outcome | None
    promise: str
    reason: str = ""
    seconds_before: float = 0.0
    seconds_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Every change, by kind."""

    failing: list[ClauseChange] = field(default_factory=list)
    """Held before, fails now."""
    lost: list[ClauseChange] = field(default_factory=list)
    """Held before, now unverified, not run, not claimed, thorough only, or without its backend."""
    fixed: list[ClauseChange] = field(default_factory=list)
    """Holds now, did not before."""
    other: list[ClauseChange] = field(default_factory=list)
    """Did not hold before nor now, but with another outcome."""
    added: list[ClauseChange] = field(default_factory=list)
    """New in the contract, or on a new backend."""
    removed: list[ClauseChange] = field(default_factory=list)
    """No longer in the contract, or did not hold on a backend that was removed."""
    slower: list[ClauseChange] = field(default_factory=list)

    @property
    def is_worse(self) -> bool:
        """Whether a clause that held no longer holds."""
        return bool(self.failing or self.lost)

    def as_dict(self) -> dict[str, Any]:
        """Return the changes as plain data for JSON."""
        return {"worse": self.is_worse, **asdict(self)}


def compare(old: Evidence, new: Evidence) -> Difference:
    """Return the changes from the old run to the new one."""
    difference = Difference()
    before, after = _by_clause_and_backend(old), _by_clause_and_backend(new)
    promises = {clause.id: clause.promise for clause in (*old.clauses, *new.clauses)}
    still = {clause.id for clause in new.clauses}
    for key in sorted(before.keys() | after.keys()):
        had, has = before.get(key), after.get(key)
        change = ClauseChange(
            *key,
            before=had.outcome if had else None,
            after=has.outcome if has else None,
            promise=promises[key[0]],
            reason=has.reason if has else "",
            seconds_before=had.seconds if had else 0.0,
            seconds_after=has.seconds if has else 0.0,
        )
        if had is None:
            difference.added.append(change)
        elif had.holds and (has is not None or key[0] in still):
            _place_held(change, has, difference)
        elif has is None:
            difference.removed.append(change)
        elif has.holds:
            difference.fixed.append(change)
        elif has.outcome != had.outcome:
            difference.other.append(change)
    return difference


def _place_held(change: ClauseChange, has: Result | None, difference: Difference) -> None:
    """Sort in the change of a clause that held before."""
    if has is None:
        difference.lost.append(change)
    elif has.outcome in {"failed", "advisory"}:
        difference.failing.append(change)
    elif not has.holds:
        difference.lost.append(change)
    elif change.seconds_after > max(change.seconds_before * SLOWER, change.seconds_before + NOTICEABLE):
        difference.slower.append(change)


def _by_clause_and_backend(evidence: Evidence) -> dict[tuple[str, str], Result]:
    return {(clause.id, backend): result for clause in evidence.clauses for backend, result in clause.results.items()}
