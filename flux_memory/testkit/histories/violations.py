"""What can be wrong between a history and a store, each with a sentence for people."""

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
    "wrong read",
    "foreign error",
]
"""`lost`: acknowledged, not stored. `from nowhere`: stored, asked for by nobody. `undeleted`: deleted, still stored."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that was not kept."""

    kind: Kind
    sentence: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.sentence}"
