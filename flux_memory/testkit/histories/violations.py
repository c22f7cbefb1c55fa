"""The ways in which a store can contradict a history, each with a sentence for reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "lost",
    "refused but stored",
    "from nowhere",
    "doubled",
    "half stored",
    "altered",
    "out of order",
    "gap",
    "miscounted",
    "undeleted",
    "removed twice",
    "overwritten",
    "wrong read",
    "foreign error",
]
"""`lost`: acknowledged, not stored. `from nowhere`: stored, never sent. `undeleted`: removed, still stored.
`overwritten`: two changes that both expected one revision."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    kind: Kind
    sentence: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.sentence}"
