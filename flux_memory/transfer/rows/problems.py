"""What can be wrong with a row, and how problems are counted without keeping them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

_MAX_NAMED: Final = 5
"""Ids named of each kind of problem."""


class ProblemKind(StrEnum):
    """A kind of problem; the value is how reports name it."""

    NULL_ID = "id is NULL"
    DUPLICATE_ID = "id is there twice"
    BAD_LENGTH_ID = "id is empty or over-long"
    ORPHAN = "session is gone"
    SESSION_REFUSED = "session is refused"
    NULL = "NULL where text belongs"
    NOT_TEXT = "number where text belongs"
    BLOB = "BLOB where text belongs"
    NUL = "NUL character"
    LONE_SURROGATE = "lone surrogate"
    BAD_UTF8 = "bad UTF-8"
    EMPTY_ROLE = "empty role"
    TOO_LARGE = "over the size limit"
    BAD_JSON = "bad JSON"
    NOT_AN_OBJECT = "JSON is not an object"
    NAN = "NaN or Infinity in JSON"
    NUMBER_OUT_OF_RANGE = "number out of range in JSON"
    TOO_DEEP = "JSON nested too deep"
    BAD_TIMESTAMP = "impossible timestamp"


class Problem(NamedTuple):
    """One thing that is wrong with one row."""

    kind: ProblemKind
    column: str
    detail: str


class InvalidValueError(ValueError):
    """A value that cannot be moved."""

    def __init__(self, kind: ProblemKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: Final = kind


@dataclass
class Tally:
    """How often a kind of problem was found in a table, and where first."""

    table: str
    kind: ProblemKind
    count: int = 0
    first: list[str] = field(default_factory=list)
    """The first ids, each with its column and what is wrong."""

    def add(self, row_id: str, problem: Problem) -> None:
        """Count one."""
        self.count += 1
        if len(self.first) < _MAX_NAMED:
            self.first.append(f"{row_id} ({problem.column}: {problem.detail:.120})")

    def include(self, other: Tally) -> None:
        """Add what was counted elsewhere."""
        self.count += other.count
        self.first = [*self.first, *other.first][:_MAX_NAMED]
