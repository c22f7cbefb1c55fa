"""Compares answers: records by type and value, errors by their public class and the argument they name."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    FluxMemoryError,
    InvalidInputError,
    MemoryClosedError,
    SessionNotFoundError,
)
from flux_memory.testkit.contract.corpus import same
from flux_memory.testkit.contract.model.calls import Answer, Raised, Returned

ANY_TIME: Final = "?"
"""In an expected record: a time that the store chose. Sorts after every real time."""
ANY_REVISION: Final = "?"
"""In an expected record: a revision that the store chose."""
TIMES: Final = frozenset({"created_at", "updated_at"})

_FAMILIES: Final = (
    InvalidInputError,
    SessionNotFoundError,
    ConflictError,
    MemoryClosedError,
    BackendUnavailableError,
    FluxMemoryError,
)
_ARGUMENT: Final = re.compile(r"[a-z_]+(?:\[[0-9]+\])?(?:\.[a-z_]+)?")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\+00:00")


class Mismatch(NamedTuple):
    """The first difference between two answers: its place, as code that follows the call, and both values."""

    place: str
    expected: Any
    seen: Any


def family(error: BaseException) -> tuple[str, bool]:
    """Return the public class of an error, and whether it is also a type error."""
    known = next((kind.__name__ for kind in _FAMILIES if isinstance(error, kind)), type(error).__qualname__)
    return known, isinstance(error, TypeError)


def argument_of(error: BaseException) -> str | None:
    """Return the first argument that an `InvalidInputError` names."""
    found = _ARGUMENT.match(str(error)) if isinstance(error, InvalidInputError) else None
    return found.group() if found else None


def difference(expected: Answer, seen: Answer) -> Mismatch | None:
    """Return the first difference from the expected answer, or `None`."""
    if isinstance(expected, Returned) and isinstance(seen, Returned):
        return _first_difference(expected.value, seen.value)
    if isinstance(expected, Raised) and isinstance(seen, Raised):
        if family(expected.error) != family(seen.error):
            return Mismatch("", expected.error, seen.error)
        argument = argument_of(expected.error)
        # Each backend words its messages; only the argument's name is promised.
        return None if argument is None or argument in str(seen.error) else Mismatch("", expected.error, seen.error)
    return Mismatch("", _bare(expected), _bare(seen))


def is_time(value: object) -> bool:
    """Return whether a value has the format of a record's time."""
    return type(value) is str and _TIME.fullmatch(value) is not None


def _bare(answer: Answer) -> Any:
    if isinstance(answer, Returned):
        return answer.value
    return answer.error if isinstance(answer, Raised) else answer


def _first_difference(expected: Any, seen: Any, place: str = "") -> Mismatch | None:
    if isinstance(expected, dict) and type(expected) is type(seen):
        if expected.keys() != seen.keys():
            return Mismatch(f"{place}.keys()", set(expected), set(seen))
        return _first_of((expected[key], seen[key], f"{place}[{key!r}]") for key in expected)
    if isinstance(expected, list) and type(expected) is type(seen) and len(expected) == len(seen):
        return _first_of(
            (one, other, f"{place}[{at}]") for at, (one, other) in enumerate(zip(expected, seen, strict=True))
        )
    if expected == ANY_TIME and place.endswith(("['created_at']", "['updated_at']")):
        return None if is_time(seen) else Mismatch(place, "a time", seen)
    if expected == ANY_REVISION and place.endswith("['revision']"):
        return None if type(seen) is str else Mismatch(place, "a revision", seen)
    return None if same(expected, seen) else Mismatch(place, expected, seen)


def _first_of(pairs: Any) -> Mismatch | None:
    return next((found for pair in pairs if (found := _first_difference(*pair)) is not None), None)
