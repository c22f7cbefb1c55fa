"""Tests merges of metadata as text: they equal those of the values, and every value keeps its text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_metadata import OBJECTS, TEXT, with_types

from flux_memory.records import TooLongError, decode_metadata, encode_metadata, merge_metadata
from flux_memory.records.limits import MAX_METADATA_BYTES

KEYS = st.lists(TEXT | st.sampled_from(["a", "b"]), max_size=3)
LAYOUTS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n ")])
"""Separators: those of the library, those of `jsonb`, and others that JSON allows."""


def read_texts(text: str) -> Any:
    """Return a JSON object with each number as its text, so that `1e2` and `100.0` differ."""
    return json.loads(text, parse_int=lambda number: ("int", number), parse_float=lambda number: ("float", number))


@given(OBJECTS, OBJECTS, KEYS, LAYOUTS, st.booleans())
def test_a_merge_equals_that_of_the_values(
    stored: dict[str, Any], merged: dict[str, Any], removed: list[str], layout: tuple[str, str], plain: bool
) -> None:
    """Keys are removed first, then each merged value replaces the stored one of any type."""
    text = json.dumps(stored, separators=layout, ensure_ascii=plain)
    result = merge_metadata(text, encode_metadata(merged), [*removed, *list(stored)[:1]])
    kept = {key: value for key, value in stored.items() if key not in [*removed, *list(stored)[:1]]}
    assert with_types(decode_metadata(result)) == with_types(kept | merged)


@given(OBJECTS, OBJECTS)
def test_every_number_keeps_its_text(stored: dict[str, Any], merged: dict[str, Any]) -> None:
    """A value that the merge does not name is not written anew, also where reading and writing would change it."""
    ours, theirs = json.dumps(stored), encode_metadata(merged)
    assert read_texts(merge_metadata(ours, theirs)) == read_texts(ours) | read_texts(theirs)


@given(OBJECTS, KEYS)
def test_a_merge_of_nothing_keeps_the_value(stored: dict[str, Any], removed: list[str]) -> None:
    """Missing keys are no error, and a merge of `{}` is one of nothing."""
    text = encode_metadata(stored)
    missing = [key for key in removed if key not in stored]
    assert merge_metadata(text, None, missing) == merge_metadata(text, "{}") == merge_metadata(text, None)
    assert decode_metadata(merge_metadata(text, None)) == stored


@pytest.mark.parametrize(
    ("stored", "merged", "removed", "result"),
    [
        (None, None, (), "{}"),
        ("{}", '{"a":1}', (), '{"a":1}'),
        ('{"a":{"b":1}}', '{"a":{"c":2}}', (), '{"a":{"c":2}}'),
        ('{"a":1}', '{"a":null}', (), '{"a":null}'),
        ('{"a":1,"b":2}', None, ("a", "x"), '{"b":2}'),
        ('{"a":1}', '{"a":2}', ("a",), '{"a":2}'),
        (' {"a" : 1.50 , "b":[1,  2]}\n', None, (), '{"a":1.50,"b":[1,  2]}'),
        (r'{"\u0041": "\u00e9", "b": 1e2}', '{"b":100.0}', (), r'{"A":"\u00e9","b":100.0}'),
        (r'{"\"\\": -0.0}', None, (), r'{"\"\\":-0.0}'),
        ('{"a.b":1,"":2}', '{"":3}', ("a",), '{"a.b":1,"":3}'),
        ('{"a":1,"a":2}', None, (), '{"a":2}'),
        ("{" + f'"n":{10**400}' + "}", None, (), "{" + f'"n":{10**400}' + "}"),
    ],
)
def test_texts_of_merges(stored: str | None, merged: str | None, removed: tuple[str, ...], result: str) -> None:
    """Nested objects are replaced, null is a value, and a key may have any text."""
    assert merge_metadata(stored, merged, removed) == result


@pytest.mark.parametrize(
    "damaged",
    ["", "{", "[]", "7", '{"a"', '{"a" 1}', '{"a":', '{"a":}', '{"a":1', '{"a":1,}', '{"a":1 "b":2}', "{a:1}", "{,}",
     '{"a":1}}', '{"a":1} {}', '{"a":NaN}', '{"a":-Infinity}', '{"a\n":1}', '{1:2}'],
)  # fmt: skip
def test_a_damaged_text_is_refused(damaged: str) -> None:
    """A stored text that is not a JSON object is an error, never merged into one."""
    assert merge_metadata("{}", "{}") == "{}"
    with pytest.raises(ValueError):  # noqa: PT011 - the caller names the session
        merge_metadata(f" {damaged}", '{"a":1}')


def test_a_text_nested_too_deeply_is_refused() -> None:
    """Another program may have stored it: the error is one that callers handle."""
    with pytest.raises(RecursionError):
        merge_metadata('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", None)


@pytest.mark.parametrize("letter", ["x", "é"])
def test_the_size_of_the_result_is_bounded(letter: str) -> None:
    """Two objects that fit may not fit together; the bound counts bytes, and includes itself."""
    size = len(letter.encode())
    room = MAX_METADATA_BYTES - len('{"a":"","b":""}')
    first, second = room // 2 // size, (room - room // 2 // size * size) // size
    stored, merged = (encode_metadata({key: letter * count}) for key, count in (("a", first), ("b", second)))
    assert MAX_METADATA_BYTES - size < len(merge_metadata(stored, merged).encode()) <= MAX_METADATA_BYTES
    with pytest.raises(TooLongError):
        merge_metadata(stored, encode_metadata({"b": letter * (second + 1)}))
    assert merge_metadata(stored, merged, ["a"]) == merged
