"""The outcome of a transfer, for people and programs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from flux_memory.transfer.progress import Watcher
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.target.merge_result import MergeResult
from flux_memory.transfer.target.verify import Comparison, Losses


class Status(StrEnum):
    """How a transfer ended."""

    IDENTICAL = "identical"
    """Both sides are proven to have the same rows."""
    CONTAINED = "contained"
    """Every row was moved, or was there already, and is proven equal; the other side has more rows."""
    SKIPPED = "skipped"
    """The same, except for sessions that were deleted in the target since an earlier run moved them."""
    READY = "ready"
    """A dry run found no obstacle."""
    REFUSED = "refused"
    """Some rows are invalid; nothing was changed."""
    QUARANTINED = "quarantined"
    """All valid rows were moved and are proven equal; refused rows are in the quarantine file."""
    DIFFERENT = "different"
    """A row is missing on the other side, or has different content there."""


_EXIT_CODES = {
    Status.IDENTICAL: 0,
    Status.CONTAINED: 0,
    Status.READY: 0,
    Status.REFUSED: 1,
    Status.DIFFERENT: 1,
    Status.SKIPPED: 3,
    Status.QUARANTINED: 3,
}


@dataclass
class Report:
    """The counts and the outcome of a transfer."""

    source: str
    target: str
    """The DSN is shown without its password."""
    replaces: bool = False
    """Whether the target's rows were to be replaced."""
    status: Status = Status.DIFFERENT
    preflight: PreflightResult = field(default_factory=PreflightResult)
    moved: MergeResult | None = None
    losses: Losses | None = None
    """What replacing the target's rows would delete or overwrite there; of a dry run."""
    recorded: bool | None = None
    """Whether the target keeps a record of the move; `None` if nothing was moved."""
    verification: Comparison | None = None
    quarantine: str | None = None
    """The quarantine file, if one was written."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each phase."""

    @contextmanager
    def phase(self, watcher: Watcher, name: str, rows: int | None) -> Iterator[None]:
        """Announce a phase, and add its duration to `seconds`."""
        watcher.phase(name, rows)
        began = time.monotonic()
        try:
            yield
        finally:
            # A repeated phase, such as the preflight of a file that changed, adds to the time of the first.
            self.seconds[name.lower()] = self.seconds.get(name.lower(), 0.0) + time.monotonic() - began

    @property
    def exit_code(self) -> int:
        """0: success; 1: refused or different; 3: moved, except for rows in quarantine or deleted sessions."""
        return _EXIT_CODES[self.status]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dict that JSON can represent."""
        # The keys of the dict are tuples, which JSON does not have.
        found = asdict(self.preflight) | {"tallies": [asdict(tally) for tally in self.preflight.tallies.values()]}
        return {
            "source": self.source,
            "target": self.target,
            "status": str(self.status),
            "exit_code": self.exit_code,
            "preflight": found,
            "moved": None if self.moved is None else asdict(self.moved),
            "recorded": self.recorded,
            "losses": None if self.losses is None else asdict(self.losses),
            "verification": None if self.verification is None else asdict(self.verification),
            "quarantine": self.quarantine,
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
        }
