"""A metadata filter is bounded, costs the sum of the lengths, and can be stopped at a deadline."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final

import pytest

from flux_memory.backends.sqlite.errors import translate_errors
from flux_memory.backends.sqlite.opening import connect
from flux_memory.errors import BackendUnavailableError, InvalidInputError
from flux_memory.records.filters import MetadataFilter, StoppedError, check_filter
from flux_memory.records.metadata import encode_metadata

ELEMENTS: Final = 20_000
LONG: Final[dict[str, tuple[Callable[[int], Any], int]]] = {
    "numbers": (int, 16),
    "texts": (str, 16),
    "floats": (lambda n: n + 0.5, 16),
    "arrays": (lambda n: [n], 8),
    "objects": (lambda n: {"k": n}, 8),
    "arrays in arrays": (lambda n: [[n]], 5),
    "objects in arrays": (lambda n: [{"k": n}], 5),
}
"""What a stored array consists of, and how many of its last elements a filter may ask for."""


@pytest.mark.parametrize(("element", "count"), LONG.values(), ids=LONG)
def test_the_deadline_is_looked_at_during_a_comparison(element: Callable[[int], Any], count: int) -> None:
    """SQLite cannot interrupt our function: a filter that takes long would block its thread, and every other caller."""
    looks: list[bool] = []
    text = encode_metadata({"a": [element(n) for n in range(ELEMENTS)]})
    part = encode_metadata({"a": [element(ELEMENTS - 1 - n) for n in range(count)]})
    assert MetadataFilter(part, lambda: bool(looks.append(False))).finds(text)
    # A look for each thousand elements: a filter of scalars goes through the array once, not once for each of them.
    assert ELEMENTS // 1000 <= len(looks) <= ELEMENTS // 1000 * (count + 1)
    if not isinstance(element(0), dict | list):
        assert len(looks) == ELEMENTS // 1000
    with pytest.raises(StoppedError):
        MetadataFilter(part, lambda: True).finds(text)


@pytest.mark.parametrize(
    ("stored", "part", "expected"),
    [
        ([True], [1], False),
        ([1], [True], False),
        ([1, False], [0], False),
        ([1, True], [True, 1], True),
        ([1.0, "1"], [1, "1"], True),
        ([None], [False], False),
        ([[True]], [[1]], False),
        ([[1, True]], [[True]], True),
        ([{"a": True}], [{"a": 1}], False),
        ([[[1], [2]], [[3]]], [[[3], [1]]], False),
        ([[], {}], [{}, []], True),
        ([{}], [[]], False),
        (list(range(2_500)), [2_499, 0], True),
        ([[n] for n in range(2_500)], [[2_499], [0]], True),
        ([[n] for n in range(2_500)], [[2_500]], False),
        ([{"a": "x"}, {"b": "x"}], [{"a": "x", "b": "x"}], False),
        ([["a"], {"a": 1}], [{"a": 1}, ["a"]], True),
        ([{"a": 1}], [["a"]], False),
    ],
)
def test_sets_keep_the_rules_of_jsonb(stored: Any, part: Any, expected: bool) -> None:
    """In a set of Python `True` equals 1, and a key of an object equals an element of an array."""
    assert MetadataFilter(encode_metadata({"a": part})).finds(encode_metadata({"a": stored})) is expected


def test_a_stopped_comparison_is_a_deadline(tmp_path: Any) -> None:
    """The caller learns of its deadline; it is not told that the tables were changed by hand."""
    with closing(connect(str(tmp_path / "chat.db"), 5, lambda: True)[0]) as db:
        call = "SELECT jsonb_contains(?, ?)"
        values = (b'{"a": [' + b"1," * 1_000 + b"1]}", '{"a": [2]}')
        with (
            pytest.raises(BackendUnavailableError, match="interrupted: the call took longer than its"),
            translate_errors("chat.db"),
        ):
            db.execute(call, values).fetchone()
        assert isinstance(db.execute("SELECT 1").fetchone(), tuple), "the connection goes on"
        assert db.execute(call, (b'{"a": [2]}', '{"a": [2]}')).fetchone() == (1,)


class Endless(Mapping[str, Any]):
    """A mapping that has itself as each of its values."""

    def __getitem__(self, key: str) -> Any:
        return self

    def __iter__(self) -> Any:
        return iter("ab")

    def __len__(self) -> int:
        return 2


def twice(depth: int) -> Any:
    """Return an array of two arrays, each the same one, and so on: 2 ** depth elements in little memory."""
    value: Any = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [{"a": twice(90)}, Endless(), {"a": [0] * 10**6}, {str(n): n for n in range(10**5)}, {"a": "x" * 20_000_000}],
    ids=["shared", "endless", "long array", "many keys", "long text"],
)
def test_a_huge_filter_is_refused_without_being_encoded(value: Any) -> None:
    """Refusing costs what a filter may cost, not what the caller's object would cost."""
    with pytest.raises(InvalidInputError, match="metadata"):
        check_filter(value)


def test_metadata_stops_growing_at_its_limit() -> None:
    """An array with more elements than metadata may have bytes is refused before any of them is encoded."""
    with pytest.raises(InvalidInputError, match="metadata is larger than"):
        encode_metadata({"a": [{"a": [0] * (16 * 1024 * 1024)}]})


def test_sqlite3_names_a_function_that_raised() -> None:
    """A stopped comparison is told from a damaged table by sqlite3's text."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.create_function("fails", 0, lambda: 1 / 0)
        with pytest.raises(sqlite3.OperationalError, match=r"^user-defined function raised exception$"):
            db.execute("SELECT fails()")
