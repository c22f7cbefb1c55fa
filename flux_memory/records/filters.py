"""Bounds a metadata filter, and tests stored metadata against it as `jsonb @>` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from flux_memory.errors import InvalidInputError
from flux_memory.records.limits import MAX_FILTER_ELEMENTS, MAX_FILTER_VALUES
from flux_memory.records.metadata import TooLongError, encode_metadata, read_exactly

_STEPS: Final = 1000
"""Elements that are compared between two looks at the deadline: some milliseconds."""
_MOST_PARTS: Final = 8 * MAX_FILTER_VALUES
"""Parts of a filter's JSON text at which encoding stops; one with fewer values than that has fewer parts."""
_CONTAINERS: Final = frozenset({dict, list})

_Test = Callable[[Any], bool]


class StoppedError(Exception):
    """The caller's deadline passed during a comparison."""


def check_filter(value: object) -> str | None:
    """Return the JSON text of the `metadata` argument of `get_sessions`; `None` stays `None`.

    Args:
        value: The argument.

    Raises:
        InvalidTypeError: The value is not a mapping, or has a value that JSON does not have.
        InvalidInputError: The value is not a JSON object, or it has more values than a filter may have.
    """
    if value is None:
        return None
    try:
        text = encode_metadata(value, most=_MOST_PARTS)
    except TooLongError:
        raise _too_many(f"{MAX_FILTER_VALUES} values") from None
    in_arrays = list(_values(value, in_array=False))
    if len(in_arrays) > MAX_FILTER_VALUES:
        raise _too_many(f"{MAX_FILTER_VALUES} values")
    if sum(in_arrays) > MAX_FILTER_ELEMENTS:
        raise _too_many(f"{MAX_FILTER_ELEMENTS} values within arrays")
    return text


def contains(metadata: str, part: str | None) -> bool:
    """Return whether stored metadata contains a filter, as PostgreSQL's `jsonb @>` defines it.

    Args:
        metadata: The metadata as JSON text; invalid JSON contains nothing.
        part: The filter that `check_filter` returned; everything contains `None`.
    """
    return part is None or _parsed(part).finds(metadata)


class MetadataFilter:
    """Tests stored metadata against one filter.

    Args:
        part: The filter's JSON text.
        must_stop: Returns whether the caller's deadline has passed; called every `_STEPS` elements.
    """

    def __init__(self, part: str, must_stop: Callable[[], bool] = lambda: False) -> None:
        self._must_stop = must_stop
        self._steps = 0
        self._test = self._tester(read_exactly(part))

    def finds(self, text: str) -> bool:
        """Return whether a text contains the filter, as `jsonb @>` defines it; invalid JSON contains nothing.

        Raises:
            StoppedError: `must_stop` returned true.
        """
        try:
            return self._test(read_exactly(text))
        except (ValueError, RecursionError):
            return False

    def _tester(self, part: Any) -> _Test:
        """Return a function that tests whether a value contains the part."""
        if isinstance(part, dict):
            return self._object_tester(part)
        if isinstance(part, list):
            return self._array_tester(part)
        is_bool = isinstance(part, bool)
        return lambda value: (type(value) is bool) is is_bool and bool(value == part)

    def _object_tester(self, part: dict[str, Any]) -> _Test:
        members = [(key, self._tester(item)) for key, item in part.items()]

        def test(value: Any) -> bool:
            return type(value) is dict and all(key in value and has(value[key]) for key, has in members)

        return test

    def _array_tester(self, part: list[Any]) -> _Test:
        """Return the test of an array: it has each element of the part, in any order and number."""
        all_scalars = _scalars(part)
        all_tests = [(_probe(item), self._tester(item)) for item in part if type(item) in _CONTAINERS]

        def test(value: Any) -> bool:
            if type(value) is not list:
                return False
            scalars, tests = all_scalars, all_tests
            for at in range(0, len(value), _STEPS):
                if not scalars and not tests:
                    break
                some = value[at : at + _STEPS]
                self._count(len(some))
                if scalars:
                    scalars = scalars - _scalars(some)
                for item in some if tests else ():
                    if type(item) in _CONTAINERS:
                        tests = [
                            (probe, has) for probe, has in tests if not ((probe is None or probe in item) and has(item))
                        ]
            return not scalars and not tests

        return test

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps >= _STEPS:
            self._steps = 0
            if self._must_stop():
                raise StoppedError


@lru_cache(maxsize=8)
def _parsed(part: str) -> MetadataFilter:
    return MetadataFilter(part)


def _too_many(values: str) -> InvalidInputError:
    return InvalidInputError(
        f"metadata has more than {values}, too many for a filter; filter by fewer, and test the sessions for the others"
    )


def _values(value: object, *, in_array: bool) -> Iterator[bool]:
    """Yield, for each value within a value at any depth, whether it is within an array."""
    in_array = in_array or isinstance(value, list | tuple)
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield in_array
        yield from _values(item, in_array=in_array)


def _scalars(items: list[Any]) -> set[Any]:
    """Return the scalars of an array; a bool is in a tuple, since `True` equals 1."""
    return {item if type(item) is not bool else (item,) for item in items if type(item) not in _CONTAINERS}


def _probe(container: Any) -> object:
    """Return a key or scalar that must be in each value that contains this one, for a quick first test; else `None`."""
    return next((item for item in container if type(item) not in _CONTAINERS), None)
