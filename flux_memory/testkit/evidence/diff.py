"""What changed between two runs' evidence, clause by clause."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from flux_memory.testkit.evidence.document import Evidence, Outcome, Result

SLOWER: Final = 2.0
"""A clause is slower when it takes this many times as long ..."""
NOTICEABLE: Final = 0.25
"""... and at least so many seconds more; below that a busy machine says as much."""


@dataclass(frozen=True, slots=True)
class Change:
    """One clause on one backend."""

    clause: str
    backend: str
    before: Outcome | None
    """None where the older evidence does not have it."""
    after: Outcome | None
    promise: str
    reason: str = ""
    seconds_before: float = 0.0
    seconds_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Every change, by its kind."""

    failing: list[Change] = field(default_factory=list)
    """Held, and fails now."""
    lost: list[Change] = field(default_factory=list)
    """Held, and is not seen to hold now: unverified, not run, no longer claimed, or without its backend."""
    fixed: list[Change] = field(default_factory=list)
    """Holds now, and was not seen to before."""
    other: list[Change] = field(default_factory=list)
    """Held neither before nor now, for another reason than before."""
    added: list[Change] = field(default_factory=list)
    """New in the contract, or of a new backend."""
    removed: list[Change] = field(default_factory=list)
    """No longer in the contract, or never held by a backend that is gone."""
    slower: list[Change] = field(default_factory=list)

    @property
    def is_worse(self) -> bool:
        """Whether something that held is no longer seen to hold."""
        return bool(self.failing or self.lost)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"worse": self.is_worse, **asdict(self)}


def compare(old: Evidence, new: Evidence) -> Difference:
    """Return what changed from one run to another."""
    difference = Difference()
    before, after = _by_clause_and_backend(old), _by_clause_and_backend(new)
    promises = {clause.id: clause.promise for clause in (*old.clauses, *new.clauses)}
    still = {clause.id for clause in new.clauses}
    for key in sorted(before.keys() | after.keys()):
        had, has = before.get(key), after.get(key)
        change = Change(
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


def _place_held(change: Change, has: Result | None, difference: Difference) -> None:
    """Put what held before where it belongs."""
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
