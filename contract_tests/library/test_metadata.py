"""Tests metadata: values round-trip by type and value, and comparisons agree with a real `jsonb`."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_postgres import fetch_rows

from flux_memory.errors import InvalidInputError, InvalidTypeError
from flux_memory.records.limits import MAX_METADATA_BYTES, MAX_METADATA_DEPTH
from flux_memory.records.metadata import contains, decode_metadata, encode_metadata, equal
from flux_memory.testkit.contract import listing

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
NUMBER = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=4)

# Few values, so that objects often contain one another, or almost do.
SMALL = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, -0.0, 1.5, 10**20, 1e20, "", "1", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", ""]), inner, max_size=2),
    max_leaves=6,
)
SMALL_OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), SMALL, max_size=3)


class Frozen(Mapping[str, Any]):
    """A mapping that is not a dict."""

    def __getitem__(self, key: str) -> Any:
        return {"inside": 1}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["inside"])

    def __len__(self) -> int:
        return 1


def with_types(value: object) -> object:
    """Return a form in which 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return {key: with_types(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_types(item) for item in value]
    return type(value).__name__, repr(abs(value)) if value == 0 and isinstance(value, float) else repr(value)


def nest(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth - 1):
        inner = {"a": inner}
    return inner


@given(OBJECTS)
def test_values_round_trip(value: dict[str, Any]) -> None:
    """Every JSON object round-trips by type and value; -0.0 becomes 0.0."""
    assert with_types(decode_metadata(encode_metadata(value))) == with_types(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "{}"),
        ({}, "{}"),
        ({"a": 1e22}, '{"a":10000000000000000000000.0}'),
        ({"a": -0.0}, '{"a":0.0}'),
        ({"a": 1e-7}, '{"a":1e-07}'),
        ({"a": (1, [2])}, '{"a":[1,[2]]}'),
        ({"a": []}, '{"a":[]}'),
        ({"a": True, "b": None, "c": False}, '{"a":true,"b":null,"c":false}'),
        ({"é": '"\n'}, '{"é":"\\"\\n"}'),
        ({"a": Frozen()}, '{"a":{"inside":1}}'),
        (MappingProxyType({"a": 1}), '{"a":1}'),
    ],
)
def test_the_text_form(value: Mapping[str, Any] | None, text: str) -> None:
    """Both engines use one text form: floats stay floats, tuples become lists, any mapping is an object."""
    assert encode_metadata(value) == text


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        ([], InvalidTypeError, "^metadata must be a mapping or None, not list"),
        (False, InvalidTypeError, "not bool"),
        ("{}", InvalidTypeError, "not str"),
        ({1: 2}, InvalidTypeError, "has a key of type int, 1; keys must be str"),
        ({"a": {None: 2}}, InvalidTypeError, r"metadata\['a'\] has a key of type NoneType, None"),
        ({10**5000: 1}, InvalidTypeError, "has a key of type int, a value of type int; keys must be str"),
        ({"a": [0, {"b": math.nan}]}, InvalidInputError, r"^metadata\['a'\]\[1\]\['b'\] is nan"),
        ({"a": -math.inf}, InvalidInputError, "is -inf"),
        ({"a": "x\x00"}, InvalidInputError, r"\['a'\] has a NUL character at offset 1"),
        ({"\x00": 1}, InvalidInputError, "NUL character at offset 0"),
        ({"a": "\ud800"}, InvalidInputError, "lone surrogate"),
        ({"\udfff": 1}, InvalidInputError, "lone surrogate"),
        ({"a": {1, 2}}, InvalidTypeError, r"^metadata\['a'\] is a set, which JSON does not have"),
        ({"a": b"x"}, InvalidTypeError, "is a bytes"),
        ({"a": 10**4300}, InvalidInputError, "more than 4,300 digits"),
        ({"a": -(10**4300)}, InvalidInputError, "more than 4,300 digits"),
        (nest(MAX_METADATA_DEPTH + 1), InvalidInputError, "nested deeper than 100"),
        ({"a": json.loads("[" * MAX_METADATA_DEPTH + "]" * MAX_METADATA_DEPTH)}, InvalidInputError, "nested deeper"),
    ],
)
def test_values_that_an_engine_cannot_store_are_refused_with_their_place(
    value: object, kind: type[Exception], says: str
) -> None:
    """No value is dropped, rounded or turned into null; the message says where it is."""
    with pytest.raises(kind, match=says):
        encode_metadata(value)


def test_the_size_is_counted_in_bytes_of_json() -> None:
    """Metadata above the shared limit is refused, never cut."""
    fits = "é" * ((MAX_METADATA_BYTES - len('{"a":""}')) // 2)
    assert len(encode_metadata({"a": fits}).encode()) == MAX_METADATA_BYTES
    with pytest.raises(InvalidInputError, match="metadata is larger than"):
        encode_metadata({"a": fits + "x"})


@pytest.mark.parametrize("text", [None, "{}"])
def test_an_empty_object_is_a_fresh_one_too(text: str | None) -> None:
    """Each reader gets a separate dict; changing one changes no other."""
    assert decode_metadata(text) is not decode_metadata(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '"x"', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1} x'])
def test_a_stored_text_that_is_not_an_object_is_an_error(text: str) -> None:
    """Corrupt metadata is never read as an empty object, and containment finds nothing in it."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is json's or the library's; the caller names the row
        decode_metadata(text)


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', '{"a": Infinity}', "[" * 100_000])
def test_invalid_json_contains_nothing(text: str) -> None:
    """One corrupt row does not break a filtered listing."""
    assert not contains(text, "{}")


@pytest.mark.parametrize(
    ("value", "part", "expected"),
    [*listing.SCALARS, *listing.NUMBERS, *listing.OBJECTS, *listing.ARRAYS, ({"a": "1"}, {"a": 1}, False)],
)
def test_containment_is_that_of_jsonb(value: dict[str, Any], part: dict[str, Any], expected: bool) -> None:
    """The clauses' cases, without SQLite's search tables, which would hide a wrong result."""
    assert contains(encode_metadata(value), encode_metadata(part)) is expected


def test_a_real_jsonb_agrees_about_containment_and_equality(flux_postgres_dsn: str) -> None:
    """SQLite filters with `contains`, PostgreSQL with `@>`: both give the same answers for any objects.

    SQLite tells a retry from a conflict with `equal`, PostgreSQL with `=` of `jsonb`: these agree as well.
    """
    pairs: list[tuple[str, str]] = []

    @settings(max_examples=300, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(SMALL_OBJECTS, SMALL_OBJECTS, st.randoms(use_true_random=False))
    def collect(value: dict[str, Any], other: dict[str, Any], chance: random.Random) -> None:
        pairs.extend((encode_metadata(value), encode_metadata(part)) for part in (other, prune(value, chance)))

    collect()
    columns = [[one for one, _ in pairs], [other for _, other in pairs]]
    answers = asyncio.run(
        fetch_rows(
            flux_postgres_dsn,
            "SELECT one::jsonb @> other::jsonb, one::jsonb = other::jsonb "
            "FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS pair (one, other, at) ORDER BY at",
            *columns,
        )
    )
    assert len(answers) == len(pairs) > 500
    assert {holds for holds, _ in answers} == {same for _, same in answers} == {True, False}
    for (one, other), (holds, same) in zip(pairs, answers, strict=True):
        assert contains(one, other) is holds, (one, other)
        assert equal(one, other) is same, (one, other)


def test_a_real_jsonb_returns_the_encoded_value(flux_postgres_dsn: str) -> None:
    """Types survive `jsonb`: no float becomes an int and no int loses a digit, for random doubles of every size."""
    chance = random.Random(17)
    doubles = [chance.uniform(-1, 1) * 10.0 ** chance.randint(-320, 308) for _ in range(2000)]
    objects: list[dict[str, Any]] = [{"n": double} for double in [*doubles, 1e16, 1e22, 5e-324, 1.7976931348623157e308]]
    objects += [{"n": 10**4300 - 1}, {"n": 2**63}, {"deep": nest(99)}]

    @settings(max_examples=200, database=None)
    @given(OBJECTS)
    def collect(value: dict[str, Any]) -> None:
        objects.append(value)

    collect()
    texts = [encode_metadata(value) for value in objects]
    stored = asyncio.run(
        fetch_rows(
            flux_postgres_dsn,
            "SELECT value::jsonb::text FROM unnest($1::text[]) WITH ORDINALITY AS item (value, at) ORDER BY at",
            texts,
        )
    )
    for value, (text,) in zip(objects, stored, strict=True):
        assert with_types(decode_metadata(text)) == with_types(json.loads(json.dumps(value)))


def prune(value: Any, chance: random.Random) -> Any:
    """Drop and shuffle parts, so that the value often contains the result."""
    if isinstance(value, dict):
        return {key: prune(item, chance) for key, item in value.items() if chance.random() < 0.7}
    if isinstance(value, list):
        kept = [prune(item, chance) for item in value if chance.random() < 0.7]
        chance.shuffle(kept)
        return kept + kept[:1]
    return value
