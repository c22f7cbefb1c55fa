"""Reasons to refuse a row, counted without keeping every case in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

_MAX_NAMED: Final = 5
"""Row ids that a report names for each kind of problem."""


class ProblemKind(StrEnum):
    """Why a row is refused; reports print the value."""

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
    BAD_RATING = "not a rating"
    BAD_TIMESTAMP = "impossible timestamp"


class Problem(NamedTuple):
    """One reason to refuse one row."""

    kind: ProblemKind
    column: str
    detail: str


class InvalidValueError(ValueError):
    """A value cannot be moved."""

    def __init__(self, kind: ProblemKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: Final = kind


@dataclass
class Tally:
    """How often a kind of problem occurs in a table, with the first cases."""

    table: str
    kind: ProblemKind
    count: int = 0
    first: list[str] = field(default_factory=list)
    """Ids of the first rows, each with the column and the detail."""

    def add(self, row_id: str, problem: Problem) -> None:
        """Count one case."""
        self.count += 1
        if len(self.first) < _MAX_NAMED:
            self.first.append(f"{row_id:.80} ({problem.column}: {problem.detail:.120})")

    def include(self, other: Tally) -> None:
        """Add the counts of the next part of the source."""
        self.count += other.count
        self.first = [*self.first, *other.first][:_MAX_NAMED]
