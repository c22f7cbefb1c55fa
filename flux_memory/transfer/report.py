"""What a transfer did, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.target.merge import MergeResult
from flux_memory.transfer.target.verify import Comparison


class Status(StrEnum):
    """How a transfer ended."""

    IDENTICAL = "identical"
    """Everything was moved, or was there, and is proven equal."""
    READY = "ready"
    """A dry run found nothing in the way."""
    REFUSED = "refused"
    """Rows cannot be moved as they are; nothing was changed."""
    QUARANTINED = "quarantined"
    """Everything else was moved and is proven equal; the refused rows are in the quarantine file."""
    DIFFERENT = "different"
    """Something is missing or has another content on the other side."""


_EXIT_CODES = {Status.IDENTICAL: 0, Status.READY: 0, Status.REFUSED: 1, Status.DIFFERENT: 1, Status.QUARANTINED: 3}


@dataclass
class Report:
    """What a transfer found, moved and proved."""

    source: str
    target: str
    """With no password in it."""
    status: Status = Status.DIFFERENT
    preflight: PreflightResult = field(default_factory=PreflightResult)
    moved: MergeResult | None = None
    verification: Comparison | None = None
    quarantine: str | None = None
    """The file that holds the refused rows."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each phase took."""

    @property
    def exit_code(self) -> int:
        """0 proven identical, 1 failed or different, 3 done with rows in quarantine."""
        return _EXIT_CODES[self.status]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        problems = [asdict(tally) for tally in self.preflight.tallies.values()]
        found = asdict(self.preflight)
        found["tallies"] = problems
        return {
            "source": self.source,
            "target": self.target,
            "status": str(self.status),
            "exit_code": self.exit_code,
            "preflight": found,
            "moved": None if self.moved is None else asdict(self.moved),
            "verification": None if self.verification is None else asdict(self.verification),
            "quarantine": self.quarantine,
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
        }
